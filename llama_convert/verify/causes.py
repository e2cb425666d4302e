"""Why a tensor differs: what it holds instead, told from where its rows are found in the source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from llama_convert.checkpoints.gather import Bytes, row_blocks
from llama_convert.dtypes import BFLOAT16, FLOAT16
from llama_convert.verify.weights import BLOCK_SIZE, Difference, Pair, Rows

FEW = 16
"""So few elements that differ are damage; more are a way of converting."""
_CORNER = 64
"""Rows and columns that are looked at where a whole matrix would be too much."""


def explain(difference: Difference, every_pair: Sequence[Pair]) -> str | None:
    """The likely cause in a few words; None where nothing fits.

    Args:
        difference: what differs.
        every_pair: all tensors, among which its content may be found.
    """
    for cause in (_damage, _other_weight, _row_order, _column_order, _wrong_axis, _transposed, _rounding):
        if found := cause(difference, every_pair):
            return found
    if difference.relative_difference < 0.05:
        return "the values are close: trained further, or rounded in between"
    return "nothing of it is in the source: of another model?"


def _damage(difference: Difference, _: Sequence[Pair]) -> str | None:
    if difference.different > min(FEW, difference.elements // 8):
        return None
    if not np.isfinite(difference.found):
        return f"{difference.different} elements are no numbers"
    if difference.different == 1:
        bits = "one bit is flipped" if difference.bits == 1 else f"{difference.bits} bits are flipped"
        return f"{bits}: damaged after it was written"
    return f"only {difference.different} elements differ: damaged after it was written"


def _other_weight(difference: Difference, every_pair: Sequence[Pair]) -> str | None:
    """It is another weight of the same model."""
    own, row = difference.pair, difference.row
    found = own.found(row, row + 1)
    if np.all(found == found[0, 0]):
        return None
    for other in every_pair:
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


def _row_order(difference: Difference, _: Sequence[Pair]) -> str | None:
    """Its rows are right, but stand in another order."""
    pair = difference.pair
    rows = pair.expected.shape[0]
    if rows == 1:
        return None
    found = _digests(pair.found)
    expected = _digests(pair.expected)
    if pair.expected.order is not None:
        head = len(pair.expected.order)
        order = (np.arange(rows) // head * head) + np.tile(pair.expected.order, rows // head)
        stored = np.empty_like(expected)
        stored[order] = expected
        if np.array_equal(found, stored):
            return "Q/K rows are not reordered: they stand in the source's order"
        if np.array_equal(found, expected[order]):
            return "Q/K rows are reordered twice"
    if len(np.unique(expected)) < rows:
        return None
    where = {digest: row for row, digest in enumerate(expected.tolist())}
    moved = np.array([where.get(digest, -1) for digest in found.tolist()])
    if moved.min() < 0:
        return None
    pieces = sorted({piece.row for piece in pair.expected.stored.pieces})
    sizes = {piece.slab.rows for piece in pair.expected.stored.pieces}
    if len(pieces) > 1 and len(sizes) == 1 and (order_of := _blocks(moved, sizes.pop())) is not None:
        return _named("ranks", order_of)
    for size in (rows // n for n in range(2, min(rows, 257)) if rows % n == 0):
        if (order_of := _blocks(moved, size)) is not None:
            return _named(f"blocks of {size} rows (heads?)", order_of)
    return "its rows stand in another order"


def _digests(rows: Rows) -> npt.NDArray[np.uint64]:
    """One digest a row."""
    result = np.empty(rows.shape[0], np.uint64)
    for start, stop in row_blocks(rows.stored, BLOCK_SIZE):
        block = np.ascontiguousarray(rows(start, stop))
        result[start:stop] = [xxhash.xxh3_64_intdigest(row.data) for row in block]
    return result


def _blocks(moved: npt.NDArray[np.int64], size: int) -> list[int] | None:
    """The order in which blocks of ``size`` rows stand; None if rows moved otherwise."""
    by_block = moved.reshape(-1, size)
    if np.any(by_block[:, 0] % size) or np.any(np.diff(by_block, axis=1) != 1):
        return None
    return [int(first) // size for first in by_block[:, 0]]


def _named(what: str, order: list[int]) -> str:
    wrong = [place for place, block in enumerate(order) if place != block]
    if len(wrong) == 2:
        return f"{what} {wrong[0]} and {wrong[1]} are swapped"
    shown = ", ".join(map(str, order[:16])) + (", ..." if len(order) > 16 else "")
    return f"{what} stand in the order {shown}"


def _column_order(difference: Difference, _: Sequence[Pair]) -> str | None:
    """The ranks' columns are joined in another order."""
    pair = difference.pair
    starts = sorted({piece.column for piece in pair.expected.stored.pieces})
    if len(starts) < 2:
        return None
    rows = min(_CORNER, pair.expected.shape[0])
    expected = np.split(pair.expected(0, rows), len(starts), axis=1)
    found = np.split(pair.found(0, rows), len(starts), axis=1)
    order = []
    for block in found:
        places = [place for place, other in enumerate(expected) if np.array_equal(block, other)]
        if not places:
            return None
        order.append(places[0])
    return _named("ranks", order) if sorted(order) == list(range(len(starts))) else None


def _wrong_axis(difference: Difference, _: Sequence[Pair]) -> str | None:
    """The ranks' slices are joined on the other axis, and the result taken for the right shape."""
    pair = difference.pair
    pieces = pair.expected.stored.pieces
    if len(pieces) < 2:
        return None
    rows = min(_CORNER, pair.expected.shape[0])
    found = pair.found(0, rows).reshape(-1)
    by_columns = len({piece.column for piece in pieces}) > 1
    if by_columns:  # joined one below the other: the first slice fills the first rows
        width = pieces[0].slab.columns * pair.found.stored.dtype.itemsize
        first = pair.expected(0, rows)[:, :width].reshape(-1)
        return _joined(found[: len(first)], first, "columns", "rows")
    heights = sorted({piece.row for piece in pieces})
    row_of_each = np.concatenate([pair.expected(height, height + 1).reshape(-1) for height in heights])
    return _joined(found[: len(row_of_each)], row_of_each, "rows", "columns")


def _joined(found: Bytes, expected: Bytes, right: str, wrong: str) -> str | None:
    if len(found) == len(expected) and np.array_equal(found, expected):
        return f"ranks are joined along their {wrong}; they were cut along their {right}"
    return None


def _transposed(difference: Difference, _: Sequence[Pair]) -> str | None:
    pair = difference.pair
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


def _rounding(difference: Difference, _: Sequence[Pair]) -> str | None:
    """It went through a narrower type on the way."""
    pair = difference.pair
    stop = min(-(-_CORNER // pair.expected.run) * pair.expected.run, pair.expected.shape[0])
    for between in (FLOAT16, BFLOAT16):
        if between in (pair.expected.stored.dtype, pair.found.stored.dtype):
            continue
        if np.array_equal(pair.expected.through(between)(0, stop), pair.found(0, stop)):
            lost = "; what exceeds 65504 became infinite" if between == FLOAT16 else ""
            return f"it was rounded to {between} on the way{lost}"
    return None
