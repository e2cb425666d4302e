"""Conversion between float32, float16 and bfloat16, bit for bit as torch does it, without torch.

Values are rounded to nearest, ties to even, also to subnormal numbers. Magnitudes beyond the range of the
target become infinite. NaN becomes a quiet NaN with its sign and the upper bits of its payload, except that
every NaN becomes 0x7FC0 in bfloat16, as in torch's scalar code (its vector code writes 0xFFFF), and that
bfloat16 becomes float32 by appending zeros.

Most weights are normal numbers in both dtypes, which integer arithmetic on whole arrays converts. The few
others are converted a second time, by functions that are exact for all numbers.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[Any]
"""Bits of numbers, as unsigned integers of their size."""
Indices = npt.NDArray[np.intp]

_CHUNK = 1 << 19
"""Elements converted at a time.  With fewer, threads wait for each other more often."""
_UNSIGNED = {2: np.uint16, 4: np.uint32}
_FLOAT32_INFINITY = 0x7F800000
_FLOAT32_EXPONENT = 0x7F800000
_FLOAT32_TWO_TO_THE_16 = 0x47800000
"""Rounds to infinity in float16."""
_FLOAT32_HALF = 0x3F000000
"""Its last bit is worth 2^-24, as that of a subnormal float16 number."""
_REBIAS = 127 - 15
"""Difference of the exponent biases of float32, or bfloat16, and float16."""
_RANGES = {
    (FLOAT32, FLOAT16): (0x38800000, 0x477FF000),  # 2^-14 to 65520, which is rounded to infinity
    (FLOAT32, BFLOAT16): (0x00800000, 0x7F7F8000),  # 2^-126 to (2 - 2^-8) * 2^127, likewise
    (BFLOAT16, FLOAT16): (0x3880, 0x4780),  # 2^-14 to 2^16
}
"""Bits of the first magnitude that is normal in both dtypes, and of the first one that is not any more."""


def convert_dtype(block: Bytes, source: Dtype, target: Dtype) -> tuple[Bytes, Indices]:
    """Convert a contiguous block.

    Args:
        block: bytes of numbers of `source`, any shape.
        source: float32, float16 or bfloat16.
        target: likewise.

    Returns:
        Bytes [n * target.itemsize] of the same numbers in `target`, and the indices of those that are not
        normal in both dtypes: only they can have become zero or infinite. No indices if all numbers of
        `source` are in the range of `target`.
    """
    bits: Bits = block.reshape(-1).view(_UNSIGNED[source.itemsize])
    unusual = [np.empty(0, np.intp)]
    if source == target:
        result = bits
    elif source == BFLOAT16 and target == FLOAT32:
        result = bits.astype(np.uint32) << 16
    elif source == FLOAT16:
        result = np.take(_table(source, target), bits, mode="clip")
    else:
        result = np.empty(len(bits), np.uint16)
        for start in range(0, len(bits), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            unusual.append(_narrow(bits[chunk], source, target, result[chunk]) + start)
    return result.view(np.uint8), np.concatenate(unusual)


def _narrow(bits: Bits, source: Dtype, target: Dtype, result: Bits) -> Indices:
    """Convert to a 16-bit dtype of smaller range.

    Args:
        bits: numbers of `source`, at most `_CHUNK`.
        source: a key of `_RANGES` with `target`.
        target: likewise.
        result: uint16 array of the same length, which receives the numbers in `target`.

    Returns:
        Indices of the numbers that are not normal in both dtypes.
    """
    magnitude = _scratch("magnitude", bits)
    np.bitwise_and(bits, (1 << (8 * source.itemsize - 1)) - 1, out=magnitude)
    if source == BFLOAT16:  # both have 16 bits: the exponent gets another bias and three bits less
        rounded = _scratch("rounded", bits)
        np.subtract(magnitude, _REBIAS << 7, out=rounded)
        np.left_shift(rounded, 3, out=rounded)
        np.bitwise_and(bits, 0x8000, out=result)
    else:
        dropped, rebias = (13, _REBIAS << 23) if target == FLOAT16 else (16, 0)
        rounded = _round(magnitude, dropped, rebias, _scratch("rounded", bits))
        np.right_shift(bits, 16, out=result, casting="unsafe")
        np.bitwise_and(result, 0x8000, out=result)
    np.bitwise_or(result, rounded, out=result, casting="unsafe")
    first, end = _RANGES[source, target]
    np.subtract(magnitude, magnitude.dtype.type(first), out=magnitude)
    is_unusual = _scratch("unusual", bits, np.bool_)
    np.greater_equal(magnitude, end - first, out=is_unusual)
    unusual = np.flatnonzero(is_unusual)
    if len(unusual):
        exact = _table(source, target).__getitem__ if source == BFLOAT16 else _EXACT[target]
        result[unusual] = exact(bits[unusual])
    return unusual


_reused = threading.local()


def _scratch(name: str, like: Bits, dtype: type[np.bool_] | None = None) -> Bits:
    """An array with the length and dtype of another one, which this thread uses again for the next chunk.

    The system clears new pages, which takes as long as a conversion.
    """
    key = f"{name} {like.dtype}"
    if len(vars(_reused).get(key, ())) < len(like):
        vars(_reused)[key] = np.empty(len(like), dtype or like.dtype)
    array: Bits = vars(_reused)[key][: len(like)]
    return array


def _round(magnitude: Bits, dropped: int, rebias: int, result: Bits) -> Bits:
    """Magnitudes of float32 numbers less `rebias`, rounded to all but the last `dropped` bits, in `result`.

    Adding half of the last bit that stays, or one less where that bit is even, carries into it exactly when
    the number must be rounded up.
    """
    np.right_shift(magnitude, dropped, out=result)
    np.bitwise_and(result, 1, out=result)
    np.add(result, magnitude, out=result)
    np.add(result, np.uint32(((1 << (dropped - 1)) - 1 - rebias) & 0xFFFFFFFF), out=result)
    np.right_shift(result, dropped, out=result)
    return result


def _to_bfloat16(bits: Bits) -> Bits:
    """Bits of any float32 numbers, in bfloat16."""
    magnitude = bits & 0x7FFFFFFF
    result: Bits = _round(magnitude, 16, 0, np.empty_like(bits)) | (bits >> 16 & 0x8000)
    result[magnitude > _FLOAT32_INFINITY] = 0x7FC0
    return result


def _to_float16(bits: Bits) -> Bits:
    """Bits of any float32 numbers, in float16.

    Adding a power of two whose last bit in float32 is worth as much as the last bit of the result lets the
    addition round: 2^13 times the power of two below the number or, for subnormal results, 0.5. The sum's
    lower bits then are the significand of the result, with its leading one.
    """
    magnitude = bits & 0x7FFFFFFF
    limited = np.minimum(magnitude, _FLOAT32_TWO_TO_THE_16)
    power = np.maximum((limited & _FLOAT32_EXPONENT) + np.uint32(13 << 23), _FLOAT32_HALF)
    result: Bits = (limited.view(np.float32) + power.view(np.float32)).view(np.uint32)
    result -= power
    power >>= 13  # the exponent, in the place of float16's
    result += power
    result -= np.uint32((_REBIAS + 13 + 1) << 10)  # biases, the factor 2^13, and the leading one
    is_nan = magnitude > _FLOAT32_INFINITY
    result[is_nan] = 0x7E00 | (magnitude[is_nan] >> 13 & 0x3FF)
    result |= bits >> 16 & 0x8000
    return result


_EXACT = {FLOAT16: _to_float16, BFLOAT16: _to_bfloat16}
"""The functions that round any float32 numbers."""


@cache
def _table(source: Dtype, target: Dtype) -> Bits:
    """The bits in `target` of each of the 65,536 numbers of `source`, a 16-bit dtype."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    exact: Bits = bits << 16 if source == BFLOAT16 else _from_float16(bits)
    return exact if target == FLOAT32 else _EXACT[target](exact).astype(np.uint16)


def _from_float16(bits: Bits) -> Bits:
    """Bits of float16 numbers, as bits of the same numbers in float32."""
    values = bits.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    is_nan = (bits & 0x7FFF) > 0x7C00
    quiet: Bits = values | is_nan * np.uint32(1 << 22)
    return quiet
