"""Dtype casts of blocks, with counts of the values that overflow or underflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_convert.checkpoints.row_reader import as_float32
from llama_convert.checkpoints.value_scan import INFINITY, Bytes, abs_bits
from llama_convert.dtypes import Dtype
from llama_convert.rounding import convert_dtype


@dataclass(frozen=True)
class CastCounts:
    """Counts of the values that a cast changed beyond rounding."""

    elements: int = 0
    overflowed: int = 0
    """Finite values that became infinite."""
    underflowed: int = 0
    """Nonzero values that became zero."""
    max_overflowed: float = 0.0
    """Maximum finite magnitude among the values that overflowed."""

    def __add__(self, other: CastCounts) -> CastCounts:
        return CastCounts(
            self.elements + other.elements,
            self.overflowed + other.overflowed,
            self.underflowed + other.underflowed,
            max(self.max_overflowed, other.max_overflowed),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        return {
            "elements": self.elements,
            "overflowed": self.overflowed,
            "vanished": self.underflowed,
            "largest": self.max_overflowed,
        }


def cast_block(block: Bytes, source: Dtype, target: Dtype) -> tuple[Bytes, CastCounts]:
    """Return a block cast to another dtype, rounded to nearest even, and the counts of changed values.

    Args:
        block: contiguous bytes of elements of dtype ``source``.
        source: float32, float16 or bfloat16.
        target: likewise.

    Returns:
        Bytes [n * target.itemsize], and the counts.
    """
    cast, unusual = convert_dtype(block, source, target)
    elements = block.size // source.itemsize
    if not len(unusual):
        return cast, CastCounts(elements)
    before, after = abs_bits(block.reshape(-1), source, unusual), abs_bits(cast, target, unusual)
    overflowed = before[(after == INFINITY[target]) & (before < INFINITY[source])]
    maximum = float(as_float32(overflowed.max(keepdims=True), source)[0]) if len(overflowed) else 0.0
    underflowed = int(np.count_nonzero((before != 0) & (after == 0)))
    return cast, CastCounts(elements, len(overflowed), underflowed, maximum)
