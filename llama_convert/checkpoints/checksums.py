"""Checks every storage byte that is read against the CRC-32 the file records, in whatever order it is read.

CRCs of neighbouring stretches combine into the CRC of both, so each block is digested where it is read and
nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from isal import isal_zlib

from llama_convert.errors import InputError
from llama_convert.formats.tensors import Storage


@dataclass(frozen=True)
class _Stretch:
    start: int
    end: int
    crc: int


class Checksums:
    """What is known so far of the storages being read.  Safe to share between threads."""

    def __init__(self) -> None:
        self._stretches: dict[Storage, list[_Stretch]] = {}
        self._lock = Lock()

    @classmethod
    def of(cls, storages: Sequence[Storage], known: Sequence[Sequence[int]]) -> Checksums:
        """What `known` returned for the same storages."""
        checksums = cls()
        for storage in storages:
            checksums.note(storage)
        for index, start, end, crc in known:
            checksums._stretches[storages[index]].append(_Stretch(start, end, crc))
        return checksums

    def known(self, storages: Sequence[Storage]) -> Iterator[tuple[int, int, int, int]]:
        """The stretches read of these storages: index of the storage, start and end in it, CRC-32."""
        for storage in self._stretches:
            for stretch in self._stretches[storage]:
                yield storages.index(storage), stretch.start, stretch.end, stretch.crc

    def include(self, other: Checksums, tensor: str) -> None:
        """Add all that another has read; raises as `add`."""
        for storage, stretches in other._stretches.items():
            self.note(storage)
            for stretch in stretches:
                self._add(storage, stretch, tensor)

    def add(self, storage: Storage, offset: int, data: memoryview, tensor: str) -> None:
        """Take note of bytes read at ``offset`` of the file; they are compared once their storage is whole.

        Raises:
            InputError: the storage's bytes are not those that were written.
        """
        if storage.crc32 is None:
            return
        start = offset - storage.offset
        self._add(storage, _Stretch(start, start + len(data), isal_zlib.crc32(data)), tensor)

    def _add(self, storage: Storage, new: _Stretch, tensor: str) -> None:
        with self._lock:
            known = self._stretches.setdefault(storage, [])
            for stretch in list(known):
                if stretch.start < new.end and new.start < stretch.end:
                    return  # read before: views that overlap
                if stretch.end == new.start:
                    known.remove(stretch)
                    new = _joined(stretch, new)
                elif stretch.start == new.end:
                    known.remove(stretch)
                    new = _joined(new, stretch)
            known.append(new)
        if new.start == 0 and new.end == storage.size and new.crc != storage.crc32:
            raise InputError(
                "INPUT_CRC",
                f"CRC-32 of bytes {storage.offset:,} to {storage.offset + storage.size:,} is {new.crc:08x}, "
                f"recorded is {storage.crc32:08x}; the file is damaged",
                file=storage.file,
                tensor=tensor,
                hint="download it again",
            )

    def note(self, storage: Storage) -> None:
        """Take note that something of a storage was read, without its bytes: it is to be read whole."""
        if storage.crc32 is not None and storage not in self._stretches:
            with self._lock:
                self._stretches.setdefault(storage, [])

    def gaps(self) -> list[tuple[Storage, int, int]]:
        """Stretches not yet read of storages that were read in part: storage, file offset, length."""
        result = []
        for storage, stretches in self._stretches.items():
            position = 0
            for stretch in sorted(stretches, key=lambda stretch: stretch.start):
                if stretch.start > position:
                    result.append((storage, storage.offset + position, stretch.start - position))
                position = stretch.end
            if position < storage.size:
                result.append((storage, storage.offset + position, storage.size - position))
        return result


def _joined(left: _Stretch, right: _Stretch) -> _Stretch:
    crc = isal_zlib.crc32_combine(left.crc, right.crc, right.end - right.start)
    return _Stretch(left.start, right.end, crc)
