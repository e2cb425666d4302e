"""Output files that hold weights: written at planned offsets, flushed to disk in the background."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Semaphore
from typing import Protocol

import numpy as np

from llama_convert.checkpoints.row_reader import Bytes
from llama_convert.conversion.disk import (
    open_for_writing,
    output_error,
    remove_if_possible,
    sync_descriptor,
)
from llama_convert.conversion.plan import Plan
from llama_convert.formats.tensors import FileLayout

_READ_BLOCK = 1 << 20
_MAX_UNFLUSHED_FILES = 16
"""Complete files that may be open only because their last bytes are not flushed yet."""


class Output(Protocol):
    """A file that `execute` writes."""

    layout: FileLayout

    def reserve(self) -> None:
        """Create the file and reserve its space."""

    def open(self) -> None:
        """Open the file unless it is open."""

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield the bytes at ``offset`` in blocks; fewer at the end of the file or if it is not readable."""

    def write(self, block: Bytes, offset: int) -> None:
        """Write a contiguous block at ``offset``."""

    def tensor_done(self, name: str, crc32: int) -> None:
        """Count one more complete tensor."""

    def wait(self) -> None:
        """Wait until the whole file is stored durably."""

    def close(self) -> None:
        """Close the file, complete or not."""


@contextmanager
def on_disk(plan: Plan, folder: Path, *, fsync: bool) -> Iterator[Mapping[str, Output]]:
    """Yield the plan's output files in a folder, by name.

    Args:
        plan: what is written.
        folder: where to write.
        fsync: whether to flush the files to disk.
    """
    with WriteBack(enabled=fsync) as write_back:
        yield {
            name: LocalOutput(folder / name, layout, plan.tensor_count(name), write_back)
            for name, layout in plan.layouts.items()
        }


class LocalOutput:
    """A local file written at planned offsets. It is open only from its first tensor to its last.

    Args:
        path: the file.
        layout: its size, tensor offsets and headers.
        n_tensors: number of tensors that are written separately.
        write_back: flushes the file to disk.
    """

    def __init__(self, path: Path, layout: FileLayout, n_tensors: int, write_back: WriteBack) -> None:
        self.path = path
        self.layout = layout
        self._write_back = write_back
        self._descriptor = -1
        self._flushed: Future[None] | None = None
        self._tensors_left = n_tensors
        self._crc32: dict[str, int] = {}
        self._lock = Lock()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def reserve(self) -> None:
        """Create the file at its full length, so that a full disk fails now. Existing bytes are kept."""
        try:
            descriptor = open_for_writing(self.path, os.O_RDWR)
            try:
                os.ftruncate(descriptor, self.layout.size)
                _allocate(descriptor, self.layout.size)
            finally:
                os.close(descriptor)
        except OSError as error:
            message = f"Cannot create the file with {self.layout.size:,} bytes"
            raise output_error(message, error, self.path) from error

    def open(self) -> None:
        """Open the file unless it is open."""
        with self._lock:
            if self._descriptor < 0:
                try:
                    self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
                except OSError as error:
                    raise output_error("Cannot open the file", error, self.path) from error

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield the bytes at ``offset`` in blocks; fewer at the end of the file."""
        end = offset + size
        while offset < end:
            try:
                block = os.pread(self._descriptor, min(_READ_BLOCK, end - offset), offset)
            except OSError as error:
                raise output_error(f"Cannot read at byte {offset:,}", error, self.path) from error
            if not block:
                return
            yield block
            offset += len(block)

    def tensor_done(self, name: str, crc32: int) -> None:
        """Count one more complete tensor. After the last one, write the headers and start the final flush."""
        with self._lock:
            self._crc32[name] = crc32
            self._tensors_left -= 1
            if self._tensors_left:
                return
        for offset, content in self.layout.parts(self._crc32):
            self.write(np.frombuffer(content, np.uint8), offset)
        self._flushed, self._descriptor = self._write_back.finish(self._descriptor), -1

    def wait(self) -> None:
        """Wait until a complete file is on disk."""
        try:
            if self._flushed:
                self._flushed.result()
        except OSError as error:
            remove_if_possible(self.path)  # the kernel may have dropped any of its pages
            raise output_error("Cannot flush the file to disk", error, self.path) from error

    def write(self, block: Bytes, offset: int) -> None:
        """Write a contiguous block at ``offset``."""
        view = block.reshape(-1).data
        done = 0
        while done < len(view):
            try:
                count = os.pwrite(self._descriptor, view[done:], offset + done)
                if not count:
                    raise OSError(errno.EIO, "the file system accepts no bytes")
            except OSError as error:
                raise output_error(f"Cannot write at byte {offset + done:,}", error, self.path) from error
            done += count
        self._write_back.wrote(self._descriptor, done)


class WriteBack:
    """Flushes files to disk while they are written, so that little is left to wait for at the end.

    A background thread flushes each file after every `_INTERVAL` bytes. The caller only waits for a file that
    it finishes.

    Args:
        enabled: whether to flush at all.
    """

    _INTERVAL = 128 << 20

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-back")
        self._lock = Lock()
        self._unflushed_files = Semaphore(_MAX_UNFLUSHED_FILES)
        self._written: dict[int, int] = {}
        self._pending: dict[int, list[Future[None]]] = {}

    def __enter__(self) -> WriteBack:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def wrote(self, descriptor: int, count: int) -> None:
        """Count bytes written to an open file; schedules a flush after every `_INTERVAL` bytes."""
        if not self._enabled:
            return
        with self._lock:
            self._written[descriptor] = self._written.get(descriptor, 0) + count
            if self._written[descriptor] < self._INTERVAL:
                return
            self._written[descriptor] = 0
            self._pending.setdefault(descriptor, []).append(self._pool.submit(sync_descriptor, descriptor))

    def finish(self, descriptor: int) -> Future[None]:
        """Schedule the final flush of an open file, then close it.

        Returns:
            A future whose `result` raises OSError if this flush or an earlier one failed.
        """
        self._unflushed_files.acquire()
        with self._lock:
            self._written.pop(descriptor, None)
            pending = self._pending.pop(descriptor, [])
            return self._pool.submit(self._finish, descriptor, pending)

    def _finish(self, descriptor: int, pending: list[Future[None]]) -> None:
        try:
            for flush in pending:
                flush.result()
            if self._enabled:
                sync_descriptor(descriptor)
        finally:
            os.close(descriptor)
            self._unflushed_files.release()


class NullOutput:
    """A file that is not written: used to compute the hashes of what would be."""

    def __init__(self, layout: FileLayout) -> None:
        self.layout = layout

    def reserve(self) -> None:
        """Do nothing."""

    def open(self) -> None:
        """Do nothing."""

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield nothing."""
        return iter(())

    def write(self, block: Bytes, offset: int) -> None:
        """Do nothing."""

    def tensor_done(self, name: str, crc32: int) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _allocate(descriptor: int, size: int) -> None:
    """Reserve disk space on file systems that support it."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
