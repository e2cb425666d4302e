"""The files that weights are read from, each opened once, and what their checksums say."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from threading import Lock

from llama_convert.checkpoints.checksums import Checksums
from llama_convert.errors import InputError
from llama_convert.formats.files import Reader, open_regular, read_into
from llama_convert.formats.tensors import Storage


class SourceFiles:
    """Open descriptors of the files read from, each opened once.  Safe to share between threads."""

    def __init__(self) -> None:
        self._readers: dict[Path, Reader] = {}
        self._lock = Lock()
        self._checksums = Checksums()
        self.rounded: dict[str, str] = {}
        """Weights whose copies differ by rounding, and the file of one such copy."""

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def counting(self, checksums: Checksums) -> SourceFiles:
        """The same open files; what is read counts towards other checksums, until they are `include`d."""
        files = copy(self)
        files._checksums = checksums
        return files

    def include(self, checksums: Checksums, tensor: str) -> None:
        """Count what was read towards other checksums.

        Raises:
            InputError: a storage is now read whole, and damaged.
        """
        self._checksums.include(checksums, tensor)

    def read_into(self, file: Path, offset: int, target: memoryview) -> None:
        """Fill ``target``, bytes in a row, with the file's bytes from ``offset`` on.

        Raises:
            InputError: the file ends early, so it is not the file that was planned with.
            OutputError: the machine could not read it.
        """
        with self._lock:
            if file not in self._readers:
                self._readers[file] = open_regular(file)
            reader = self._readers[file]
        done = read_into(reader, target, offset)
        if done < len(target):
            message = f"ends at byte {offset + done:,}, shorter than when it was opened"
            raise InputError("INPUT_CHANGED", message, file=file)

    def read_checked(self, storage: Storage, offset: int, target: memoryview, tensor: str) -> None:
        """As `read_into`, and count the bytes towards the checksum of their storage.

        Raises:
            InputError: also when the storage is now read whole, and damaged.
        """
        self.read_into(storage.file, offset, target)
        self._checksums.add(storage, offset, target, tensor)

    def read_scattered(self, storage: Storage, offset: int, target: memoryview) -> None:
        """As `read_into`, where bytes lie scattered: `check_the_rest` reads their storage once more."""
        self.read_into(storage.file, offset, target)
        self._checksums.note(storage)

    def check_the_rest(self, block_size: int) -> None:
        """Read what was not read in one piece of the storages that were, so that all of them are checked.

        Raises:
            InputError: one of them is damaged.
        """
        for storage, offset, length in self._checksums.gaps():
            for start in range(0, length, block_size):
                block = memoryview(bytearray(min(block_size, length - start)))
                self.read_checked(storage, offset + start, block, "(a storage read in parts)")
