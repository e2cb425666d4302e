"""Files that weights are read from: opened once, and verified by the CRC-32s that they contain."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from threading import Lock

from llama_convert.checkpoints.checksums import Checksums
from llama_convert.errors import InputError
from llama_convert.formats.files import Reader, allow_open_files, open_regular, read_into
from llama_convert.formats.tensors import Storage


class SourceFiles:
    """Open files, each opened when it is first read.  Thread-safe."""

    def __init__(self) -> None:
        allow_open_files()
        self._readers: dict[Path, Reader] = {}
        self._lock = Lock()
        self._checksums = Checksums()
        self.rounded: dict[str, str] = {}
        """Weights whose replicas differ by rounding, and the file of such a replica."""

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def with_checksums(self, checksums: Checksums) -> SourceFiles:
        """The same open files with separate checksums, which `add_checksums` adds later."""
        files = copy(self)
        files._checksums = checksums
        return files

    def add_checksums(self, checksums: Checksums, tensor: str) -> None:
        """Add checksums of ranges that were read.

        Raises:
            InputError: a storage is now completely read, and damaged.
        """
        self._checksums.include(checksums, tensor)

    def read_into(self, file: Path, offset: int, target: memoryview) -> None:
        """Fill ``target`` with bytes of the file from ``offset``.

        Raises:
            InputError: the file is shorter than when its header was read.
            OutputError: a read error.
        """
        with self._lock:
            if file not in self._readers:
                self._readers[file] = open_regular(file)
            reader = self._readers[file]
        done = read_into(reader, target, offset)
        if done < len(target):
            message = f"The file changed: it now ends at byte {offset + done:,}."
            raise InputError("INPUT_CHANGED", message, file=file)

    def read_checked(self, storage: Storage, offset: int, target: memoryview, tensor: str) -> None:
        """As `read_into`, and add the bytes to the checksum of their storage.

        Raises:
            InputError: also if the storage is now completely read, and damaged.
        """
        self.read_into(storage.file, offset, target)
        self._checksums.add(storage, offset, target, tensor)

    def read_scattered(self, storage: Storage, offset: int, target: memoryview) -> None:
        """As `read_into`, for strided elements; `check_partly_read` reads their storage again."""
        self.read_into(storage.file, offset, target)
        self._checksums.track(storage)

    def check_partly_read(self, block_size: int) -> None:
        """Verify storages that were read only in part, by reading the rest of them.

        Args:
            block_size: bytes to read at once.

        Raises:
            InputError: a storage is damaged.
        """
        for storage, offset, length in self._checksums.gaps():
            for start in range(0, length, block_size):
                block = memoryview(bytearray(min(block_size, length - start)))
                self.read_checked(storage, offset + start, block, "(partly read storage)")
