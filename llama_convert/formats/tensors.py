"""What every container yields: tensors as places in files, not as values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from llama_convert.dtypes import Dtype


@dataclass(frozen=True)
class Storage:
    """A run of bytes in a file that one or more tensors are views of.

    `crc32` is the checksum the file records for it, None where it records none (in a zip archive: 0).
    """

    file: Path
    offset: int
    size: int
    crc32: int | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A strided view into a storage.  Shape and strides count elements, `offset` bytes of the file."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: Storage

    @property
    def file(self) -> Path:
        """The file its bytes are in."""
        return self.storage.file

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, each counted once."""
        return math.prod(self.shape) * self.dtype.itemsize

    def same_bytes_as(self, other: StoredTensor) -> bool:
        """Whether both are the same view of the same storage: tied, without reading anything."""
        return (self.storage, self.offset, self.dtype, self.shape, self.strides) == (
            other.storage,
            other.offset,
            other.dtype,
            other.shape,
            other.strides,
        )


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
