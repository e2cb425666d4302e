"""Verifies the CRC-32 of each storage from blocks that are read in any order.

CRC-32s of adjacent ranges are combined, so each block is hashed when it is read, and nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from isal import isal_zlib

from llama_convert.errors import InputError
from llama_convert.formats.tensors import Storage


@dataclass(frozen=True)
class _Range:
    """Bytes of a storage, from ``start`` to before ``end``, and their CRC-32."""

    start: int
    end: int
    crc: int


class Checksums:
    """CRC-32s of the ranges of storages that were read so far.  Thread-safe.

    Storages without a recorded CRC-32 are ignored.
    """

    def __init__(self) -> None:
        self._ranges: dict[Storage, list[_Range]] = {}
        self._lock = Lock()

    @classmethod
    def from_ranges(cls, storages: Sequence[Storage], ranges: Sequence[Sequence[int]]) -> Checksums:
        """Checksums from the result of `read_ranges` for the same storages."""
        checksums = cls()
        for storage in storages:
            checksums.track(storage)
        for index, start, end, crc in ranges:
            checksums._ranges[storages[index]].append(_Range(start, end, crc))
        return checksums

    def read_ranges(self, storages: Sequence[Storage]) -> Iterator[tuple[int, int, int, int]]:
        """Ranges that were read: index of the storage, start and end in its bytes, CRC-32."""
        for storage in self._ranges:
            for each in self._ranges[storage]:
                yield storages.index(storage), each.start, each.end, each.crc

    def include(self, other: Checksums, tensor: str) -> None:
        """Add the ranges of other checksums; raises like `add`."""
        for storage, ranges in other._ranges.items():
            self.track(storage)
            for each in ranges:
                self._add(storage, each, tensor)

    def add(self, storage: Storage, offset: int, data: memoryview, tensor: str) -> None:
        """Add bytes that were read at ``offset`` of the file.

        Raises:
            InputError: the storage is now completely read, and its CRC-32 does not match.
        """
        if storage.crc32 is None:
            return
        start = offset - storage.offset
        self._add(storage, _Range(start, start + len(data), isal_zlib.crc32(data)), tensor)

    def _add(self, storage: Storage, new: _Range, tensor: str) -> None:
        with self._lock:
            ranges = self._ranges.setdefault(storage, [])
            for each in list(ranges):
                if each.start < new.end and new.start < each.end:
                    return  # read before, by an overlapping view
                if each.end == new.start:
                    ranges.remove(each)
                    new = _joined(each, new)
                elif each.start == new.end:
                    ranges.remove(each)
                    new = _joined(new, each)
            ranges.append(new)
        if new.start == 0 and new.end == storage.size and new.crc != storage.crc32:
            end = storage.offset + storage.size
            raise InputError(
                "INPUT_CRC",
                f"The file is damaged: the CRC-32 of bytes {storage.offset:,} to {end:,} does not match.",
                file=storage.file,
                tensor=tensor,
                hint="Download it again.",
                expected=f"{storage.crc32:08x}",
                found=f"{new.crc:08x}",
            )

    def track(self, storage: Storage) -> None:
        """Add a storage that was read without hashing, so that `gaps` returns it."""
        if storage.crc32 is not None and storage not in self._ranges:
            with self._lock:
                self._ranges.setdefault(storage, [])

    def gaps(self) -> list[tuple[Storage, int, int]]:
        """Ranges that were not read of tracked storages: storage, offset in the file, length in bytes."""
        result = []
        for storage, ranges in self._ranges.items():
            position = 0
            for each in sorted(ranges, key=lambda each: each.start):
                if each.start > position:
                    result.append((storage, storage.offset + position, each.start - position))
                position = each.end
            if position < storage.size:
                result.append((storage, storage.offset + position, storage.size - position))
        return result


def _joined(left: _Range, right: _Range) -> _Range:
    crc = isal_zlib.crc32_combine(left.crc, right.crc, right.end - right.start)
    return _Range(left.start, right.end, crc)
