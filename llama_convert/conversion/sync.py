"""What the disk does and says: writing files safely, waiting until they are on disk, and its failures."""

from __future__ import annotations

import errno
import os
import shutil
import stat
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


def is_own(status: os.stat_result, owner: int) -> bool:
    """Whether a file is safe to write to: a regular one of this owner, which no other name leads to."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == owner


def open_own(path: Path, flags: int) -> int:
    """Open a file in a staging folder for writing; make it if there is none.

    What is there and is not safe to write to, for example a link to another file, is removed, never written
    to. The owner of the folder decides whose files are: some network file systems report another user than
    the one who writes.

    Raises:
        OSError: it cannot be opened.
    """
    while True:
        with suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        descriptor = _open_if_own(path, flags)
        if descriptor is not None:
            return descriptor
        remove(path)


def _open_if_own(path: Path, flags: int) -> int | None:
    """Open a file that exists, if it is safe to write to."""
    owner = path.parent.stat().st_uid
    try:
        if not is_own(path.lstat(), owner):
            return None
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if is_own(os.fstat(descriptor), owner):
        return descriptor
    os.close(descriptor)
    return None


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet.

    Raises:
        OSError: it exists, or cannot be written.
    """
    with path.open("xb") as file:
        file.write(content)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
