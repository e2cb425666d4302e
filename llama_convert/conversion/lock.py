"""Who is at work in a folder, for others to see early; where locks do nothing, see `claim`."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from llama_convert.conversion.sync import remove
from llama_convert.errors import ConflictError

LOCK = ".lock"


class Lock:
    """A file in the staging folder that is locked while a run works there, and that names the run.

    It spares a second run the work, and the first the loss of its folder. Array tasks share the lock.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self._folder = folder
        self._shared = shared
        self._path = folder / LOCK
        self._descriptor = -1
        moment = time.time()
        since = time.strftime("%H:%M:%S", time.localtime(moment))
        self._name = f"process {os.getpid()} on {socket.gethostname()} since {since}\n{moment}".encode()

    def take(self) -> None:
        """Make the folder, and hold the lock of the one that is there then, not of one just removed.

        Raises:
            ConflictError: another run holds it.
            OSError: the folder cannot be made or written to.
        """
        while self._descriptor < 0:
            if os.path.lexists(self._folder) and (self._folder.is_symlink() or not self._folder.is_dir()):
                message = "Is not a folder, or a link to one; the output is staged there."
                raise ConflictError("OUTPUT_EXISTS", message, file=self._folder, hint="Remove it.")
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = self._open()
            except FileNotFoundError:
                continue
            try:
                self._try(descriptor)
            finally:
                if self._descriptor < 0:
                    os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        written = 0
        while written < len(self._name):
            count = os.pwrite(self._descriptor, self._name[written:], written)
            if not count:
                raise OSError(errno.EIO, "nothing is taken")
            written += count

    def _open(self) -> int:
        """Open the file; what is in its place and leads to another file is removed, never written to."""
        with suppress(FileNotFoundError):
            status = self._path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                remove(self._path)
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)

    def _try(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").partition("\n")[0]
            message = f"is being written by {owner or 'another run'}"
            raise ConflictError("OUTPUT_LOCKED", message, file=self._folder.parent) from None
        except OSError:
            pass  # no locks here
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(self._path)):
                self._descriptor = descriptor

    def release(self) -> None:
        """Let the next one in; leaves no file where there is nothing else in the folder."""
        if self._descriptor < 0:
            return
        with suppress(OSError):  # what stays there does no harm
            if not self._shared and os.listdir(self._folder) == [LOCK] and self._is_named():
                self._path.unlink()
                self._folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = -1

    def _is_named(self) -> bool:
        """Whether the file is still the one that was locked, and names this run."""
        if not os.path.samestat(os.fstat(self._descriptor), self._path.lstat()):
            return False
        return os.pread(self._descriptor, len(self._name) + 1, 0) == self._name
