"""The *logits* level: both sides run, each by its owner's definition, and what they say is compared.

Two sequences go through the layers together.  A *text* of tokens at positions spread out to the context
length runs end to end.  A *probe* is put into each layer, and into the LM head, anew: the same small random
vectors on both sides, at positions spread likewise.  The text shows what the model as a whole would say; the
probe tells each layer by itself, so that the wrong one is named and none hides behind another.  The probe is
about as small as the square root of norm_eps, so that a wrong eps shows, whatever the model's own scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llama_convert.checkpoints.gather import SourceFiles
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.dtypes import Dtype
from llama_convert.llama.config import LlamaConfig
from llama_convert.verify.context import config_file
from llama_convert.verify.reading import Reading, one_ahead, open_reading
from llama_convert.verify.report import Finding
from llama_convert.verify.sides import Checkpoint
from llama_convert.verify.structure import config_differences
from llama_convert.verify.thresholds import Limits, limits

N_PROBES = 8


@dataclass
class Comparison:
    """What two readings make of the same tokens."""

    embedding: float = 0.0
    divergence: list[float] = field(default_factory=list)
    """Relative difference of the text's hidden states after each layer."""
    probe: list[float] = field(default_factory=list)
    """Relative difference of what each layer adds to the probe."""
    head: float = 0.0
    """Relative difference of the logits of the probe."""
    kl: list[float] = field(default_factory=list)
    """KL(source || output) of each token of the text, in nats."""
    agreements: int = 0
    """Tokens of the text whose likeliest successor is the same."""
    decided: int = 0
    """Tokens whose likeliest successor leads by more than rounding can turn."""
    overturned: int = 0
    """Of those, the ones where the output has another."""
    max_logit_difference: float = 0.0
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
    positions = torch.cat([spread_positions(n, config.context_length) for n in (len(tokens), N_PROBES)]).to(
        device
    )
    visible = _two_sequences(positions, len(tokens))
    result = Comparison()
    texts = [reading.embed(tokens) for reading in (source, output)]
    result.embedding = relative_difference(*texts)

    for layer, side, weights in _layers(source, output):
        hidden = torch.cat([texts[side], probe])
        reading = (source, output)[side]
        hidden = reading.layer(weights, layer, hidden, positions, visible)
        del weights  # before the one after the next is read
        texts[side], added = hidden[: len(tokens)], hidden[len(tokens) :] - probe
        if side == 0:
            expected = added
        else:
            result.divergence.append(relative_difference(*texts))
            result.probe.append(relative_difference(expected, added))
            progress()

    logits = [
        reading.logits(torch.cat([text, probe]))
        for reading, text in zip((source, output), texts, strict=True)
    ]
    result.head = relative_difference(logits[0][len(tokens) :], logits[1][len(tokens) :])
    _compare_logits(result, logits[0][: len(tokens)], logits[1][: len(tokens)], limit)
    return result


def _two_sequences(positions: Tensor, n_first: int) -> Tensor:
    """Who sees whom: causal within the first `n_first` tokens, causal within the rest, no one across."""
    first = torch.arange(len(positions), device=positions.device) < n_first
    same = first[None, :] == first[:, None]
    return same & (positions[None, :] <= positions[:, None])


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
        agrees = bool(other.argmax() == best.indices[0])
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
    differing = config_differences(source.config, output.config, config_file(output))
    if any(getattr(source.config, name) != getattr(output.config, name) for name in _SHAPING):
        return differing, {}
    limit = limits(source.config, source.dtype, output.dtype, compute)
    dtype = getattr(torch, compute.name)
    with SourceFiles() as files:
        right, other = (open_reading(checkpoint, files, device, dtype) for checkpoint in (source, output))
        result = compare(right, other, source.config, tokens, limit, progress)
    findings = list(_findings(result, limit, output))
    if findings:
        findings += differing or _advice(result, limit)
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
    wrong = [layer for layer, value in enumerate(result.probe) if not value <= limit.probe]
    if wrong:
        more = f" (and so do {len(wrong) - 1} more of {len(result.probe)} layers)" if len(wrong) > 1 else ""
        what = f"layer {wrong[0]} is the first to compute something else{more}"
        yield beyond(layer_name.format(wrong[0]), what, result.probe[wrong[0]], limit.probe)
    if not result.head <= limit.probe:
        what = "the final norm or the LM head makes something else of the same input"
        yield beyond(head, what, result.head, limit.probe)
    max_kl = _largest(result.kl)
    if not max_kl <= limit.max_kl(result.spread):
        yield Finding(
            "LOGITS_DIFFER",
            f"the next token's probabilities differ: KL divergence up to {max_kl:.2e} nats",
            expected=f"at most {limit.max_kl(result.spread):.1e}",
            found=f"{max_kl:.2e}",
        )
    if not result.max_logit_difference <= limit.max_logit_difference(result.spread):
        yield Finding(
            "LOGITS_DIFFER",
            f"logits differ by up to {result.max_logit_difference:.2e}",
            expected=f"at most {limit.max_logit_difference(result.spread):.1e}",
            found=f"{result.max_logit_difference:.2e}",
        )
    if result.overturned:
        message = f"{result.overturned} of {result.decided} clear choices of the next token are others"
        yield Finding("LOGITS_DIFFER", message, expected="0", found=str(result.overturned))


def _advice(result: Comparison, limit: Limits) -> list[Finding]:
    """What to think where the hyper-parameters agree."""
    wrong = sum(not value <= limit.probe for value in result.probe)
    if wrong == len(result.probe):
        hint = "every layer is wrong: are the Q/K rows in the order of this layout?"
    elif wrong:
        hint = "the hyper-parameters agree, so tensors are wrong or misplaced: --level weights names them"
    else:
        return []
    return [Finding("LOGITS_DIFFER", "the hyper-parameters of both sides agree", hint=hint, warning=True)]


def _measures(result: Comparison, limit: Limits, tokens: Tensor, config: LlamaConfig) -> dict[str, Any]:
    return {
        "layers": [
            {"layer": layer, "divergence": divergence, "probe": probe}
            for layer, (divergence, probe) in enumerate(zip(result.divergence, result.probe, strict=True))
        ],
        "embedding": result.embedding,
        "head": result.head,
        "positions": spread_positions(len(tokens), config.context_length).tolist(),
        "kl": result.kl,
        "max_kl": _largest(result.kl),
        "mean_kl": sum(result.kl) / len(result.kl),
        "top1_agreement": result.agreements / len(result.kl),
        "overturned": result.overturned,
        "max_logit_difference": result.max_logit_difference,
        "logit_spread": result.spread,
        "threshold": limit.to_json(result.spread),
    }
