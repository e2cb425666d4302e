"""Diagnoses why a tensor differs: what it contains instead, found by searching the source for its content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from llama_convert.checkpoints.row_reader import Bytes, as_float32, row_blocks
from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32
from llama_convert.verification.tensor_pairs import (
    BLOCK_SIZE,
    TensorDifference,
    TensorPair,
    TensorRows,
    rounded,
)

_MAX_DAMAGED = 16
"""Max number of different elements that indicates damage; more indicate a fault of the conversion."""
_CORNER = 64
"""Number of rows and columns to compare if a whole matrix would take too long."""
_MANTISSA = {FLOAT16: 10, BFLOAT16: 7, FLOAT32: 23}
"""Number of mantissa bits, which are the lowest; the sign is the highest bit."""
_DAMAGED = "The file was probably damaged after it was written."

Hashes = npt.NDArray[np.uint64]


@dataclass
class _Suspect:
    """A tensor that differs, with the hashes of its rows."""

    difference: TensorDifference
    every_pair: Sequence[TensorPair]

    @property
    def pair(self) -> TensorPair:
        return self.difference.pair

    @cached_property
    def found(self) -> Hashes:
        """One hash per row of the output."""
        return _row_hashes(self.pair.found)

    @cached_property
    def stored(self) -> Hashes:
        """One hash per row of the source, rounded but not permuted."""
        return _row_hashes(replace(self.pair.expected, order=None))

    @cached_property
    def expected(self) -> Hashes:
        """One hash per row of the source, rounded and permuted."""
        return self.stored[_permutation(self.pair, self.pair.head_dim)]


def diagnose(difference: TensorDifference, every_pair: Sequence[TensorPair]) -> str | None:
    """The likely cause of a difference, as a sentence; None if no known fault matches.

    Args:
        difference: the tensor that differs.
        every_pair: all tensors, in which its content is searched.
    """
    suspect = _Suspect(difference, every_pair)
    diagnoses = (
        _rounding, _damage, _constant, _other_weight, _known_row_fault, _row_order, _some_rows, _column_order,
        _concatenated_along_rows, _transposed, _scaled,
    )  # fmt: skip
    return next((text for each in diagnoses if (text := each(suspect))), None)


def _row_hashes(rows: TensorRows) -> Hashes:
    result = np.empty(rows.shape[0], np.uint64)
    for start, stop in row_blocks(rows.stored, BLOCK_SIZE):
        block = np.ascontiguousarray(rows(start, stop))
        result[start:stop] = [xxhash.xxh3_64_intdigest(row.data) for row in block]
    return result


def _permutation(pair: TensorPair, width: int) -> npt.NDArray[np.int64]:
    """For each row of the output, the row of the source, if heads had ``width`` rows."""
    rows: npt.NDArray[np.int64] = np.arange(pair.expected.shape[0])
    if pair.expected.order is None:
        return rows
    heads = rows.reshape(-1, 2, width // 2) if pair.to_meta else rows.reshape(-1, width // 2, 2)
    order: npt.NDArray[np.int64] = heads.swapaxes(1, 2).reshape(-1)
    return order


def _near(suspect: _Suspect) -> tuple[int, int]:
    """The first row that differs and the row after the next `_CORNER` rows, in whole groups."""
    size, rows = suspect.pair.expected.group_size, suspect.pair.expected.shape[0]
    start = suspect.difference.row // size * size
    return start, min(start + -(-_CORNER // size) * size, rows)


# Elements: a few, or all.


def _rounding(suspect: _Suspect) -> str | None:
    """Values were rounded to a narrower dtype first, or truncated instead of rounded."""
    pair = suspect.pair
    source, target = pair.expected.stored.dtype, pair.found.stored.dtype

    def is_found(expected: Callable[[int, int], Bytes]) -> bool:
        ranges = (_near(suspect), *row_blocks(pair.found.stored, BLOCK_SIZE))
        return all(np.array_equal(expected(*rows), pair.found(*rows)) for rows in ranges)

    def truncated(start: int, stop: int) -> Bytes:
        exact = replace(pair.expected, dtype=FLOAT32)(start, stop)
        upper_half: Bytes = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.uint8)
        return rounded(upper_half, FLOAT32, target)

    for between in (FLOAT16, BFLOAT16):
        if between not in (source, target) and is_found(pair.expected.through(between)):
            lost = " Values above 65504 became infinite." if between == FLOAT16 else ""
            return f"Values were first rounded to {between}.{lost}"
    if source != BFLOAT16 and is_found(truncated):
        first = "" if target == BFLOAT16 else "first "
        return f"Values were {first}truncated to bfloat16 instead of rounded."
    return None


def _damage(suspect: _Suspect) -> str | None:
    difference = suspect.difference
    """A few elements differ."""
    if difference.different > min(_MAX_DAMAGED, difference.elements // 8):
        return None
    if not np.isfinite(difference.found):
        return (
            f"{difference.different} element{'s are' if difference.different > 1 else ' is'} NaN or infinite."
        )
    if difference.different > 1:
        return f"Only {difference.different} elements differ. {_DAMAGED}"
    bits = [bit for bit in range(32) if difference.bits >> bit & 1]
    if len(bits) > 1:
        return f"{len(bits)} bits of one element are flipped. {_DAMAGED}"
    dtype = suspect.pair.found.stored.dtype
    sign = bits[0] == dtype.itemsize * 8 - 1
    part = "sign" if sign else "mantissa" if bits[0] < _MANTISSA[dtype] else "exponent"
    return f"Bit {bits[0]} ({part}) of one element is flipped. {_DAMAGED}"


def _constant(suspect: _Suspect) -> str | None:
    """All elements are equal."""
    itemsize = suspect.pair.found.stored.dtype.itemsize
    first = suspect.pair.found(0, 1)[0, :itemsize]
    for start, stop in row_blocks(suspect.pair.found.stored, BLOCK_SIZE):
        if np.any(suspect.pair.found(start, stop).reshape(-1, itemsize) != first):
            return None
    value = as_float32(np.ascontiguousarray(first), suspect.pair.found.stored.dtype)[0]
    return f"Every element is {value:g}. The tensor is a placeholder or was never written."


def _scaled(suspect: _Suspect) -> str | None:
    """Every element differs from the source by the same factor."""
    dtype = suspect.pair.found.stored.dtype
    both = (suspect.pair.expected, suspect.pair.found)
    expected, found = (as_float32(rows(*_near(suspect)), dtype).astype(np.float64) for rows in both)
    with np.errstate(all="ignore"):
        factor = (expected * found).sum() / np.square(expected).sum()
        equal = np.all(np.abs(found - factor * expected) <= 2.0 ** -_MANTISSA[dtype] * np.abs(found))
    return f"Every element is {factor:.6g} times its value in the source." if equal else None


# Whole weights and rows.


def _other_weight(suspect: _Suspect) -> str | None:
    """The tensor contains another weight of the model."""
    own, row = suspect.pair, suspect.difference.row
    found = own.found(row, row + 1)
    for other in suspect.every_pair:
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
            return f"It contains the values of {other.name}."
    return None


def _known_row_fault(suspect: _Suspect) -> str | None:
    """A known fault of a conversion gives these rows."""
    found = suspect.found
    return next((text for text, rows in _known_row_faults(suspect) if np.array_equal(found, rows)), None)


def _known_row_faults(suspect: _Suspect) -> Iterator[tuple[str, Hashes]]:
    """Faults, each with the rows that it gives."""
    pair, stored, expected = suspect.pair, suspect.stored, suspect.expected
    rows, order = len(stored), _permutation(pair, pair.head_dim)
    if pair.expected.order is not None:
        owner = "Hugging Face's" if pair.to_meta else "Meta's"
        yield f"Q/K weights were not permuted (still in {owner} RoPE order).", stored
        yield "Q/K weights were permuted twice.", expected[order]
        yield "Q/K weights were permuted in the wrong direction.", stored[np.argsort(order)]
        for width in (width for width in range(4, rows + 1, 2) if rows % width == 0):
            text = f"Q/K weights were permuted for heads of {width} rows instead of {pair.head_dim}."
            yield text, stored[_permutation(pair, width)]
    ranks = len({piece.row for piece in pair.expected.stored.pieces})
    if ranks > 1 and rows % ranks == 0:
        by_columns = stored.reshape(ranks, -1).T.reshape(-1)
        yield "Ranks were concatenated along dim 1 instead of dim 0.", by_columns[order]


def _row_order(suspect: _Suspect) -> str | None:
    """The rows are correct but in another order."""
    pair, found, expected = suspect.pair, suspect.found, suspect.expected
    rows = len(expected)
    shift = _shift(found, expected)
    if rows == 1 or (shift is None and not np.array_equal(np.sort(found), np.sort(expected))):
        return None
    where = {digest: row for row, digest in enumerate(expected.tolist())}
    moved = np.array([where.get(digest, -1) for digest in found.tolist()])
    moved = np.where(found == expected, np.arange(rows), moved)  # equal rows have not moved
    for what, size in _block_sizes(pair):
        if (order_of := _block_order(moved, size)) is not None:
            return _order_as_text(what, order_of)
    if shift is not None:
        return f"Rows are shifted by {shift}."
    wrong = np.flatnonzero(moved != np.arange(rows))
    return f"Rows {wrong[0]} and {wrong[1]} are swapped." if len(wrong) == 2 else "Rows are in another order."


def _shift(found: Hashes, expected: Hashes) -> int | None:
    """By how many rows all rows moved; rows beyond one end may be at the other end or lost."""
    middle = len(expected) // 2
    for place in np.flatnonzero(found == expected[middle])[:_MAX_DAMAGED]:
        shift = int(place) - middle
        onto, off = found[max(shift, 0) :], expected[max(-shift, 0) :]
        overlap = min(len(onto), len(off))
        if shift and overlap > 1 and np.array_equal(onto[:overlap], off[:overlap]):
            return shift
    return None


def _block_sizes(pair: TensorPair) -> Iterator[tuple[str, int]]:
    """Blocks that may have moved as a whole, from large to small, each with its number of rows."""
    rows = pair.expected.shape[0]
    pieces = pair.expected.stored.pieces
    ranks, sizes = {piece.row for piece in pieces}, {piece.slab.rows for piece in pieces}
    if len(ranks) > 1 and len(sizes) == 1:
        yield "Ranks", sizes.pop()
    if pair.weight.kind.dims[0] in ("q", "kv"):
        yield "Heads", pair.head_dim
    for size in (rows // n for n in range(2, min(rows, 257)) if rows % n == 0):
        yield f"Blocks of {size} rows numbered", size


def _block_order(moved: npt.NDArray[np.int64], size: int) -> list[int] | None:
    """The order of blocks of ``size`` rows; None if rows did not move in such blocks."""
    if size < 2 or len(moved) % size:
        return None
    by_block = moved.reshape(-1, size)
    if moved.min() < 0 or np.any(by_block[:, 0] % size) or np.any(np.diff(by_block, axis=1) != 1):
        return None
    return [int(first) // size for first in by_block[:, 0]]


def _order_as_text(what: str, order: list[int]) -> str:
    wrong = [place for place, block in enumerate(order) if place != block]
    if len(wrong) == 2:
        return f"{what} {wrong[0]} and {wrong[1]} are swapped."
    shown = ", ".join(map(str, order[:16])) + (", ..." if len(order) > 16 else "")
    return f"{what.removesuffix(' numbered')} are in the order {shown}."


def _some_rows(suspect: _Suspect) -> str | None:
    """Most of the rows are correct."""
    wrong = np.flatnonzero(suspect.found != suspect.expected)
    if not 0 < len(wrong) <= len(suspect.found) // 2:
        return None
    first, last = int(wrong[0]), int(wrong[-1])
    adjacent = last - first + 1 == len(wrong)
    several = f"Rows {first} to {last}" if adjacent else f"{len(wrong)} rows between {first} and {last}"
    which = f"Row {first}" if len(wrong) == 1 else several
    zero = not any(suspect.pair.found(row, row + 1).any() for row in wrong.tolist())
    one = len(wrong) == 1
    verb = ("is zero" if one else "are zero") if zero else ("differs" if one else "differ")
    return f"{which} {verb}; the other rows match."


# Columns.


def _column_order(suspect: _Suspect) -> str | None:
    """The columns are correct but in another order, by rank or by head."""
    pair = suspect.pair
    columns = pair.expected.shape[1]
    ranks = len({piece.column for piece in pair.expected.stored.pieces})
    heads = columns // pair.head_dim if pair.weight.kind.dims[-1] == "q" else 1
    start, stop = _near(suspect)
    for what, count in (("Ranks", ranks), ("Heads", heads)):
        if count < 2 or columns % count:
            continue
        expected, found = (
            [block.tobytes() for block in np.split(rows(start, stop), count, axis=1)]
            for rows in (pair.expected, pair.found)
        )
        if found != expected and len(set(expected)) == count and sorted(found) == sorted(expected):
            return _order_as_text(what, [expected.index(block) for block in found])
    return None


def _concatenated_along_rows(suspect: _Suspect) -> str | None:
    """Ranks that are sharded along dim 1 were concatenated along dim 0, and the result reshaped."""
    pair = suspect.pair
    pieces = pair.expected.stored.pieces
    if len({piece.column for piece in pieces}) < 2:
        return None
    rows = min(_CORNER, pair.expected.shape[0])
    width = pieces[0].slab.columns * pair.found.stored.dtype.itemsize
    first_slice: Bytes = pair.expected(0, rows)[:, :width].reshape(-1)
    if not np.array_equal(pair.found(0, rows).reshape(-1)[: len(first_slice)], first_slice):
        return None
    return "Ranks were concatenated along dim 0 instead of dim 1."


def _transposed(suspect: _Suspect) -> str | None:
    """The matrix is transposed."""
    pair = suspect.pair
    rows, columns = pair.expected.shape
    if rows != columns:
        return None
    itemsize = pair.found.stored.dtype.itemsize
    n = min(_CORNER, rows)
    corners = [
        np.ascontiguousarray(part(0, n)[:, : n * itemsize]).view(f"<u{itemsize}")
        for part in (pair.expected, pair.found)
    ]
    return "It is transposed." if np.array_equal(corners[0].T, corners[1]) else None
