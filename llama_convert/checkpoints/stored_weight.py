"""A weight as a checkpoint stores it: a whole matrix put together from rectangles of bytes in files.

Every weight is seen as a matrix: its first axis is the rows, the others together the columns; a vector is a
matrix of one row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_convert.dtypes import Dtype
from llama_convert.formats.tensors import Storage, StoredTensor


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


@dataclass(frozen=True)
class Slab:
    """A matrix of elements in a storage; offset (from the start of the file) and strides in bytes."""

    storage: Storage
    offset: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int

    @property
    def file(self) -> Path:
        """The file its bytes are in."""
        return self.storage.file

    @classmethod
    def of(cls, tensor: StoredTensor) -> Slab:
        """A vector or matrix as it lies in its file, whatever its strides."""
        itemsize = tensor.dtype.itemsize
        rows, columns = matrix_shape(tensor.shape)
        strides = (0, *tensor.strides) if len(tensor.shape) < 2 else tensor.strides
        if len(strides) != 2:
            raise ValueError(f"{tensor.name} has {len(tensor.shape)} axes")
        return cls(tensor.storage, tensor.offset, rows, columns, strides[0] * itemsize, strides[1] * itemsize)

    def row_range(self, start: int, stop: int) -> Slab:
        """Rows ``start`` to ``stop`` of it."""
        offset = self.offset + start * self.row_stride
        return Slab(self.storage, offset, stop - start, self.columns, self.row_stride, self.column_stride)

    def column_range(self, start: int, stop: int) -> Slab:
        """Columns ``start`` to ``stop`` of it."""
        offset = self.offset + start * self.column_stride
        return Slab(self.storage, offset, self.rows, stop - start, self.row_stride, self.column_stride)


@dataclass(frozen=True)
class Piece:
    """A rectangle of a weight: where in the weight it belongs, where its bytes are, and where they are again.

    `replicas` hold the same bytes once more (a norm on every rank, a repeated KV head).
    """

    row: int
    column: int
    slab: Slab
    replicas: tuple[Slab, ...] = ()


@dataclass(frozen=True)
class StoredWeight:
    """One weight of a checkpoint; its pieces cover it without overlap."""

    name: str
    """What the files call it."""
    shape: tuple[int, ...]
    dtype: Dtype
    pieces: tuple[Piece, ...]

    def part(self, rows: tuple[int, int], columns: tuple[int, int]) -> StoredWeight:
        """A rectangle of it, from the first row and column to before the last, as a weight of its own."""
        pieces = []
        for piece in self.pieces:
            top, bottom = max(rows[0], piece.row), min(rows[1], piece.row + piece.slab.rows)
            left, right = max(columns[0], piece.column), min(columns[1], piece.column + piece.slab.columns)
            if top >= bottom or left >= right:
                continue
            slab, *replicas = (
                each.row_range(top - piece.row, bottom - piece.row).column_range(
                    left - piece.column, right - piece.column
                )
                for each in (piece.slab, *piece.replicas)
            )
            pieces.append(Piece(top - rows[0], left - columns[0], slab, tuple(replicas)))
        width = columns[1] - columns[0]
        shape = (width,) if len(self.shape) < 2 else (rows[1] - rows[0], width)
        return StoredWeight(self.name, shape, self.dtype, tuple(pieces))

    @property
    def slabs(self) -> Iterator[Slab]:
        """Where its bytes are, copies and all."""
        for piece in self.pieces:
            yield piece.slab
            yield from piece.replicas

    def file_of(self, row: int, column: int) -> Path:
        """The file that an element lies in."""
        for piece in self.pieces:
            slab = piece.slab
            if 0 <= row - piece.row < slab.rows and 0 <= column - piece.column < slab.columns:
                return slab.file
        raise ValueError(f"{self.name} has no element [{row}, {column}]")

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight."""
        return math.prod(self.shape) * self.dtype.itemsize


def storages_without_crc(weights: Iterable[StoredWeight]) -> dict[Path, tuple[int, int]]:
    """Of each file with storages that have no CRC-32: how many, and how many storages are read from it."""
    storages: dict[Path, set[Storage]] = defaultdict(set)
    for weight in weights:
        for slab in weight.slabs:
            if slab.storage.size:
                storages[slab.file].add(slab.storage)
    counts = {
        file: (sum(storage.crc32 is None for storage in of_file), len(of_file))
        for file, of_file in sorted(storages.items())
    }
    return {file: (without, every) for file, (without, every) in counts.items() if without}
