"""The bits of numbers read as magnitudes: what is not finite, or zero, shows without any arithmetic.

Of IEEE 754's numbers without their sign, the larger has the larger bits; beyond infinity's are those of NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype

Bytes = npt.NDArray[np.uint8]

INFINITY = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80, FLOAT32: 0x7F800000}
"""The bits of infinity."""
_UNSIGNED = {2: np.uint16, 4: np.uint32}
_SIGNED = {2: np.int16, 4: np.int32}


def magnitudes(block: Bytes, dtype: Dtype) -> npt.NDArray[Any]:
    """The bits of each number of a contiguous block, without its sign."""
    code = _UNSIGNED[dtype.itemsize]
    mask = code((1 << (8 * dtype.itemsize - 1)) - 1)
    bits: npt.NDArray[Any] = np.bitwise_and(block.view(code), mask)
    return bits


def count_nonzero(block: Bytes, dtype: Dtype) -> int:
    """Numbers of a contiguous block that are neither zero; twice its bits leave the sign out."""
    bits: npt.NDArray[Any] = block.view(_UNSIGNED[dtype.itemsize])
    return int(np.count_nonzero(bits + bits))


def largest(block: Bytes, dtype: Dtype) -> int:
    """The largest of the `magnitudes`, in two passes that write nothing.

    As signed numbers the positive ones are the largest, as unsigned ones the negative.
    """
    sign = 1 << (8 * dtype.itemsize - 1)
    positive = int(block.view(_SIGNED[dtype.itemsize]).max())
    negative = int(block.view(_UNSIGNED[dtype.itemsize]).max()) - sign
    return max(positive, negative)


@dataclass(frozen=True)
class ValueScan:
    """What no trained weight has."""

    nonfinite: int = 0
    """Values that are NaN or infinite."""
    first: tuple[int, int] | None = None
    """Row and column of the first of them."""
    is_zero: bool = True
    """Whether all of it is zero."""

    def __add__(self, other: ValueScan) -> ValueScan:
        places = [place for place in (self.first, other.first) if place]
        return ValueScan(
            self.nonfinite + other.nonfinite, min(places, default=None), self.is_zero and other.is_zero
        )

    def moved(self, rows: int, columns: int) -> ValueScan:
        """The same of a part that begins at a row and a column."""
        return replace(self, first=self.first and (self.first[0] + rows, self.first[1] + columns))

    def and_of(self, block: Bytes, dtype: Dtype, row: int) -> ValueScan:
        """With what is odd about the rows from ``row`` on; nearly free where nothing is."""
        most = largest(block, dtype)
        if most < INFINITY[dtype]:
            return replace(self, is_zero=False) if most and self.is_zero else self
        places = np.argwhere(magnitudes(block, dtype) >= INFINITY[dtype])
        first = self.first or (row + int(places[0][0]), int(places[0][1]))
        return ValueScan(self.nonfinite + len(places), first, is_zero=False)
