"""Why a tensor differs: what it holds instead, told from where its content is found in the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from llama_convert.checkpoints.row_reader import Bytes, as_float32, row_blocks
from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32
from llama_convert.verification.tensor_pairs import BLOCK_SIZE, Difference, Pair, Rows, rounded

FEW = 16
"""So few elements that differ are damage; more are a way of converting."""
_CORNER = 64
"""Rows and columns that are looked at where a whole matrix would be too much."""
_MANTISSA = {FLOAT16: 10, BFLOAT16: 7, FLOAT32: 23}
"""Bits of the mantissa, the lowest ones; the sign is the highest."""

Digests = npt.NDArray[np.uint64]


@dataclass
class _Case:
    """A tensor that differs, and what is worked out on it once."""

    difference: Difference
    every_pair: Sequence[Pair]

    @property
    def pair(self) -> Pair:
        return self.difference.pair

    @cached_property
    def found(self) -> Digests:
        """One digest a row."""
        return _digests(self.pair.found)

    @cached_property
    def stored(self) -> Digests:
        """Of the source's rows in the source's order, rounded."""
        return _digests(replace(self.pair.expected, order=None))

    @cached_property
    def expected(self) -> Digests:
        """Of the source's rows in the order that is right."""
        return self.stored[_reordered(self.pair, self.pair.head_dim)]


def explain(difference: Difference, every_pair: Sequence[Pair]) -> str | None:
    """The likely cause in a few words; None where nothing fits.

    Args:
        difference: what differs.
        every_pair: all tensors, among which its content may be found.
    """
    case = _Case(difference, every_pair)
    causes = (
        _rounding, _damage, _constant, _other_weight, _wrong_way, _row_order, _some_rows, _column_order,
        _joined_as_rows, _transposed, _multiple,
    )  # fmt: skip
    return next((found for cause in causes if (found := cause(case))), None)


def _digests(rows: Rows) -> Digests:
    result = np.empty(rows.shape[0], np.uint64)
    for start, stop in row_blocks(rows.stored, BLOCK_SIZE):
        block = np.ascontiguousarray(rows(start, stop))
        result[start:stop] = [xxhash.xxh3_64_intdigest(row.data) for row in block]
    return result


def _reordered(pair: Pair, width: int) -> npt.NDArray[np.int64]:
    """Where the output's rows stand in the source's, if heads had ``width`` rows."""
    rows: npt.NDArray[np.int64] = np.arange(pair.expected.shape[0])
    if pair.expected.order is None:
        return rows
    heads = rows.reshape(-1, 2, width // 2) if pair.to_pairs else rows.reshape(-1, width // 2, 2)
    order: npt.NDArray[np.int64] = heads.swapaxes(1, 2).reshape(-1)
    return order


def _near(case: _Case) -> tuple[int, int]:
    """A few rows, from the first that differs on."""
    run, rows = case.pair.expected.run, case.pair.expected.shape[0]
    start = case.difference.row // run * run
    return start, min(start + -(-_CORNER // run) * run, rows)


# Single elements, and all of them.


def _rounding(case: _Case) -> str | None:
    """It went through a narrower type on the way, or was cut off where it should have been rounded."""
    pair = case.pair
    source, target = pair.expected.stored.dtype, pair.found.stored.dtype

    def is_found(expected: Callable[[int, int], Bytes]) -> bool:
        ranges = (_near(case), *row_blocks(pair.found.stored, BLOCK_SIZE))
        return all(np.array_equal(expected(*rows), pair.found(*rows)) for rows in ranges)

    def cut_off(start: int, stop: int) -> Bytes:
        exact = replace(pair.expected, dtype=FLOAT32)(start, stop)
        upper_half: Bytes = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.uint8)
        return rounded(upper_half, FLOAT32, target)

    for between in (FLOAT16, BFLOAT16):
        if between not in (source, target) and is_found(pair.expected.through(between)):
            lost = "; what exceeds 65504 became infinite" if between == FLOAT16 else ""
            return f"it was rounded to {between} on the way{lost}"
    if source != BFLOAT16 and is_found(cut_off):
        way = "" if target == BFLOAT16 else " on the way"
        return f"it was cut off to bfloat16{way} instead of rounded"
    return None


def _damage(case: _Case) -> str | None:
    difference = case.difference
    if difference.different > min(FEW, difference.elements // 8):
        return None
    if not np.isfinite(difference.found):
        return f"{difference.different} elements are NaN or infinite"
    if difference.different > 1:
        return f"only {difference.different} elements differ: damaged after it was written"
    bits = [bit for bit in range(32) if difference.bits >> bit & 1]
    if len(bits) > 1:
        return f"{len(bits)} bits of one element are flipped: damaged after it was written"
    dtype = case.pair.found.stored.dtype
    sign = bits[0] == dtype.itemsize * 8 - 1
    part = "sign" if sign else "mantissa" if bits[0] < _MANTISSA[dtype] else "exponent"
    return f"bit {bits[0]} ({part}) of one element is flipped: damaged after it was written"


def _constant(case: _Case) -> str | None:
    itemsize = case.pair.found.stored.dtype.itemsize
    first = case.pair.found(0, 1)[0, :itemsize]
    for start, stop in row_blocks(case.pair.found.stored, BLOCK_SIZE):
        if np.any(case.pair.found(start, stop).reshape(-1, itemsize) != first):
            return None
    value = as_float32(np.ascontiguousarray(first), case.pair.found.stored.dtype)[0]
    return f"every element is {value:g}: a placeholder, or never written?"


def _multiple(case: _Case) -> str | None:
    """It is the source's times a number."""
    dtype = case.pair.found.stored.dtype
    sides = (case.pair.expected, case.pair.found)
    expected, found = (as_float32(side(*_near(case)), dtype).astype(np.float64) for side in sides)
    with np.errstate(all="ignore"):
        factor = (expected * found).sum() / np.square(expected).sum()
        alike = np.all(np.abs(found - factor * expected) <= 2.0 ** -_MANTISSA[dtype] * np.abs(found))
    return f"it is {factor:.6g} times the source's" if alike else None


# Whole weights, and rows.


def _other_weight(case: _Case) -> str | None:
    """It is another weight of the same model."""
    own, row = case.pair, case.difference.row
    found = own.found(row, row + 1)
    for other in case.every_pair:
        same_kind = other.expected.stored.shape == own.expected.stored.shape
        if (
            other is not own
            and same_kind
            and np.array_equal(other.expected(row, row + 1), found)
            and all(
                np.array_equal(other.expected(start, stop), own.found(start, stop))
                for start, stop in row_blocks(own.found.stored, BLOCK_SIZE)
            )
        ):
            return f"it holds what belongs to {other.name}"
    return None


def _wrong_way(case: _Case) -> str | None:
    """Its rows are those that a known mistake gives."""
    found = case.found
    return next((name for name, rows in _mistakes(case) if np.array_equal(found, rows)), None)


def _mistakes(case: _Case) -> Iterator[tuple[str, Digests]]:
    pair, stored, expected = case.pair, case.stored, case.expected
    rows, order = len(stored), _reordered(pair, pair.head_dim)
    if pair.expected.order is not None:
        yield "Q/K rows are not reordered: they stand in the source's order", stored
        yield "Q/K rows are reordered twice", expected[order]
        yield "Q/K rows are reordered the wrong way round", stored[np.argsort(order)]
        for width in (width for width in range(4, rows + 1, 2) if rows % width == 0):
            name = f"Q/K rows are reordered for heads of {width} rows, not {pair.head_dim}"
            yield name, stored[_reordered(pair, width)]
    ranks = len({piece.row for piece in pair.expected.stored.pieces})
    if ranks > 1 and rows % ranks == 0:
        by_columns = stored.reshape(ranks, -1).T.reshape(-1)
        yield "ranks are joined along their columns; they were cut along their rows", by_columns[order]


def _row_order(case: _Case) -> str | None:
    """Its rows are right, but stand in another order."""
    pair, found, expected = case.pair, case.found, case.expected
    rows = len(expected)
    shift = _shift(found, expected)
    if rows == 1 or (shift is None and not np.array_equal(np.sort(found), np.sort(expected))):
        return None
    where = {digest: row for row, digest in enumerate(expected.tolist())}
    moved = np.array([where.get(digest, -1) for digest in found.tolist()])
    moved = np.where(found == expected, np.arange(rows), moved)  # rows that are alike stand where they should
    for what, size in _block_sizes(pair):
        if (order_of := _blocks(moved, size)) is not None:
            return _named(what, order_of)
    if shift is not None:
        return f"its rows are shifted by {shift}"
    wrong = np.flatnonzero(moved != np.arange(rows))
    return (
        f"rows {wrong[0]} and {wrong[1]} are swapped"
        if len(wrong) == 2
        else "its rows stand in another order"
    )


def _shift(found: Digests, expected: Digests) -> int | None:
    """How far all rows moved; what fell off one end may stand at the other, or not."""
    middle = len(expected) // 2
    for place in np.flatnonzero(found == expected[middle])[:FEW]:
        shift = int(place) - middle
        onto, off = found[max(shift, 0) :], expected[max(-shift, 0) :]
        overlap = min(len(onto), len(off))
        if shift and overlap > 1 and np.array_equal(onto[:overlap], off[:overlap]):
            return shift
    return None


def _block_sizes(pair: Pair) -> Iterator[tuple[str, int]]:
    """What may have been moved as a whole, the largest first, and how many rows it has."""
    rows = pair.expected.shape[0]
    pieces = pair.expected.stored.pieces
    ranks, sizes = {piece.row for piece in pieces}, {piece.slab.rows for piece in pieces}
    if len(ranks) > 1 and len(sizes) == 1:
        yield "ranks", sizes.pop()
    if pair.weight.kind.dims[0] in ("q", "kv"):
        yield "heads", pair.head_dim
    for size in (rows // n for n in range(2, min(rows, 257)) if rows % n == 0):
        yield f"blocks of {size} rows", size


def _blocks(moved: npt.NDArray[np.int64], size: int) -> list[int] | None:
    """The order in which blocks of ``size`` rows stand; None if rows moved otherwise."""
    if size < 2 or len(moved) % size:
        return None
    by_block = moved.reshape(-1, size)
    if moved.min() < 0 or np.any(by_block[:, 0] % size) or np.any(np.diff(by_block, axis=1) != 1):
        return None
    return [int(first) // size for first in by_block[:, 0]]


def _named(what: str, order: list[int]) -> str:
    wrong = [place for place, block in enumerate(order) if place != block]
    if len(wrong) == 2:
        return f"{what} {wrong[0]} and {wrong[1]} are swapped"
    shown = ", ".join(map(str, order[:16])) + (", ..." if len(order) > 16 else "")
    return f"{what} stand in the order {shown}"


def _some_rows(case: _Case) -> str | None:
    """Most of its rows are right."""
    wrong = np.flatnonzero(case.found != case.expected)
    if not 0 < len(wrong) <= len(case.found) // 2:
        return None
    first, last = int(wrong[0]), int(wrong[-1])
    together = last - first + 1 == len(wrong)
    several = f"rows {first} to {last}" if together else f"{len(wrong)} rows, from {first} to {last},"
    which = f"row {first}" if len(wrong) == 1 else several
    zero = not any(case.pair.found(row, row + 1).any() for row in wrong.tolist())
    verb = "is" if len(wrong) == 1 else "are"
    what = "zero" if zero else "another" if len(wrong) == 1 else "others"
    return f"{which} {verb} {what}, the other rows are right"


# Columns.


def _column_order(case: _Case) -> str | None:
    """Columns are right, but stand in another order: those of ranks, or of heads."""
    pair = case.pair
    columns = pair.expected.shape[1]
    ranks = len({piece.column for piece in pair.expected.stored.pieces})
    heads = columns // pair.head_dim if pair.weight.kind.dims[-1] == "q" else 1
    start, stop = _near(case)
    for what, count in (("ranks", ranks), ("heads", heads)):
        if count < 2 or columns % count:
            continue
        expected, found = (
            [block.tobytes() for block in np.split(side(start, stop), count, axis=1)]
            for side in (pair.expected, pair.found)
        )
        if found != expected and len(set(expected)) == count and sorted(found) == sorted(expected):
            return _named(what, [expected.index(block) for block in found])
    return None


def _joined_as_rows(case: _Case) -> str | None:
    """The ranks' columns are joined one below the other, and the result taken for the right shape."""
    pair = case.pair
    pieces = pair.expected.stored.pieces
    if len({piece.column for piece in pieces}) < 2:
        return None
    rows = min(_CORNER, pair.expected.shape[0])
    width = pieces[0].slab.columns * pair.found.stored.dtype.itemsize
    first_slice: Bytes = pair.expected(0, rows)[:, :width].reshape(-1)
    if not np.array_equal(pair.found(0, rows).reshape(-1)[: len(first_slice)], first_slice):
        return None
    return "ranks are joined along their rows; they were cut along their columns"


def _transposed(case: _Case) -> str | None:
    pair = case.pair
    rows, columns = pair.expected.shape
    if rows != columns:
        return None
    itemsize = pair.found.stored.dtype.itemsize
    n = min(_CORNER, rows)
    corners = [
        np.ascontiguousarray(side(0, n)[:, : n * itemsize]).view(f"<u{itemsize}")
        for side in (pair.expected, pair.found)
    ]
    return "it is transposed" if np.array_equal(corners[0].T, corners[1]) else None
