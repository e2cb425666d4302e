"""A weight as it is stored: a matrix made of rectangles of bytes in files.

Every weight is treated as a matrix: dimension 0 is the rows, the product of the others the columns.  A vector
is a matrix of one row.
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
    """Rows and columns of a tensor as a matrix."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


@dataclass(frozen=True)
class Slab:
    """A strided matrix of elements in a storage."""

    storage: Storage
    offset: int
    """Bytes from the start of the file."""
    rows: int
    columns: int
    row_stride: int
    """Bytes."""
    column_stride: int
    """Bytes."""

    @property
    def file(self) -> Path:
        """The file that contains it."""
        return self.storage.file

    @classmethod
    def of(cls, tensor: StoredTensor) -> Slab:
        """The slab of a whole vector or matrix.

        Raises:
            ValueError: the tensor has more dimensions.
        """
        itemsize = tensor.dtype.itemsize
        rows, columns = matrix_shape(tensor.shape)
        strides = (0, *tensor.strides) if len(tensor.shape) < 2 else tensor.strides
        if len(strides) != 2:
            raise ValueError(f"{tensor.name} has {len(tensor.shape)} dimensions")
        return cls(tensor.storage, tensor.offset, rows, columns, strides[0] * itemsize, strides[1] * itemsize)

    def row_range(self, start: int, stop: int) -> Slab:
        """Rows ``start`` to before ``stop``."""
        offset = self.offset + start * self.row_stride
        return Slab(self.storage, offset, stop - start, self.columns, self.row_stride, self.column_stride)

    def column_range(self, start: int, stop: int) -> Slab:
        """Columns ``start`` to before ``stop``."""
        offset = self.offset + start * self.column_stride
        return Slab(self.storage, offset, self.rows, stop - start, self.row_stride, self.column_stride)


@dataclass(frozen=True)
class Piece:
    """A rectangle of a weight."""

    row: int
    """First row in the weight."""
    column: int
    """First column in the weight."""
    slab: Slab
    """Its elements."""
    replicas: tuple[Slab, ...] = ()
    """Copies of its elements: a norm on every rank, a replicated KV head."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a checkpoint; its pieces cover it without overlap."""

    name: str
    """Name in the files."""
    shape: tuple[int, ...]
    dtype: Dtype
    pieces: tuple[Piece, ...]

    def part(self, rows: tuple[int, int], columns: tuple[int, int]) -> StoredWeight:
        """A rectangle of rows and columns (start, stop) as a weight."""
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
        """The slabs of all pieces, including replicas."""
        for piece in self.pieces:
            yield piece.slab
            yield from piece.replicas

    @property
    def file(self) -> Path:
        """The file that contains its first element."""
        return self.pieces[0].slab.file

    def file_of(self, row: int, column: int) -> Path:
        """The file that contains an element."""
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
    """For each file with storages without a CRC-32: their number, and the number of all storages to read."""
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
