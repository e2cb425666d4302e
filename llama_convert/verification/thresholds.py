"""Limits of the differences between two correct forward passes, derived from the dtypes.

Let u be the unit roundoff of a dtype (2^-24 for float32, 2^-11 for float16, 2^-8 for bfloat16: half the
distance from 1 to the next number).  Two forward passes with the same weights differ for three reasons only:

* Each result is rounded to the dtype of the arithmetic: a few u(compute).
* Sums are added in another order, always in float32: u(float32) * sqrt(n) for n terms with random signs.
* The output's weights were rounded once if they were cast: u(cast) each.

A layer is a chain of four matrix products with a softmax between, so each reason applies a few times.  The
factors below are 8 to 16.  A correct checkpoint stays ten times below the limit; a wrong hyper-parameter or a
misplaced tensor is orders of magnitude above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype
from llama_convert.llama.config import LlamaConfig

UNIT_ROUNDOFF = {FLOAT32: 2.0**-24, FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}


@dataclass(frozen=True)
class Limits:
    """The max differences that rounding explains."""

    embedding: float
    """Relative difference of embedded tokens."""
    probe: float
    """Relative difference of the outputs of one layer, or of the LM head, on the same input."""
    divergence: float
    """Relative difference of the last hidden states, and of the logits, if no layer amplifies it."""
    reason: str
    """How the limits were derived."""

    def max_kl(self, spread: float) -> float:
        """The max Kullback-Leibler divergence per token, in nats.

        To second order KL(p || q) is half the variance, under p, of the error of the logits.  That error is
        at most `divergence` times their spread (standard deviation over the vocabulary) in a random
        direction; for tokens of high probability it may be four times as large.
        """
        return 0.5 * (4 * self.divergence * spread) ** 2 + 1e-9

    def max_logit_difference(self, spread: float) -> float:
        """The max error of any logit: eight standard deviations, for some 10^7 logits."""
        return 8 * self.divergence * spread

    def max_head_difference(self, spread: float) -> float:
        """The max error of any logit if both LM heads get the same input."""
        return 8 * self.probe * spread

    def to_json(self, spread: float) -> dict[str, Any]:
        """As plain data, for logits with this standard deviation."""
        return {
            "embedding": self.embedding,
            "probe": self.probe,
            "divergence": self.divergence,
            "max_kl": self.max_kl(spread),
            "max_logit_difference": self.max_logit_difference(spread),
            "max_head_difference": self.max_head_difference(spread),
            "reason": self.reason,
        }


def limits(config: LlamaConfig, source: Dtype, output: Dtype, compute: Dtype) -> Limits:
    """The limits for weights stored in dtypes ``source`` and ``output``, and arithmetic in ``compute``."""
    exact = output in (source, FLOAT32)
    cast = 0.0 if exact else UNIT_ROUNDOFF[output]
    terms = max(config.dim, config.ffn_dim)
    rounding = 16 * UNIT_ROUNDOFF[compute] if compute != FLOAT32 else 0.0
    probe = rounding + 8 * UNIT_ROUNDOFF[FLOAT32] * math.sqrt(terms) + 8 * cast + 2.0**-18
    parts = [f"sums of {terms} terms in float32"]
    parts += [f"arithmetic in {compute}"] if rounding else []
    parts += [f"weights rounded from {source} to {output}"] if cast else []
    return Limits(
        embedding=2 * cast + (2 * UNIT_ROUNDOFF[compute] if rounding else 0.0),
        probe=probe,
        # Errors of layers add up like a random walk; the factor of 4 allows for amplification.
        divergence=4 * probe * math.sqrt(config.n_layers),
        reason=f"{', '.join(parts)}; a layer may differ by {probe:.1e}, {config.n_layers} layers by four "
        f"times the square root of {config.n_layers} as much",
    )
