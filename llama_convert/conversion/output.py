"""A file that is being written: at planned offsets on a disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np

from llama_convert.checkpoints.row_reader import Bytes
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.sync import WriteBack, discard, failure, open_own
from llama_convert.formats.tensors import FileLayout

_BLOCK = 1 << 20


class Output(Protocol):
    """What `execute` asks of a file that it writes."""

    layout: FileLayout

    def reserve(self) -> None:
        """Make room for all of it."""

    def open(self) -> None:
        """Open it, unless that is done."""

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Bytes that are in it, in blocks; fewer where it ends or cannot be read back."""

    def write(self, block: Bytes, offset: int) -> None:
        """All of the contiguous ``block``, at ``offset``."""

    def tensor_done(self, name: str, crc32: int) -> None:
        """One more tensor is written."""

    def wait(self) -> None:
        """Wait until all of it is where it stays."""

    def close(self) -> None:
        """Let go of it, finished or not."""


@contextmanager
def on_disk(plan: Plan, folder: Path, *, fsync: bool) -> Iterator[Mapping[str, Output]]:
    """The plan's files in a folder.

    Args:
        plan: what is written.
        folder: where to.
        fsync: whether to wait for the disk.
    """
    with WriteBack(enabled=fsync) as disk:
        yield {
            name: LocalOutput(folder / name, layout, plan.places_in(name), disk)
            for name, layout in plan.layouts.items()
        }


class LocalOutput:
    """A file being written at planned offsets; open only from its first tensor to its last."""

    def __init__(self, path: Path, layout: FileLayout, n_tensors: int, disk: WriteBack) -> None:
        self.path = path
        self.layout = layout
        self._disk = disk
        self._descriptor = -1
        self._finished: Future[None] | None = None
        self._tensors_left = n_tensors
        self._crc32: dict[str, int] = {}
        self._lock = Lock()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def reserve(self) -> None:
        """Make the file in its full length, so that a full disk shows now; bytes that are there stay."""
        try:
            descriptor = open_own(self.path, os.O_RDWR)
            try:
                os.ftruncate(descriptor, self.layout.size)
                _allocate(descriptor, self.layout.size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise failure(f"cannot be made, {self.layout.size:,} bytes long", error, self.path) from error

    def open(self) -> None:
        """Open the file, unless that is done."""
        with self._lock:
            if self._descriptor < 0:
                try:
                    self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
                except OSError as error:
                    raise failure("cannot be opened", error, self.path) from error

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Bytes that are in the file, in blocks; fewer where it ends."""
        end = offset + size
        while offset < end:
            try:
                block = os.pread(self._descriptor, min(_BLOCK, end - offset), offset)
            except OSError as error:
                raise failure(f"cannot be read at byte {offset:,}", error, self.path) from error
            if not block:
                return
            yield block
            offset += len(block)

    def tensor_done(self, name: str, crc32: int) -> None:
        """One more tensor is written; after the last, add the rest, wait until all is on disk, and close."""
        with self._lock:
            self._crc32[name] = crc32
            self._tensors_left -= 1
            if self._tensors_left:
                return
        for offset, content in self.layout.parts(self._crc32):
            self.write(np.frombuffer(content, np.uint8), offset)
        self._finished, self._descriptor = self._disk.finish(self._descriptor), -1

    def wait(self) -> None:
        """Wait until all of a finished file is on disk."""
        try:
            if self._finished:
                self._finished.result()
        except OSError as error:
            discard(self.path)  # the kernel may have dropped any of it
            raise failure("cannot be brought to disk", error, self.path) from error

    def write(self, block: Bytes, offset: int) -> None:
        """All of the contiguous ``block``, at ``offset``."""
        view = block.reshape(-1).data
        done = 0
        while done < len(view):
            try:
                count = os.pwrite(self._descriptor, view[done:], offset + done)
                if not count:
                    raise OSError(errno.EIO, "nothing is taken")
            except OSError as error:
                raise failure(f"cannot be written at byte {offset + done:,}", error, self.path) from error
            done += count
        self._disk.wrote(self._descriptor, done)


class Discarded:
    """A file that is not written, to learn what would be."""

    def __init__(self, layout: FileLayout) -> None:
        self.layout = layout

    def reserve(self) -> None:
        """Nothing."""

    def open(self) -> None:
        """Nothing."""

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Nothing."""
        return iter(())

    def write(self, block: Bytes, offset: int) -> None:
        """Nothing."""

    def tensor_done(self, name: str, crc32: int) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _allocate(descriptor: int, size: int) -> None:
    """Reserve space on disk, where the file system can."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
