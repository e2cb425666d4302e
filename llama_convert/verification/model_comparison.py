"""Runs source and output, each as its format defines it, and compares them layer by layer and end to end.

A *text* of tokens at positions spread over the context length runs through each model end to end, which shows
how far their logits are apart.  In addition, each layer and the LM head of the output run on the input that
the same part of the source gets.  This identifies the wrong part, keeps one error from hiding another, and
does not accumulate rounding.  That input is the beginning of the source's text, and a *probe*: the same
small random vectors for every layer, also at spread positions.  The probe is about as small as the square
root of norm_eps, so that a wrong norm_eps changes the result whatever the scale of the model's activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.source import Checkpoint
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.dtypes import Dtype
from llama_convert.findings import Finding
from llama_convert.llama.config import LlamaConfig
from llama_convert.verification.streamed_model import StreamedModel, one_ahead, open_model
from llama_convert.verification.structure import config_differences
from llama_convert.verification.thresholds import Limits, limits

N_PROBES = 8
N_LOCAL = 16
"""Number of tokens of the source's text that each layer of the output runs in addition to its own text."""


@dataclass
class Comparison:
    """How the results of two models on the same tokens differ."""

    embedding: float = 0.0
    """Relative difference of the embedded tokens."""
    divergence: list[float] = field(default_factory=list)
    """Per layer: relative difference of the text's hidden states, each model continuing from its own."""
    local: list[float] = field(default_factory=list)
    """Per layer: relative difference of the layers' outputs on the source's text."""
    probe: list[float] = field(default_factory=list)
    """Per layer: relative difference of what the layers add to the probe."""
    head: float = 0.0
    """Relative difference of the LM heads' logits on the source's text or on the probe."""
    max_head_difference: float = 0.0
    """Max absolute difference of any of those logits."""
    kl: list[float] = field(default_factory=list)
    """Per token of the text: KL(source || output), in nats."""
    agreements: int = 0
    """Number of tokens of the text with the same most likely next token."""
    decided: int = 0
    """Number of tokens whose most likely next token leads by more than rounding can change."""
    overturned: int = 0
    """How many of those have another most likely next token in the output."""
    max_logit_difference: float = 0.0
    """Max absolute difference of the text's logits."""
    top1: list[tuple[int, int]] = field(default_factory=list)
    """Per token of the text: ids of the most likely next token, by source and output."""
    spread: float = 0.0
    """Standard deviation of the source's logits over the vocabulary."""


def spread_positions(n: int, context_length: int) -> Tensor:
    """Positions from 0 to the end of the context, int64 [n], dense at first and then with growing distances.

    RoPE is relative, so the distances between tokens are both short and long.
    """
    last = max(context_length, n) - 1
    if n < 2:
        return torch.zeros(n, dtype=torch.int64)
    curve = [round(last * (i / (n - 1)) ** 4) for i in range(n)]
    for i in range(1, n):  # all positions differ
        curve[i] = max(curve[i], curve[i - 1] + 1)
    excess = curve[-1] - last
    return torch.tensor([min(p, last - (n - 1 - i)) if excess > 0 else p for i, p in enumerate(curve)])


@torch.no_grad()
def compare(
    source: StreamedModel,
    output: StreamedModel,
    config: LlamaConfig,
    tokens: Tensor,
    limit: Limits,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Run source and output layer by layer in turn.

    Args:
        source: the model to compare with.
        output: the model that is verified.
        config: hyper-parameters of the source.
        tokens: ids below both vocabulary sizes, integer [tokens].
        limit: the differences that rounding explains.
        progress: called after each layer.
    """
    device, dtype = source.device, source.dtype
    tokens = tokens.to(device)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(N_PROBES, config.dim, generator=generator) * math.sqrt(config.norm_eps)
    probe = probe.to(device, dtype)
    n_same = N_PROBES + min(N_LOCAL, len(tokens))
    at_text, at_probe = (spread_positions(n, config.context_length) for n in (len(tokens), N_PROBES))
    # The output runs the beginning of the source's text in addition to its own.
    source_batch = _Batch.of(device, at_probe, at_text)
    output_batch = _Batch.of(device, at_probe, at_text[:N_LOCAL], at_text)
    result = Comparison()
    text, own = source.embed(tokens), output.embed(tokens)
    result.embedding = relative_difference(text, own)

    def on_same_input(expected: Tensor, found: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Results of source and output on the probe, then on the source's text."""
        for rows in (slice(N_PROBES), slice(N_PROBES, n_same)):
            yield expected[rows], found[rows]

    given = expected = torch.cat([probe, text])
    for layer, model, weights in _layers(source, output):
        run = partial(model.layer, weights, layer)
        if model is source:
            given = torch.cat([probe, expected[N_PROBES:]])
            expected = source_batch.through(run, given)
        else:
            found = output_batch.through(run, torch.cat([given[:n_same], own]))
            own = found[n_same:]
            (expected_probe, found_probe), local = on_same_input(expected, found)
            result.probe.append(relative_difference(expected_probe - probe, found_probe - probe))
            result.local.append(mean_relative_difference(*local))
            result.divergence.append(relative_difference(expected[N_PROBES:], own))
            progress()

    given = torch.cat([probe, expected[N_PROBES:]])
    expected, found = source.logits(given), output.logits(torch.cat([given[:n_same], own]))
    result.head = _max([relative_difference(*pair) for pair in on_same_input(expected, found)])
    result.max_head_difference = (expected[:n_same].double() - found[:n_same].double()).abs().max().item()
    _compare_logits(result, expected[N_PROBES:], found[n_same:], limit)
    return result


@dataclass(frozen=True)
class _Batch:
    """Sequences concatenated into one pass; tokens attend only to tokens of the same sequence."""

    positions: Tensor
    visible: Tensor

    @classmethod
    def of(cls, device: torch.device, *positions: Tensor) -> _Batch:
        """Sequences at these positions, each with causal attention."""
        sequence = torch.arange(len(positions)).repeat_interleave(torch.tensor([len(p) for p in positions]))
        joined = torch.cat(positions)
        visible = (sequence[None, :] == sequence[:, None]) & (joined[None, :] <= joined[:, None])
        return cls(joined.to(device), visible.to(device))

    def through(self, layer: Callable[[Tensor, Tensor, Tensor], Tensor], hidden: Tensor) -> Tensor:
        """The layer's output; non-finite elements become NaN and do not spread to other sequences.

        Masked attention alone would spread them, because 0 times NaN is NaN.
        """
        nonfinite = ~hidden.isfinite()
        result = layer(hidden.masked_fill(nonfinite, 0), self.positions, self.visible)
        return result.masked_fill(nonfinite, math.nan)


def _layers(*models: StreamedModel) -> Iterator[tuple[int, StreamedModel, Any]]:
    """Number, model and weights of each layer of each model in turn; the next one is read meanwhile."""
    order = [(layer, model) for layer in range(models[0].n_layers) for model in models]
    loads = (partial(model.load, layer) for layer, model in order)
    for (layer, model), weights in zip(order, one_ahead(loads), strict=True):
        yield layer, model, weights


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """||found - expected|| / ||expected||; NaN if either contains NaN."""
    expected, found = expected.double(), found.double()
    distance, size = (found - expected).norm().item(), expected.norm().item()
    return 0.0 if distance == 0 else distance / size if size else math.inf


def mean_relative_difference(expected: Tensor, found: Tensor) -> float:
    """Root mean square of the rows' relative differences: a few rows are much larger than the others."""
    expected, found = expected.double(), found.double()
    sizes = expected.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return float(((found - expected).norm(dim=1) / sizes).square().mean().sqrt())


def _compare_logits(result: Comparison, expected: Tensor, found: Tensor, limit: Limits) -> None:
    """Compare logits token by token, in float64 so that the comparison does not round."""
    result.spread = expected.float().std(dim=1).mean().item()
    margin = 2 * limit.max_logit_difference(result.spread)
    differences = []
    for one, other in zip(expected.double(), found.double(), strict=True):
        p, q = one.log_softmax(0), other.log_softmax(0)
        result.kl.append((p.exp() * (p - q)).sum().item())
        differences.append((one - other).abs().max().item())
        best = one.topk(min(2, len(one)))
        result.top1.append((int(best.indices[0]), int(other.argmax())))
        agrees = result.top1[-1][0] == result.top1[-1][1]
        result.agreements += agrees
        if (best.values[0] - best.values[-1]).item() > margin:
            result.decided += 1
            result.overturned += not agrees
    result.max_logit_difference = _max(differences)


def _max(values: list[float]) -> float:
    """The max; NaN if any value is NaN."""
    return next((value for value in values if math.isnan(value)), max(values, default=0.0))


_SHAPES = ("dim", "n_layers", "vocab_size")
"""Hyper-parameters that must be equal for hidden states and logits to be comparable."""


def compare_models(
    source: Checkpoint,
    output: Checkpoint,
    tokens: Tensor,
    device: torch.device,
    compute: Dtype,
    progress: Callable[[], None] = lambda: None,
) -> tuple[list[Finding], dict[str, Any]]:
    """Run two checkpoints and report where they differ by more than rounding.

    Args:
        source: the checkpoint to compare with.
        output: the checkpoint that is verified.
        tokens: ids of a text, integer [tokens].
        device: where to compute.
        compute: dtype of the arithmetic.
        progress: called after each layer.

    Returns:
        Findings and measures; no measures if the shapes differ.

    Raises:
        InputError: a file is damaged or has changed.
        OutputError: a file could not be read.
    """
    differing = config_differences(source, output)
    if any(getattr(source.config, name) != getattr(output.config, name) for name in _SHAPES):
        return differing, {}
    limit = limits(source.config, source.dtype, output.dtype, compute)
    dtype = getattr(torch, compute.name)
    with SourceFiles() as files:
        source_model, output_model = (open_model(each, files, device, dtype) for each in (source, output))
        result = compare(source_model, output_model, source.config, tokens, limit, progress)
    by_part = list(_findings(result, limit, output))
    findings = list(_end_to_end(result, limit, amplified=not by_part))
    if by_part:
        hint = _cause(differing, result, limit)
        findings = [*differing, *(replace(finding, hint=hint) for finding in by_part), *findings]
    return findings, _measures(result, limit, tokens, source.config)


def _findings(result: Comparison, limit: Limits, output: Checkpoint) -> Iterator[Finding]:
    embedding, layer_name, head = (
        ("tok_embeddings.weight", "layers.{}", "output.weight")
        if isinstance(output, MetaCheckpoint)
        else ("model.embed_tokens.weight", "model.layers.{}", "lm_head.weight")
    )

    if not result.embedding <= limit.embedding:
        yield _beyond("Embeddings differ", result.embedding, limit.embedding, tensor=embedding)
    by_layer = _by_layer(result)
    wrong = _wrong_layers(result, limit)
    if wrong:
        more = f" and {len(wrong) - 1} more of {len(by_layer)} layers" if len(wrong) > 1 else ""
        what = f"Outputs diverge at layer {wrong[0]}{more}"
        yield _beyond(what, by_layer[wrong[0]], limit.probe, tensor=layer_name.format(wrong[0]))
    if not result.head <= limit.probe:
        what = "Final norm or LM head differs on the same input"
        yield _beyond(what, result.head, limit.probe, tensor=head)
    elif not result.max_head_difference <= limit.max_head_difference(result.spread):
        most, what = limit.max_head_difference(result.spread), "LM head differs on the same input"
        yield _beyond(what, result.max_head_difference, most, "max logit difference", tensor=head)


def _beyond(
    what: str, found: float, limit: float, measure: str = "relative error", *, tensor: str | None = None
) -> Finding:
    """A measure that exceeds its limit."""
    return Finding(
        "LOGITS_DIFFER",
        f"{what}: {measure} {found:.2g}, limit {limit:.2g}.",
        tensor=tensor,
        expected=f"at most {limit:.2g}",
        found=f"{found:.2g}",
    )


def _by_layer(result: Comparison) -> list[float]:
    """The larger of each layer's two differences on the same input."""
    return [_max(list(both)) for both in zip(result.local, result.probe, strict=True)]


def _wrong_layers(result: Comparison, limit: Limits) -> list[int]:
    return [layer for layer, value in enumerate(_by_layer(result)) if not value <= limit.probe]


def _end_to_end(result: Comparison, limit: Limits, *, amplified: bool) -> Iterator[Finding]:
    """Where the text's logits differ by more than rounding that no layer amplifies.

    Some models amplify rounding, above all untrained ones.  With ``amplified`` every part matches on the same
    input, so that rounding alone explains the difference.
    """
    findings = []
    max_kl, max_difference = _max(result.kl), result.max_logit_difference
    if not max_kl <= (most := limit.max_kl(result.spread)):
        findings.append(_beyond("Next-token probabilities differ", max_kl, most, "max KL divergence in nats"))
    if not max_difference <= (most := limit.max_logit_difference(result.spread)):
        findings.append(_beyond("Logits differ", max_difference, most, "max difference"))
    if result.overturned:
        message = f"{result.overturned} of {result.decided} confident next-token predictions differ."
        findings.append(Finding("LOGITS_DIFFER", message, expected="0", found=str(result.overturned)))
    for finding in findings:
        yield replace(finding, hint=_AMPLIFIED, severity="warning") if amplified else finding


_AMPLIFIED = (
    "Every layer matches on the same input. The difference is rounding amplified from layer to layer."
)


def _cause(differing: list[Finding], result: Comparison, limit: Limits) -> str:
    """The likely reason why parts differ: a hyper-parameter, or else a tensor."""
    if names := [finding.message.split()[0] for finding in differing if not finding.is_warning]:
        return f"{', '.join(names)} differ{'s' * (len(names) == 1)} from the source."
    if len(_wrong_layers(result, limit)) == len(result.probe):
        return "Every layer differs. Check that the Q/K weights are permuted as this format requires."
    return "Hyper-parameters match, so tensors are wrong or misplaced. Run --check weights to identify them."


def _measures(result: Comparison, limit: Limits, tokens: Tensor, config: LlamaConfig) -> dict[str, Any]:
    return {
        "layers": [
            {"layer": layer, "divergence": divergence, "local": local, "probe": probe}
            for layer, (divergence, local, probe) in enumerate(
                zip(result.divergence, result.local, result.probe, strict=True)
            )
        ],
        "embedding": result.embedding,
        "head": result.head,
        "max_head_difference": result.max_head_difference,
        "positions": spread_positions(len(tokens), config.context_length).tolist(),
        "kl": result.kl,
        "predictions": [
            {"token": token, "source_top1": source, "output_top1": output}
            for token, (source, output) in zip(tokens.tolist(), result.top1, strict=True)
        ],
        "max_kl": _max(result.kl),
        "mean_kl": sum(result.kl) / len(result.kl),
        "top1_agreement": result.agreements / len(result.kl),
        "overturned": result.overturned,
        "max_logit_difference": result.max_logit_difference,
        "logit_spread": result.spread,
        "threshold": limit.to_json(result.spread),
    }
