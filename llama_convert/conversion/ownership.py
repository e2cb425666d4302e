"""Ownership of an output folder: which run may write to it.

`Lock` detects a second run early, on file systems that support locks. Correctness does not depend on it: each
run has a private `RunFolder` in the staging folder, moves the staged files of all other runs into it, and
removes their folders. A run changes the output folder only by renaming files from or to its own folder.
A run whose folder was taken over therefore cannot change anything more. If two runs take over each other's
folders, only one can succeed, because a rename fails once either folder has moved.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from llama_convert.conversion.disk import is_safe_to_write, remove
from llama_convert.errors import ConflictError

LOCK = ".lock"
_TAKEN = ".taken-"


class Lock:
    """A file in the staging folder that stays locked while a run uses the folder. It names the run.

    The lock spares the second run its work and the first one the loss of its folder. Array tasks share it.

    Args:
        folder: the staging folder.
        shared: whether other runs may hold the lock at the same time.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self._folder = folder
        self._shared = shared
        self._path = folder / LOCK
        self._descriptor = -1
        now = time.time()
        since = time.strftime("%H:%M:%S", time.localtime(now))
        self._owner = f"process {os.getpid()} on {socket.gethostname()} since {since}\n{now}".encode()

    def acquire(self) -> None:
        """Create the folder and lock it. Retries if the folder is removed and re-created meanwhile.

        Raises:
            ConflictError: another run holds the lock.
            OSError: the folder cannot be created or written to.
        """
        while self._descriptor < 0:
            if os.path.lexists(self._folder) and (self._folder.is_symlink() or not self._folder.is_dir()):
                message = "Not a folder, or a link to one. The output is staged here."
                raise ConflictError("OUTPUT_EXISTS", message, file=self._folder, hint="Remove it.")
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = self._open()
            except FileNotFoundError:
                continue
            try:
                self._lock(descriptor)
            finally:
                if self._descriptor < 0:
                    os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        written = 0
        while written < len(self._owner):
            count = os.pwrite(self._descriptor, self._owner[written:], written)
            if not count:
                raise OSError(errno.EIO, "the file system accepts no bytes")
            written += count

    def _open(self) -> int:
        """Open the lock file; removes anything in its place that leads to another file."""
        with suppress(FileNotFoundError):
            status = self._path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                remove(self._path)
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)

    def _lock(self, descriptor: int) -> None:
        """Lock an open file; keeps the descriptor if the file is still the one in the folder."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").partition("\n")[0]
            message = f"Being written by {owner or 'another run'}."
            hint = "Wait for the other run to finish."
            raise ConflictError("OUTPUT_LOCKED", message, file=self._folder.parent, hint=hint) from None
        except OSError:
            pass  # the file system has no locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(self._path)):
                self._descriptor = descriptor

    def release(self) -> None:
        """Unlock; removes the lock file and the folder if the folder holds nothing else."""
        if self._descriptor < 0:
            return
        with suppress(OSError):  # a leftover lock file is harmless
            if not self._shared and os.listdir(self._folder) == [LOCK] and self._is_intact():
                self._path.unlink()
                self._folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = -1

    def _is_intact(self) -> bool:
        """Return whether the lock file is still the one that was locked and names this run."""
        if not os.path.samestat(os.fstat(self._descriptor), self._path.lstat()):
            return False
        return os.pread(self._descriptor, len(self._owner) + 1, 0) == self._owner


class RunFolder:
    """One run's private folder in the staging folder, with an unpredictable name.

    Args:
        staging: the staging folder.
    """

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._is_made = False
        self.path = staging / f"run-{secrets.token_hex(8)}"

    def other_entries(self, exclude: str = "") -> list[Path]:
        """Return what other runs have in the staging folder, except ``exclude``."""
        ignored = (LOCK, self.path.name, exclude)
        return sorted(entry for entry in self._staging.iterdir() if entry.name not in ignored)

    def take_over(self, exclude: str = "") -> None:
        """Create the folder and move the files of all other runs into it.

        The other folders are listed after this run's own folder exists: of two runs, the one whose folder is
        created later finds the other's. The other folders are also removed. A machine that caches an open
        folder, as NFS clients do, then finds it empty and cannot add files to it.

        Args:
            exclude: the name of a folder to leave alone.

        Raises:
            ConflictError: another run has taken over this run's folder meanwhile.
            OSError: the file system refuses.
        """
        self._make()
        try:
            while others := self.other_entries(exclude):
                for other in others:
                    self._move_in(other)
                self._flatten()
        except FileNotFoundError:
            self.check()
            raise

    def _make(self) -> None:
        """Create the folder; retries if a run that ends removes the staging folder meanwhile."""
        while True:
            self._staging.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self.path.mkdir(mode=0o700)
                self._is_made = True
                return

    def _flatten(self) -> None:
        """Move files out of folders that were taken over, then remove the folders and everything else."""
        while folders := [entry for entry in self._taken_entries() if entry.is_dir(follow_symlinks=False)]:
            for folder in folders:
                for inner in Path(folder).iterdir():
                    self._move_in(inner)
                try:
                    os.rmdir(folder)
                except OSError as error:  # its run has just added a file: the next round moves it
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
        for entry in self._taken_entries():
            os.unlink(entry)

    def _taken_entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.path) as entries:
            return [entry for entry in entries if entry.name.startswith(_TAKEN)]

    def _move_in(self, entry: Path) -> None:
        """Move an entry into this folder; it keeps its name only if it is a file that is safe to write to."""
        target = self.path / f"{_TAKEN}{secrets.token_hex(8)}"
        try:
            if is_safe_to_write(entry.lstat(), self.path.stat().st_uid) and not entry.name.startswith(_TAKEN):
                same_name = self.path / entry.name
                target = target if os.path.lexists(same_name) else same_name
            os.rename(entry, target)
        except FileNotFoundError:  # another run has moved the entry, or this run's folder
            self.check()

    def move_files_to(self, folder: Path) -> None:
        """Move all files to a folder that other runs use, unless it has them, then remove this folder.

        Raises:
            ConflictError: another run has taken over this run's folder meanwhile.
            OSError: the file system refuses.
        """
        for file in self.path.iterdir():
            if os.path.lexists(folder / file.name):
                file.unlink()
            else:
                os.rename(file, folder / file.name)
        self.check()
        self.path.rmdir()

    def check(self) -> None:
        """Check that the folder still belongs to this run.

        Raises:
            ConflictError: another run has taken it over.
        """
        if self.is_lost:
            raise takeover_error(self._staging.parent)

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken over the folder."""
        return self._is_made and not os.path.lexists(self.path)

    def release(self) -> None:
        """Remove the folder if it is empty."""
        with suppress(OSError):
            self.path.rmdir()


def takeover_error(destination: Path) -> ConflictError:
    """Return the error of a run whose folder another run has taken over."""
    return ConflictError(
        "OUTPUT_LOCKED",
        "Another run into this folder has started and taken over.",
        file=destination,
        hint="Wait for the other run to finish.",
    )
