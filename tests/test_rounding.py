"""Conversion between dtypes: bit for bit what torch gives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llama_convert.conversion.cast import CastCounts, cast_block
from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, WEIGHT_DTYPES, Dtype
from llama_convert.rounding import convert_dtype

EVERY_HALF = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def by_torch(bits: npt.NDArray[np.uint32 | np.uint16], source: Dtype, target: Dtype) -> list[int]:
    """The bits of the same values in another dtype, one NaN for all of bfloat16's: torch has two."""
    values = torch.from_numpy(bits.view(f"<i{source.itemsize}")).view(getattr(torch, source.name))
    # By way of float32, as torch itself goes.
    result = (
        values.to(torch.float32)
        .to(getattr(torch, target.name))
        .view(getattr(torch, f"int{target.itemsize * 8}"))
    )
    return canonical(result.numpy().view(f"<u{target.itemsize}"), target)


def by_us(bits: npt.NDArray[np.uint32 | np.uint16], source: Dtype, target: Dtype) -> list[int]:
    result, _ = convert_dtype(bits.view(np.uint8), source, target)
    return canonical(result.view(f"<u{target.itemsize}"), target)


def canonical(bits: npt.NDArray[np.unsignedinteger], target: Dtype) -> list[int]:
    if target == BFLOAT16:
        bits = np.where((bits & 0x7FFF) > 0x7F80, np.uint16(0x7FC0), bits)
    return bits.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("source", "target"),
    [(FLOAT16, FLOAT32), (FLOAT16, BFLOAT16), (BFLOAT16, FLOAT32), (BFLOAT16, FLOAT16)],
    ids=str,
)
def test_every_16_bit_number(source: Dtype, target: Dtype) -> None:
    assert by_us(EVERY_HALF, source, target) == by_torch(EVERY_HALF, source, target)


@pytest.mark.parametrize("target", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("between", [FLOAT16, BFLOAT16], ids=str)
def test_ties_and_their_neighbors(between: Dtype, target: Dtype) -> None:
    """Around each 16-bit number, and around the middle between it and the next."""
    exact = convert_dtype(EVERY_HALF.view(np.uint8), between, FLOAT32)[0].view(np.uint32)
    halfway = 1 << (15 if between == BFLOAT16 else 12)
    bits = np.concatenate(
        [exact + np.uint32(step % 2**32) for step in (-1, 0, 1, halfway - 1, halfway, halfway + 1)]
    )
    assert by_us(bits, FLOAT32, target) == by_torch(bits, FLOAT32, target)


def test_ties_between_subnormal_halves() -> None:
    halves = (np.arange(4096) / 2 * 2.0**-24).astype(np.float32).view(np.uint32)
    bits = np.concatenate([halves, halves + 1, halves - 1, halves | 1 << 31])
    assert by_us(bits, FLOAT32, FLOAT16) == by_torch(bits, FLOAT32, FLOAT16)


@pytest.mark.parametrize("target", WEIGHT_DTYPES, ids=str)
@given(arrays.arrays(np.uint32, st.integers(0, 40_000), elements=st.integers(0, 2**32 - 1)))
def test_any_float32(target: Dtype, bits: npt.NDArray[np.uint32]) -> None:
    assert by_us(bits, FLOAT32, target) == by_torch(bits, FLOAT32, target)


@pytest.mark.parametrize("target", [FLOAT16, BFLOAT16], ids=str)
def test_a_million_random_bit_patterns(target: Dtype) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 1 << 20, dtype=np.uint32)
    assert by_us(bits, FLOAT32, target) == by_torch(bits, FLOAT32, target)


@pytest.mark.parametrize(
    ("source", "target", "nan", "converted"),
    [
        (FLOAT32, FLOAT16, [0x7F800001, 0xFF8FE000], [0x7E00, 0xFE7F]),
        (FLOAT32, BFLOAT16, [0x7F800001, 0xFF8FE000], [0x7FC0, 0x7FC0]),
        (FLOAT16, FLOAT32, [0x7C01, 0xFD00], [0x7FC02000, 0xFFE00000]),
        (FLOAT16, BFLOAT16, [0x7C01, 0xFD00], [0x7FC0, 0x7FC0]),
        (BFLOAT16, FLOAT32, [0x7F81, 0xFFC1], [0x7F810000, 0xFFC10000]),
        (BFLOAT16, FLOAT16, [0x7F81, 0xFFC1], [0x7E08, 0xFE08]),
    ],
    ids=str,
)
def test_nan(source: Dtype, target: Dtype, nan: list[int], converted: list[int]) -> None:
    """Quiet, with the sign and the upper bits of the payload; bfloat16 has one for all of float32's."""
    bits = np.array(nan, f"<u{source.itemsize}")
    result, _ = convert_dtype(bits.view(np.uint8), source, target)
    assert [hex(each) for each in result.view(f"<u{target.itemsize}")] == [hex(each) for each in converted]


def counts_by_torch(bits: npt.NDArray[np.uint32 | np.uint16], source: Dtype, target: Dtype) -> CastCounts:
    values = torch.from_numpy(bits.view(f"<i{source.itemsize}")).view(getattr(torch, source.name)).float()
    cast = values.to(getattr(torch, target.name)).float()
    overflowed = values[cast.isinf() & values.isfinite()].abs()
    underflowed = int(((values != 0) & (cast == 0)).sum())
    return CastCounts(
        len(bits), len(overflowed), underflowed, float(overflowed.max()) if len(overflowed) else 0.0
    )


class TestCounts:
    """Numbers that become infinite or zero."""

    @pytest.mark.parametrize("target", WEIGHT_DTYPES, ids=str)
    @pytest.mark.parametrize("source", [FLOAT16, BFLOAT16], ids=str)
    def test_every_16_bit_number(self, source: Dtype, target: Dtype) -> None:
        counts = cast_block(EVERY_HALF.view(np.uint8), source, target)[1]
        assert counts == counts_by_torch(EVERY_HALF, source, target)
        if (source, target) == (BFLOAT16, FLOAT16):
            assert counts.overflowed > 0 < counts.underflowed

    @pytest.mark.parametrize("target", WEIGHT_DTYPES, ids=str)
    @given(arrays.arrays(np.uint32, st.integers(0, 3000), elements=st.integers(0, 2**32 - 1)))
    def test_any_float32(self, target: Dtype, bits: npt.NDArray[np.uint32]) -> None:
        assert cast_block(bits.view(np.uint8), FLOAT32, target)[1] == counts_by_torch(bits, FLOAT32, target)

    @pytest.mark.parametrize("target", [FLOAT16, BFLOAT16], ids=str)
    def test_around_the_ends_of_the_range(self, target: Dtype) -> None:
        """The neighbors of every power of two and of the largest numbers, in both signs."""
        edges = [0, 0x477FEFFF, 0x477FF000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x33000000, 0x00008000]
        edges += [exponent << 23 for exponent in range(255)]
        near = {max(0, edge + step) for edge in edges for step in (-1, 0, 1)}
        bits = np.array(sorted(near | {1 << 31 | edge for edge in near}), np.uint32)
        cast, counts = cast_block(bits.view(np.uint8), FLOAT32, target)
        assert counts == counts_by_torch(bits, FLOAT32, target)
        assert canonical(cast.view(np.uint16), target) == by_torch(bits, FLOAT32, target)
        assert counts.overflowed > 0 < counts.underflowed
