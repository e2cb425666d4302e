"""The files that weights are read from, each opened once, and what their checksums say."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock

from llama_convert.checkpoints.checksums import Checksums
from llama_convert.errors import InputError, OutputError
from llama_convert.formats.files import open_regular
from llama_convert.formats.tensors import Storage


class SourceFiles:
    """Open descriptors of the files read from, each opened once.  Safe to share between threads."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = Lock()
        self._checksums = Checksums()
        self.rounded: dict[str, str] = {}
        """Weights whose copies differ by rounding, and the file of one such copy."""

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read_into(self, file: Path, offset: int, target: memoryview) -> None:
        """Fill ``target``, bytes in a row, with the file's bytes from ``offset`` on.

        Raises:
            InputError: the file ends early, so it is not the file that was planned with.
            OutputError: the machine could not read it.
        """
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = open_regular(file)
            descriptor = self._descriptors[file]
        done = 0
        while done < len(target):
            try:
                count = os.preadv(descriptor, [target[done:]], offset + done)
            except OSError as error:
                message = f"cannot read at byte {offset + done:,}: {error.strerror}"
                raise OutputError("INPUT_IO", message, file=file) from error
            if count == 0:
                message = f"ends at byte {offset + done:,}, shorter than when it was opened"
                raise InputError("INPUT_CHANGED", message, file=file)
            done += count

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
