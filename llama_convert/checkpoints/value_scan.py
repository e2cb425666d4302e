"""Scan of weights for NaN, infinity and zeros by their bits, without floating-point arithmetic.

Without the sign bit, IEEE 754 numbers are ordered like their bits as unsigned integers, with NaN above
infinity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype

Bytes = npt.NDArray[np.uint8]

INFINITY = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80, FLOAT32: 0x7F800000}
"""Bits of infinity."""
_UNSIGNED = {2: np.uint16, 4: np.uint32}
_SIGNED = {2: np.int16, 4: np.int32}


def abs_bits(
    block: Bytes, dtype: Dtype, indices: npt.NDArray[np.intp] | slice = slice(None)
) -> npt.NDArray[Any]:
    """Bits of the absolute values of a contiguous block, or of some of them, as uint16 or uint32."""
    code = _UNSIGNED[dtype.itemsize]
    mask = code((1 << (8 * dtype.itemsize - 1)) - 1)
    bits: npt.NDArray[Any] = np.bitwise_and(block.view(code)[indices], mask)
    return bits


def max_abs_bits(block: Bytes, dtype: Dtype) -> int:
    """Maximum of `abs_bits`, without allocating an array.

    The maximum as signed integers is that of the positive values, the maximum as unsigned integers that of
    the negative values.
    """
    sign = 1 << (8 * dtype.itemsize - 1)
    positive = int(block.view(_SIGNED[dtype.itemsize]).max())
    negative = int(block.view(_UNSIGNED[dtype.itemsize]).max()) - sign
    return max(positive, negative)


@dataclass(frozen=True)
class ValueScan:
    """Nonfinite values and zeros of a weight."""

    nonfinite: int = 0
    """Number of values that are NaN or infinite."""
    first: tuple[int, int] | None = None
    """Row and column of the first nonfinite value."""
    is_zero: bool = True
    """Whether all values are zero."""

    def __add__(self, other: ValueScan) -> ValueScan:
        places = [place for place in (self.first, other.first) if place]
        return ValueScan(
            self.nonfinite + other.nonfinite, min(places, default=None), self.is_zero and other.is_zero
        )

    def shifted(self, rows: int, columns: int) -> ValueScan:
        """The scan of a part of a weight that begins at this row and column, in coordinates of the weight."""
        return replace(self, first=self.first and (self.first[0] + rows, self.first[1] + columns))

    def with_block(self, block: Bytes, dtype: Dtype, row: int) -> ValueScan:
        """The scan after another block of rows.

        Args:
            block: bytes [rows, columns * itemsize], contiguous.
            dtype: of the values.
            row: number of the first row of the block.
        """
        maximum = max_abs_bits(block, dtype)
        if maximum < INFINITY[dtype]:
            return replace(self, is_zero=False) if maximum and self.is_zero else self
        places = np.argwhere(abs_bits(block, dtype) >= INFINITY[dtype])
        first = self.first or (row + int(places[0][0]), int(places[0][1]))
        return ValueScan(self.nonfinite + len(places), first, is_zero=False)
