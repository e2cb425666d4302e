"""What every container is written by: where each tensor's bytes go, and what goes between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol


class Layout(Protocol):
    """Where everything goes in one file, known before a tensor is written."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """Bytes from the start of the file to each tensor, by name; tensors may share their bytes."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""

    @property
    def has_checksums(self) -> bool:
        """Whether `parts` needs the checksums."""

    def parts(self, crc32: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        """All that is no tensor, with its place in bytes from the start of the file.

        Args:
            crc32: the CRC-32 of each tensor's bytes, by name; of tensors that share them, of the first.
        """
