"""What the disk does and says: waiting until bytes are on it, and what to tell of a failure."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock, Semaphore

from llama_convert.errors import OutputError
from llama_convert.units import format_size

_NO_SYNC = (errno.ENOTSUP, errno.EINVAL)
"""What fsync says on file systems that have none."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk, where the file system can tell.

    Raises:
        OSError: it cannot be brought there.  Never to be tried again: the kernel may have dropped the pages.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int) -> None:
    """As `sync`, of a file that is open."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


_MOST_UNFINISHED = 16
"""Files that may be open only for being brought to disk."""


class WriteBack:
    """Brings files to disk while they are still being written, so that little is left to wait for at the end.

    A thread of its own asks for it every so many bytes; whoever finishes a file waits for that file alone.
    """

    _EVERY = 128 << 20

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-back")
        self._lock = Lock()
        self._unfinished = Semaphore(_MOST_UNFINISHED)
        self._written: dict[int, int] = {}
        self._pending: dict[int, list[Future[None]]] = {}

    def __enter__(self) -> WriteBack:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def wrote(self, descriptor: int, count: int) -> None:
        """Take note of bytes written to an open file."""
        if not self._enabled:
            return
        with self._lock:
            self._written[descriptor] = self._written.get(descriptor, 0) + count
            if self._written[descriptor] < self._EVERY:
                return
            self._written[descriptor] = 0
            self._pending.setdefault(descriptor, []).append(self._pool.submit(sync_open, descriptor))

    def finish(self, descriptor: int) -> Future[None]:
        """Bring all of an open file to disk, and close it; it fails if an earlier part could not be brought.

        The result's `result` raises OSError where the disk does.
        """
        self._unfinished.acquire()
        with self._lock:
            self._written.pop(descriptor, None)
            pending = self._pending.pop(descriptor, [])
            return self._pool.submit(self._finish, descriptor, pending)

    def _finish(self, descriptor: int, pending: list[Future[None]]) -> None:
        try:
            for begun in pending:
                begun.result()
            if self._enabled:
                sync_open(descriptor)
        finally:
            os.close(descriptor)
            self._unfinished.release()


def discard(file: Path) -> None:
    """Remove a file that could not be written, as far as possible: that is told of, not this."""
    with suppress(OSError):
        file.unlink(missing_ok=True)


def failure(what: str, error: OSError, file: Path) -> OutputError:
    """What to tell a person of a file that the machine could not write; of a full disk, with its numbers."""
    message = f"{what}: {error.strerror or error}"
    if error.errno in _FULL:
        return OutputError("OUTPUT_SPACE", f"{message}; {_free_space(file)}", file=file)
    return OutputError("OUTPUT_PERMISSION" if error.errno in _FORBIDDEN else "OUTPUT_IO", message, file=file)


def _free_space(file: Path) -> str:
    folder = next((folder for folder in (file, *file.parents) if folder.is_dir()), Path("/"))
    try:
        return f"{format_size(shutil.disk_usage(folder).free)} are free"
    except OSError:
        return "how much is free cannot be told"
