"""Who may change an output folder: the run whose own folder is in the staging folder, and no other.

Locks do nothing on some file systems, so correctness does not depend on them. Each run makes a folder of its
own, takes into it what all other runs have staged, and removes their folders. Everything that a run changes
in the output folder is a rename from or to its own folder. So a run whose folder was taken can change nothing
more, from that moment on; and of two runs that take each other's folders, only one can succeed, because a
rename needs both folders to be where they were.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from llama_convert.conversion.lock import LOCK
from llama_convert.conversion.sync import is_own
from llama_convert.errors import ConflictError

_TAKEN = ".taken-"


class Claim:
    """A folder of one run's own, below the staging folder; its name cannot be guessed."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._is_made = False
        self.path = staging / f"run-{secrets.token_hex(8)}"

    def others(self, but: str = "") -> list[Path]:
        """What other runs have in the staging folder, except ``but``."""
        ours = (LOCK, self.path.name, but)
        return sorted(entry for entry in self._staging.iterdir() if entry.name not in ours)

    def take(self, but: str = "") -> None:
        """Make the folder, and move into it the files of all other runs.

        The folders are listed after this run's own is made: of two runs, the one whose folder is made later
        finds the other's. They are removed, too: a machine that keeps an open folder in memory, as NFS
        clients do, then finds nothing in it, and can put nothing there.

        Args:
            but: the name of a folder that is left as it is.

        Raises:
            ConflictError: meanwhile another run has taken this one's folder.
            OSError: the file system refuses.
        """
        self._make()
        try:
            while others := self.others(but):
                for other in others:
                    self._move(other)
                self._flatten()
        except FileNotFoundError:
            self.check()
            raise

    def _make(self) -> None:
        """Make the folder, also if a run that ends removes the staging folder meanwhile."""
        while True:
            self._staging.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self.path.mkdir(mode=0o700)
                self._is_made = True
                return

    def _flatten(self) -> None:
        """Move the files of folders that were taken up into this one; remove the folders, and all else."""
        while folders := [entry for entry in self._taken() if entry.is_dir(follow_symlinks=False)]:
            for folder in folders:
                for inside in Path(folder).iterdir():
                    self._move(inside)
                try:
                    os.rmdir(folder)
                except OSError as error:
                    if error.errno not in (
                        errno.ENOTEMPTY,
                        errno.EEXIST,
                    ):  # its run has just put a file there
                        raise
        for entry in self._taken():
            os.unlink(entry)

    def _taken(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.path) as entries:
            return [entry for entry in entries if entry.name.startswith(_TAKEN)]

    def _move(self, entry: Path) -> None:
        """Move something into this folder: by its name, if it is a file that is safe to write to."""
        target = self.path / f"{_TAKEN}{secrets.token_hex(8)}"
        try:
            if is_own(entry.lstat(), self.path.stat().st_uid) and not entry.name.startswith(_TAKEN):
                named = self.path / entry.name
                target = target if os.path.lexists(named) else named
            os.rename(entry, target)
        except FileNotFoundError:  # another run has taken it, or this one
            self.check()

    def give(self, folder: Path) -> None:
        """Move all files to a folder that others use, except those that it has; then remove this one.

        Raises:
            ConflictError: meanwhile another run has taken this one's folder.
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
        """Make sure that the folder is still this run's.

        Raises:
            ConflictError: another run has taken it.
        """
        if self.is_lost:
            raise taken_over(self._staging.parent)

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken the folder."""
        return self._is_made and not os.path.lexists(self.path)

    def release(self) -> None:
        """Remove the folder, if it is empty."""
        with suppress(OSError):
            self.path.rmdir()


def taken_over(destination: Path) -> ConflictError:
    """What a run reports whose folder is gone."""
    return ConflictError(
        "OUTPUT_LOCKED",
        "Another run into this folder has started and taken over.",
        file=destination,
        hint="Wait for the other run to finish.",
    )
