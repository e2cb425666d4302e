"""How far two right readings of one model may differ: limits that follow from the dtypes, with their reasons.

Let u be the unit roundoff of a dtype (2^-24 for float32, 2^-11 for float16, 2^-8 for bfloat16: half the
distance from 1 to the next number).  Two readings of the same numbers differ by three things only:

* each result is rounded to the dtype of the arithmetic: a few u(compute);
* sums are taken in another order, always in float32: u(float32) * sqrt(n) for n terms, signs being random;
* the output's weights were rounded once to its dtype, u(cast) each, if that cannot hold the source's.

A layer is a chain of four matrix products with a softmax between, so each contributes a few times; the
factors below are 8 to 16, and a correct checkpoint stays ten times under the limit.  What a wrong
hyper-parameter or a misplaced tensor does is orders above it.
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
    """The largest differences that rounding explains."""

    embedding: float
    """Relative difference of the rows taken from the embedding."""
    probe: float
    """Relative difference of what one layer, or the LM head, makes of the same input."""
    divergence: float
    """Relative difference of the hidden states after all layers, and so of the logits, if no layer amplifies
    it."""
    reason: str

    def max_kl(self, spread: float) -> float:
        """The largest Kullback-Leibler divergence per token, in nats.

        To second order KL(p || q) is half the variance, under p, of the error of the logits.  Their error is
        at most `divergence` times their spread (standard deviation over the vocabulary) in a direction of no
        preference; words of high probability may see four times as much.
        """
        return 0.5 * (4 * self.divergence * spread) ** 2 + 1e-9

    def max_logit_difference(self, spread: float) -> float:
        """The largest error of any logit: eight standard deviations, for some 10^7 of them."""
        return 8 * self.divergence * spread

    def max_head_difference(self, spread: float) -> float:
        """The same, where the LM head is given the same input."""
        return 8 * self.probe * spread

    def to_json(self, spread: float) -> dict[str, Any]:
        """As plain data, for logits of this spread."""
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
    """The limits for weights stored in ``source`` and ``output``, and arithmetic done in ``compute``."""
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
        # Errors of layers add up like a random walk; that they are also amplified is allowed for by 4.
        divergence=4 * probe * math.sqrt(config.n_layers),
        reason=f"{', '.join(parts)}; a layer may differ by {probe:.1e}, {config.n_layers} layers by four "
        f"times the square root of {config.n_layers} as much",
    )
