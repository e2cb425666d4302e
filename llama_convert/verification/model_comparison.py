"""The *logits* level: both sides run, each by its owner's definition, and what they say is compared.

A *text* of tokens at positions spread out to the context length runs through each side end to end; that shows
what the model as a whole would say.  Each layer, and the LM head, is then held against the other side's by
itself: the output's are given what the source's are given, so that the wrong one is named, none hides behind
another, and rounding does not add up.  What they are given is the beginning of the source's text, and a
*probe*: the same small random vectors for every layer, at positions spread likewise.  The probe is about as
small as the square root of norm_eps, so that a wrong eps shows, whatever the model's own scale.
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
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.dtypes import Dtype
from llama_convert.findings import Finding, severity_of
from llama_convert.llama.config import LlamaConfig
from llama_convert.verification.inputs import Checkpoint
from llama_convert.verification.streamed_model import Reading, one_ahead, open_reading
from llama_convert.verification.structure import config_differences
from llama_convert.verification.thresholds import Limits, limits

N_PROBES = 8
N_LOCAL = 16
"""Tokens of the source's text that each of the output's layers is given besides its own."""


@dataclass
class Comparison:
    """What two readings make of the same tokens."""

    embedding: float = 0.0
    divergence: list[float] = field(default_factory=list)
    """Relative difference of the text's hidden states after each layer, each side's going on from its own."""
    local: list[float] = field(default_factory=list)
    """Relative difference of what each layer makes of the source's text."""
    probe: list[float] = field(default_factory=list)
    """Relative difference of what each layer adds to the probe."""
    head: float = 0.0
    """Relative difference of the logits that the LM head makes of the source's text, or of the probe."""
    max_head_difference: float = 0.0
    """The largest difference of any of those."""
    kl: list[float] = field(default_factory=list)
    """KL(source || output) of each token of the text, in nats."""
    agreements: int = 0
    """Tokens of the text whose likeliest successor is the same."""
    decided: int = 0
    """Tokens whose likeliest successor leads by more than rounding can turn."""
    overturned: int = 0
    """Of those, the ones where the output has another."""
    max_logit_difference: float = 0.0
    top1: list[tuple[int, int]] = field(default_factory=list)
    """Ids of the most probable successor of each token of the text, by source and output."""
    spread: float = 0.0
    """Standard deviation of the source's logits over the vocabulary."""


def spread_positions(n: int, context_length: int) -> Tensor:
    """Positions from 0 to the end of the context: int64 [n], dense at first, then ever wider apart.

    RoPE is relative, so that near and far pairs of tokens are both among them.
    """
    last = max(context_length, n) - 1
    if n < 2:
        return torch.zeros(n, dtype=torch.int64)
    curve = [round(last * (i / (n - 1)) ** 4) for i in range(n)]
    for i in range(1, n):  # no two alike
        curve[i] = max(curve[i], curve[i - 1] + 1)
    excess = curve[-1] - last
    return torch.tensor([min(p, last - (n - 1 - i)) if excess > 0 else p for i, p in enumerate(curve)])


@torch.no_grad()
def compare(
    source: Reading,
    output: Reading,
    config: LlamaConfig,
    tokens: Tensor,
    limit: Limits,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Run both readings in step.

    Args:
        source: what is right.
        output: what is held against it.
        config: the source's.
        tokens: ids that both vocabularies have, integer [tokens].
        limit: tells which differences rounding can make.
        progress: called after each layer.
    """
    device, dtype = source.device, source.dtype
    tokens = tokens.to(device)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(N_PROBES, config.dim, generator=generator) * math.sqrt(config.norm_eps)
    probe = probe.to(device, dtype)
    n_same = N_PROBES + min(N_LOCAL, len(tokens))
    at_text, at_probe = (spread_positions(n, config.context_length) for n in (len(tokens), N_PROBES))
    # The source runs the probe and its text; the output the probe, the beginning of that text, and its own.
    lines = _Lines.of(device, at_probe, at_text), _Lines.of(device, at_probe, at_text[:N_LOCAL], at_text)
    result = Comparison()
    text, own = source.embed(tokens), output.embed(tokens)
    result.embedding = relative_difference(text, own)

    def same(expected: Tensor, found: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What both sides made of the same input: of the probe, of the text."""
        for rows in (slice(N_PROBES), slice(N_PROBES, n_same)):
            yield expected[rows], found[rows]

    given = expected = torch.cat([probe, text])
    for layer, side, weights in _layers(source, output):
        if side == 0:
            given = torch.cat([probe, expected[N_PROBES:]])
            expected = lines[0].through(partial(source.layer, weights, layer), given)
        else:
            found = lines[1].through(partial(output.layer, weights, layer), torch.cat([given[:n_same], own]))
            own = found[n_same:]
            (ours, theirs), local = same(expected, found)
            result.probe.append(relative_difference(ours - probe, theirs - probe))
            result.local.append(mean_relative_difference(*local))
            result.divergence.append(relative_difference(expected[N_PROBES:], own))
            progress()

    given = torch.cat([probe, expected[N_PROBES:]])
    expected, found = source.logits(given), output.logits(torch.cat([given[:n_same], own]))
    result.head = _largest([relative_difference(*both) for both in same(expected, found)])
    result.max_head_difference = (expected[:n_same].double() - found[:n_same].double()).abs().max().item()
    _compare_logits(result, expected[N_PROBES:], found[n_same:], limit)
    return result


@dataclass(frozen=True)
class _Lines:
    """Sequences that stand one after the other in one pass, none seeing the others'."""

    positions: Tensor
    visible: Tensor

    @classmethod
    def of(cls, device: torch.device, *positions: Tensor) -> _Lines:
        """Causal within each of them, by their positions."""
        sequence = torch.arange(len(positions)).repeat_interleave(torch.tensor([len(p) for p in positions]))
        every = torch.cat(positions)
        visible = (sequence[None, :] == sequence[:, None]) & (every[None, :] <= every[:, None])
        return cls(every.to(device), visible.to(device))

    def through(self, layer: Callable[[Tensor, Tensor, Tensor], Tensor], hidden: Tensor) -> Tensor:
        """A layer; what is no number stays none, and reaches no other sequence: even 0 times NaN is NaN."""
        lost = ~hidden.isfinite()
        return layer(hidden.masked_fill(lost, 0), self.positions, self.visible).masked_fill(lost, math.nan)


def _layers(*readings: Reading) -> Iterator[tuple[int, int, Any]]:
    """Layer, side and weights: each layer of each side in turn, the next being read meanwhile."""
    order = [(layer, side) for layer in range(readings[0].n_layers) for side in range(len(readings))]
    loads = (partial(readings[side].load, layer) for layer, side in order)
    for (layer, side), weights in zip(order, one_ahead(loads), strict=True):
        yield layer, side, weights


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """||found - expected|| / ||expected||; not a number where either has none."""
    expected, found = expected.double(), found.double()
    distance, size = (found - expected).norm().item(), expected.norm().item()
    return 0.0 if distance == 0 else distance / size if size else math.inf


def mean_relative_difference(expected: Tensor, found: Tensor) -> float:
    """Of each row by itself, for a few are far larger than the others; the root mean square of them."""
    expected, found = expected.double(), found.double()
    sizes = expected.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return float(((found - expected).norm(dim=1) / sizes).square().mean().sqrt())


def _compare_logits(result: Comparison, expected: Tensor, found: Tensor, limit: Limits) -> None:
    """Token by token in float64, so that differences of rounding are not those of the comparison."""
    result.spread = expected.float().std(dim=1).mean().item()
    turnable = 2 * limit.max_logit_difference(result.spread)
    differences = []
    for one, other in zip(expected.double(), found.double(), strict=True):
        p, q = one.log_softmax(0), other.log_softmax(0)
        result.kl.append((p.exp() * (p - q)).sum().item())
        differences.append((one - other).abs().max().item())
        best = one.topk(min(2, len(one)))
        result.top1.append((int(best.indices[0]), int(other.argmax())))
        agrees = result.top1[-1][0] == result.top1[-1][1]
        result.agreements += agrees
        if (best.values[0] - best.values[-1]).item() > turnable:
            result.decided += 1
            result.overturned += not agrees
    result.max_logit_difference = _largest(differences)


def _largest(values: list[float]) -> float:
    """The largest; not a number if any of them is none."""
    return next((value for value in values if math.isnan(value)), max(values, default=0.0))


_SHAPING = ("dim", "n_layers", "vocab_size")
"""What both sides must have alike for their hidden states and logits to be compared at all."""


def check_logits(
    source: Checkpoint,
    output: Checkpoint,
    tokens: Tensor,
    device: torch.device,
    compute: Dtype,
    progress: Callable[[], None] = lambda: None,
) -> tuple[list[Finding], dict[str, Any]]:
    """Run both checkpoints and say where they differ by more than rounding.

    Args:
        source: what is right.
        output: what is held against it.
        tokens: ids of a text, integer [tokens].
        device: where to compute.
        compute: the dtype of the arithmetic.
        progress: called after each layer.

    Returns:
        What is wrong, and the measures.

    Raises:
        InputError: a file is damaged, or not what it was.
        OutputError: a file could not be read.
    """
    differing = config_differences(source, output)
    if any(getattr(source.config, name) != getattr(output.config, name) for name in _SHAPING):
        return differing, {}
    limit = limits(source.config, source.dtype, output.dtype, compute)
    dtype = getattr(torch, compute.name)
    with SourceFiles() as files:
        right, other = (open_reading(checkpoint, files, device, dtype) for checkpoint in (source, output))
        result = compare(right, other, source.config, tokens, limit, progress)
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

    def beyond(name: str, what: str, found: float, most: float) -> Finding:
        message = f"{what}: relative difference {found:.2e}, rounding explains {most:.1e}"
        return Finding(
            "LOGITS_DIFFER", message, tensor=name, expected=f"at most {most:.1e}", found=f"{found:.2e}"
        )

    if not result.embedding <= limit.embedding:
        yield beyond(embedding, "rows of the embedding are others", result.embedding, limit.embedding)
    by_layer = _by_layer(result)
    wrong = _wrong_layers(result, limit)
    if wrong:
        more = f" (and so do {len(wrong) - 1} more of {len(by_layer)} layers)" if len(wrong) > 1 else ""
        what = f"layer {wrong[0]} is the first to compute something else{more}"
        yield beyond(layer_name.format(wrong[0]), what, by_layer[wrong[0]], limit.probe)
    if not result.head <= limit.probe:
        what = "the final norm or the LM head makes something else of the same input"
        yield beyond(head, what, result.head, limit.probe)
    elif not result.max_head_difference <= limit.max_head_difference(result.spread):
        most = limit.max_head_difference(result.spread)
        yield Finding(
            "LOGITS_DIFFER",
            f"the LM head's logits of the same input differ by up to {result.max_head_difference:.2e}",
            tensor=head,
            expected=f"at most {most:.1e}",
            found=f"{result.max_head_difference:.2e}",
        )


def _by_layer(result: Comparison) -> list[float]:
    """The larger of a layer's two differences on the same input."""
    return [_largest(list(both)) for both in zip(result.local, result.probe, strict=True)]


def _wrong_layers(result: Comparison, limit: Limits) -> list[int]:
    return [layer for layer, value in enumerate(_by_layer(result)) if not value <= limit.probe]


def _end_to_end(result: Comparison, limit: Limits, *, amplified: bool) -> Iterator[Finding]:
    """Where the text's logits differ by more than rounding does if nothing amplifies it.

    Some models amplify it, random ones above all.  With ``amplified`` every part has been found to compute
    the same of the same input, so that nothing but rounding is left to explain the difference.
    """
    hint = "each layer by itself agrees: rounding, amplified from layer to layer" if amplified else None

    def beyond(message: str, expected: str, found: str) -> Finding:
        return Finding(
            "LOGITS_DIFFER",
            message,
            expected=expected,
            found=found,
            hint=hint,
            severity=severity_of(warning=amplified),
        )

    max_kl = _largest(result.kl)
    if not max_kl <= limit.max_kl(result.spread):
        message = f"the next token's probabilities differ: KL divergence up to {max_kl:.2e} nats"
        yield beyond(message, f"at most {limit.max_kl(result.spread):.1e}", f"{max_kl:.2e}")
    most = limit.max_logit_difference(result.spread)
    if not result.max_logit_difference <= most:
        message = f"logits differ by up to {result.max_logit_difference:.2e}"
        yield beyond(message, f"at most {most:.1e}", f"{result.max_logit_difference:.2e}")
    if result.overturned:
        message = f"{result.overturned} of {result.decided} clear choices of the next token are others"
        yield beyond(message, "0", str(result.overturned))


def _cause(differing: list[Finding], result: Comparison, limit: Limits) -> str:
    """What makes the parts differ: a hyper-parameter, or else a tensor."""
    if names := [finding.message.split()[0] for finding in differing if not finding.is_warning]:
        return f"{', '.join(names)} differ{'s' * (len(names) == 1)}"
    if len(_wrong_layers(result, limit)) == len(result.probe):
        return "every layer is wrong: are the Q/K rows in the order of this layout?"
    return "the hyper-parameters agree, so tensors are wrong or misplaced: --level weights names them"


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
        "max_kl": _largest(result.kl),
        "mean_kl": sum(result.kl) / len(result.kl),
        "top1_agreement": result.agreements / len(result.kl),
        "overturned": result.overturned,
        "max_logit_difference": result.max_logit_difference,
        "logit_spread": result.spread,
        "threshold": limit.to_json(result.spread),
    }
