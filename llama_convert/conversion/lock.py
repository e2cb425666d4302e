"""One run at a time in a folder, and a second one is told of the first."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from llama_convert.errors import ConflictError, InputError, OutputError
from llama_convert.formats.files import read_small

LOCK = ".lock"
_MAX_BYTES = 1 << 16


class Lock:
    """A file in the staging folder that is locked as long as a run works there, and that names the run.

    Runs that write a file each share it, and clear nothing away.
    Where the file system has no locks, or says yes to everybody, the run that came last has the folder: the
    file names it, which the others see before they make anything of what is staged theirs.
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
            if self._folder.is_symlink():
                raise ConflictError("OUTPUT_EXISTS", "is a link; it would lead elsewhere", file=self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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

    def _try(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").partition("\n")[0]
            message = f"is being written by {owner or 'another run'}"
            raise ConflictError("OUTPUT_LOCKED", message, file=self._folder.parent) from None
        except OSError:
            pass  # no locks here
        try:
            if os.path.samestat(os.fstat(descriptor), os.lstat(self._path)):
                self._descriptor = descriptor
        except FileNotFoundError:
            pass

    @property
    def is_held(self) -> bool:
        """Whether the folder still is this run's; a shared one is nobody's."""
        if self._shared:
            return False
        try:
            return self._descriptor >= 0 and read_small(self._path, _MAX_BYTES) == self._name
        except (InputError, OutputError):
            return False

    def check(self) -> None:
        """See whether the folder still is this run's.

        Raises:
            ConflictError: another run has taken it, so there are no locks here.
        """
        if not (self._shared or self.is_held):
            message = "another run has taken it over; there are no locks here"
            raise ConflictError("OUTPUT_LOCKED", message, file=self._folder.parent)

    def release(self) -> None:
        """Let the next one in; leaves no file where there is nothing else in the folder."""
        if self._descriptor < 0:
            return
        try:
            if self.is_held and os.listdir(self._folder) == [LOCK]:
                self._path.unlink()
                self._folder.rmdir()
        except OSError:
            pass  # what stays there is in nobody's way
        os.close(self._descriptor)
        self._descriptor = -1
