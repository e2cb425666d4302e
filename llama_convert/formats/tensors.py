"""Tensors in files, and layouts of files to write: what all container formats have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_convert.dtypes import Dtype


@dataclass(frozen=True)
class Storage:
    """A contiguous range of bytes of a file; tensors are views of it."""

    file: Path
    offset: int
    """Bytes from the start of the file."""
    size: int
    """Bytes."""
    crc32: int | None = None
    """CRC-32 recorded in the file; None if the file has none (in a zip archive: 0)."""


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage.  Its values are not read."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements."""
    offset: int
    """Bytes from the start of the file."""
    storage: Storage

    @property
    def file(self) -> Path:
        """The file that contains it."""
        return self.storage.file

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def same_bytes_as(self, other: StoredTensor) -> bool:
        """Whether both are the same view of the same storage, that is, tied."""
        return (self.storage, self.offset, self.dtype, self.shape, self.strides) == (
            other.storage,
            other.offset,
            other.dtype,
            other.shape,
            other.strides,
        )


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


class FileLayout(Protocol):
    """Layout of a file to write, known before any tensor is written."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """Offset of each tensor in bytes from the start of the file; tied tensors have the same offset."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    @property
    def has_checksums(self) -> bool:
        """Whether `parts` needs checksums."""

    def parts(self, crc32: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        """Everything in the file besides tensors, as offsets in bytes from the start of the file and content.

        Args:
            crc32: CRC-32 of the bytes of each tensor, by name; of tied tensors, only the first is needed.
        """
