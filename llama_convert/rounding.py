"""Conversion between float32, float16 and bfloat16, bit for bit as torch does it, without torch.

Values are rounded to nearest, ties to even, also to subnormal numbers. Magnitudes beyond the range of the
target become infinite. NaN becomes a quiet NaN with its sign and the upper bits of its payload, except that
every NaN becomes 0x7FC0 in bfloat16, as in torch's scalar code (its vector code writes 0xFFFF).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[Any]
"""uint32: the bits of float32 numbers, or 16-bit ones in their lower half."""

_CHUNK = 1 << 15
"""Elements converted at a time, so that intermediate arrays stay in the L2 cache."""
_FLOAT32_INFINITY = 0x7F800000
_FLOAT32_EXPONENT = 0x7F800000
_TWO_TO_THE_16 = 0x47800000
"""In float32: rounds to infinity in float16."""
_ONE_HALF = 0x3F000000
"""In float32: its last bit is worth 2^-24, as that of a subnormal float16 number."""


def convert_dtype(block: Bytes, source: Dtype, target: Dtype) -> Bytes:
    """Convert a contiguous block.

    Args:
        block: bytes of numbers of `source`, any shape.
        source: float32, float16 or bfloat16.
        target: likewise.

    Returns:
        Bytes [n * target.itemsize] of the same numbers in `target`.
    """
    if source == target:
        return block.reshape(-1)
    if source != FLOAT32:
        bits = block.reshape(-1).view(np.uint16)
        result: Bytes = np.take(_table(source, target), bits, mode="clip").view(np.uint8)
        return result
    to_bits = _to_float16 if target == FLOAT16 else _to_bfloat16
    values = block.reshape(-1).view(np.uint32)
    halves = np.empty(len(values), np.uint16)
    for start in range(0, len(values), _CHUNK):
        halves[start : start + _CHUNK] = to_bits(values[start : start + _CHUNK])
    return halves.view(np.uint8)


@cache
def _table(source: Dtype, target: Dtype) -> npt.NDArray[Any]:
    """The bits in `target` of each of the 65,536 numbers of `source`, a 16-bit dtype."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    exact: Bits = bits << 16 if source == BFLOAT16 else _from_float16(bits)
    if target == FLOAT32:
        return exact
    rounded = _to_float16(exact) if target == FLOAT16 else _to_bfloat16(exact)
    return rounded.astype(np.uint16)


def _from_float16(bits: Bits) -> Bits:
    """Bits of float16 numbers, as bits of the same numbers in float32."""
    values = bits.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    is_nan = (bits & 0x7FFF) > 0x7C00
    quiet: Bits = values | is_nan * np.uint32(1 << 22)
    return quiet


def _to_bfloat16(bits: Bits) -> Bits:
    """Bits of float32 numbers, rounded to the upper half of the bits.

    Adding 0x7FFF, or 0x8000 where the last bit that stays is odd, carries into that bit exactly when the
    number must be rounded up.
    """
    result: Bits = bits >> 16
    result &= 1
    result += bits
    result += np.uint32(0x7FFF)
    result >>= 16
    magnitude = bits & 0x7FFFFFFF
    if magnitude.max(initial=0) > _FLOAT32_INFINITY:
        result[magnitude > _FLOAT32_INFINITY] = 0x7FC0
    return result


def _to_float16(bits: Bits) -> Bits:
    """Bits of float32 numbers, rounded to float16.

    Adding a power of two whose last bit in float32 is worth as much as the last bit of the result lets the
    addition round: 2^13 times the power of two below the number or, for subnormal results, 0.5. The sum's
    lower bits then are the significand of the result, with its leading one.
    """
    magnitude = bits & 0x7FFFFFFF
    limited = np.minimum(magnitude, _TWO_TO_THE_16)
    power = np.maximum((limited & _FLOAT32_EXPONENT) + np.uint32(13 << 23), _ONE_HALF)
    result: Bits = (limited.view(np.float32) + power.view(np.float32)).view(np.uint32)
    result -= power
    power >>= 13  # the exponent, in the place of float16's
    result += power
    result -= np.uint32((127 - 15 + 13 + 1) << 10)  # biases, the factor 2^13, and the leading one
    if magnitude.max(initial=0) > _FLOAT32_INFINITY:
        is_nan = magnitude > _FLOAT32_INFINITY
        result[is_nan] = 0x7E00 | (magnitude[is_nan] >> 13 & 0x3FF)
    result |= bits >> 16 & 0x8000
    return result
