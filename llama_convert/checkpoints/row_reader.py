"""Reads rows of a stored weight from all files that contain parts of it, with any strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight, matrix_shape
from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype
from llama_convert.errors import InputError

Bytes = npt.NDArray[np.uint8]

_MAX_SPAN = 1 << 20
"""Bytes to read at once for strided elements, including the gaps between them."""
_COMPARED_BYTES = 1 << 20
"""Bytes of each weight to compare at once."""
_ROUNDING = {FLOAT32: 2.0**-20, FLOAT16: 2.0**-9, BFLOAT16: 2.0**-6}
"""Tolerance for replicas of a vector, relative to its maximum: a few units in the last place."""


def row_blocks(
    weight: StoredWeight, block_size: int, multiple_of: int = 1, first: int = 0
) -> Iterator[tuple[int, int]]:
    """Ranges of rows, as start and stop.

    Args:
        weight: the weight.
        block_size: approximate bytes of a range.
        multiple_of: the number of rows of each range but the last is a multiple of this.
        first: first row.
    """
    rows, columns = matrix_shape(weight.shape)
    fit = block_size // max(1, columns * weight.dtype.itemsize)
    step = max(1, fit // multiple_of) * multiple_of
    for start in range(first, rows, step):
        yield start, min(start + step, rows)


def rows_of(files: SourceFiles, weight: StoredWeight, start: int, stop: int) -> Bytes:
    """Rows ``start`` to before ``stop`` of a weight: uint8 [stop - start, columns * itemsize].

    Raises:
        InputError: replicas differ, or a file is damaged.
        OutputError: a read error.
    """
    block = np.empty((stop - start, matrix_shape(weight.shape)[1] * weight.dtype.itemsize), np.uint8)
    read_rows(files, weight, start, stop, block)
    return block


def read_rows(files: SourceFiles, weight: StoredWeight, start: int, stop: int, target: Bytes) -> None:
    """As `rows_of`, into an existing array."""
    itemsize = weight.dtype.itemsize
    for piece in weight.pieces:
        first, last = max(start, piece.row), min(stop, piece.row + piece.slab.rows)
        if first >= last:
            continue
        columns = slice(piece.column * itemsize, (piece.column + piece.slab.columns) * itemsize)
        window = target[first - start : last - start, columns]
        rows = (first - piece.row, last - piece.row)
        _read_slab(files, piece.slab.row_range(*rows), itemsize, window, weight.name)
        for replica in piece.replicas:
            copy = np.empty(window.shape, np.uint8)
            _read_slab(files, replica.row_range(*rows), itemsize, copy, weight.name)
            if not np.array_equal(copy, window):
                _compare_replicas(weight, piece, replica, window, copy)
                files.rounded[weight.name] = replica.file.name


def weight_checksum(
    files: SourceFiles,
    weight: StoredWeight,
    block_size: int,
    progress: Callable[[int], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> str:
    """XXH3-128 of the bytes of a weight.

    Args:
        files: open files.
        weight: the weight.
        block_size: approximate bytes to read at once.
        progress: called with the number of bytes after each block.
        interrupted: checked before each block; if it is true, the result is meaningless.

    Raises:
        InputError, OutputError: as `rows_of`.
    """
    checksum = xxhash.xxh3_128()
    for start, stop in row_blocks(weight, block_size):
        if interrupted():
            break
        block = rows_of(files, weight, start, stop)
        checksum.update(block.data)
        progress(block.nbytes)
    return checksum.hexdigest()


def equal_values(files: SourceFiles, one: StoredWeight, other: StoredWeight) -> bool:
    """Whether two weights of the same shape have equal values; reads up to the first block that differs.

    Values of the same dtype are equal if their bits are; values of two dtypes if they are equal as float32.

    Raises:
        InputError, OutputError: as `rows_of`.
    """
    if one.pieces == other.pieces and one.dtype == other.dtype:
        return True
    for rows in row_blocks(one, _COMPARED_BYTES):
        blocks = [(rows_of(files, weight, *rows), weight.dtype) for weight in (one, other)]
        if one.dtype != other.dtype:
            blocks = [(as_float32(block, dtype).view(np.uint8), FLOAT32) for block, dtype in blocks]
        if not np.array_equal(blocks[0][0], blocks[1][0]):
            return False
    return True


def _read_slab(files: SourceFiles, slab: Slab, itemsize: int, target: Bytes, name: str) -> None:
    """Read a slab into an array, whose rows need not be contiguous."""
    row_bytes = slab.columns * itemsize
    rows_contiguous = slab.column_stride == itemsize or slab.columns == 1
    if rows_contiguous and (slab.row_stride == row_bytes or slab.rows == 1):
        if target.flags.c_contiguous:
            files.read_checked(slab.storage, slab.offset, target.reshape(-1).data, name)
        else:
            scratch = np.empty(target.shape, np.uint8)
            files.read_checked(slab.storage, slab.offset, scratch.reshape(-1).data, name)
            target[:] = scratch
    elif rows_contiguous:
        for row in range(slab.rows):
            files.read_scattered(slab.storage, slab.offset + row * slab.row_stride, target[row].data)
    else:
        _read_strided(files, slab, itemsize, target)


def _read_strided(files: SourceFiles, slab: Slab, itemsize: int, target: Bytes) -> None:
    """Read a slab without contiguous rows: along the shorter stride, elements with the gaps between them."""
    elements = np.empty((slab.rows, slab.columns, itemsize), np.uint8)
    by_columns = slab.row_stride < slab.column_stride
    lines = elements.swapaxes(0, 1) if by_columns else elements
    step, stride = (
        (slab.column_stride, slab.row_stride) if by_columns else (slab.row_stride, slab.column_stride)
    )
    every = max(1, _MAX_SPAN // max(stride, 1))
    for index in range(lines.shape[0]):
        for start in range(0, lines.shape[1], every):
            part = lines[index, start : start + every]
            span = np.empty((len(part) - 1) * stride + itemsize, np.uint8)
            files.read_scattered(slab.storage, slab.offset + index * step + start * stride, span.data)
            part[:] = np.lib.stride_tricks.as_strided(span, part.shape, (stride, 1))
    target[:] = elements.reshape(target.shape)


def _compare_replicas(weight: StoredWeight, piece: Piece, replica: Slab, one: Bytes, other: Bytes) -> None:
    """Refuse replicas that differ by more than rounding: then the files are of different models."""
    vector = len(weight.shape) == 1
    values, others = (as_float32(np.ascontiguousarray(block), weight.dtype) for block in (one, other))
    with np.errstate(invalid="ignore"):
        distance = np.abs(values - others).max()
        if vector and distance <= _ROUNDING[weight.dtype] * np.abs(values).max():
            return
    what = "tensor" if vector else "KV head"
    raise InputError(
        "RANKS_REPLICAS",
        f"Differs from {piece.slab.file.name}, but this {what} must be the same (shards of two models?).",
        file=replica.file,
        tensor=weight.name,
    )


def as_float32(block: Bytes, dtype: Dtype) -> npt.NDArray[np.float32]:
    """The values of a block of bytes, as float32."""
    if dtype == BFLOAT16:
        return (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return block.view(np.dtype(dtype.name)).astype(np.float32)
