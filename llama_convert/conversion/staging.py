"""Nothing counts as written until it is published.

Files are made in a staging folder inside the output folder (so on its file system) and renamed into place
when all of them are complete and on disk, the ones that make a folder a model last.  A run works in its own
folder there, its `Claim`; array tasks share one, which the run that publishes takes over.  What a killed
run leaves there, the next one resumes: weights are hashed and kept if they match, and a publication that was
interrupted is first undone.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from llama_convert.conversion.claim import Claim, taken_over
from llama_convert.conversion.finalize import PUBLISHING, Publication
from llama_convert.conversion.journal import JOURNAL, Journal, journal_of
from llama_convert.conversion.lock import LOCK, Lock
from llama_convert.conversion.sync import discard, failure, remove, sync, write_new
from llama_convert.errors import ConflictError, InputError, OutputError, RefusedError, UsageError
from llama_convert.units import format_size

STAGING = ".llama-convert"
SHARED = "shared"
"""The folder in the staging folder where array tasks work."""
_PROBE = f"{STAGING}-probe"
FOR_GOOD = (InputError, UsageError, RefusedError)
"""Errors that running again does not help: nothing is kept for it."""


class Staging:
    """A folder to write into; what is in it when `publish` is called becomes the output.

    Leaving the context removes every trace, unless something is finished and what ends the run may not end
    the next: then it stays for that.
    """

    def __init__(
        self,
        destination: Path,
        *,
        overwrite: bool,
        fsync: bool = True,
        shared: bool = False,
        private: bool = False,
    ) -> None:
        """Check that the output may go there.

        Args:
            destination: the output folder.
            overwrite: whether a model that is there may be replaced.
            fsync: whether to wait for the disk, without which no promise holds beyond a power cut.
            shared: whether others may work here too, each on files of its own.
            private: whether no other process can find the folder, so no other run can work there.

        Raises:
            ConflictError: it holds something already.
        """
        self.destination = destination
        self._folder = destination / STAGING
        self._claim = None if shared or private else Claim(self._folder)
        self.path = self._claim.path if self._claim else self._folder / (SHARED if not private else "")
        """Where files are staged."""
        self.journal: Journal | None = None
        """What was finished, once `resume` was called."""
        self.is_published = False
        """Whether the whole output stands in its place, be it from an earlier run."""
        self._plan = ""
        self._sync = sync if fsync else _trust
        self.may_replace = overwrite
        """Whether an older model may be replaced."""
        self._lock = Lock(self._folder, shared=shared)
        self._shared = shared
        self._private = private
        self._created: list[Path] = []
        for place in (destination, *destination.parents):
            if os.path.lexists(place) and not place.is_dir():
                kind = (
                    f"a link to {os.readlink(place)}, which does not exist"
                    if place.is_symlink()
                    else "a file"
                )
                raise ConflictError("OUTPUT_EXISTS", f"is {kind}; the output is a folder", file=place)
        if not os.path.lexists(self._folder):
            self.refuse_other_files()

    def refuse_other_files(self) -> None:
        """Refuse an output folder that holds something, unless an older model may be replaced.

        Raises:
            ConflictError: it does.
        """
        if self.may_replace or not self.destination.is_dir():
            return
        present = sorted({entry.name for entry in self.destination.iterdir()} - {STAGING, _PROBE})
        if present:
            more = f" and {len(present) - 3} more" if len(present) > 3 else ""
            raise ConflictError(
                "OUTPUT_EXISTS",
                f"holds {', '.join(present[:3])}{more}",
                file=self.destination,
                hint="choose another folder, or replace what is there with --overwrite",
            )

    def __enter__(self) -> Staging:
        try:
            for folder in reversed([self.destination, *self.destination.parents]):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    self._created.append(folder)
            self._lock.take()
            if self._claim:
                self._claim.take()
                self._take_back(self.path)
                self._probe()
            elif self._private:
                self.path.mkdir(exist_ok=True)
            else:
                self._join()
        except BaseException as error:
            is_lost = self._claim is not None and self._claim.is_lost
            self._leave(keep=True)
            if isinstance(error, OSError) and is_lost:
                raise taken_over(self.destination) from error
            if isinstance(error, OSError):
                raise failure("cannot be written to", error, self.destination) from error
            raise
        return self

    def _join(self) -> None:
        """Make the folder that array tasks share, and move into it what killed runs have left in theirs.

        The tasks that start together may take this from one another; after a random pause, one finds it done.
        """
        pause = 0.01
        while True:
            claim = Claim(self._folder)
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                if not claim.others(but=SHARED):
                    return
                claim.take(but=SHARED)
                self._take_back(claim.path)
                claim.give(self.path)
            except (ConflictError, FileNotFoundError):
                time.sleep(random.uniform(0, pause))
                pause = min(2 * pause, 1)

    def _take_back(self, folder: Path) -> None:
        """Undo what a run that was killed has published, if it is not all of its output."""
        begun = Publication.read(folder)
        if begun.files and not begun.is_complete(self.destination):
            begun.undo(folder, self.destination, self._sync)

    def _probe(self) -> None:
        """Learn now, not after hours, whether files can be renamed here."""
        probe, there = self.path / ".probe", self.destination / _PROBE
        discard(probe)
        try:
            write_new(probe, b"")
            os.replace(probe, there)
            there.unlink(missing_ok=True)  # another run's may be in its place, and be gone
        finally:
            discard(probe)

    def recover(self, plan: str, *, restart: bool = False) -> bool:
        """Whether a run of the same plan has published all of its output, and was killed only then.

        Args:
            plan: the plan's fingerprint.
            restart: that does not count.
        """
        self._plan = plan
        begun = Publication.read(self.path)
        self.is_published = begun.is_complete(self.destination) and begun.plan == plan and not restart
        return self.is_published

    def resume(self, plan: str, files: Collection[str], *, restart: bool = False) -> Journal:
        """What an earlier run of the same plan has finished; what is left of any other is cleared away.

        Args:
            plan: the plan's fingerprint.
            files: the names of the files whose weights the journal tells of.
            restart: clear it away in any case.

        Raises:
            OutputError: the staging folder cannot be read or written.
        """
        self._plan = plan
        try:
            self.journal = Journal(self.path / JOURNAL, plan, restart=restart)
            if not self._shared:
                kept = [*files, *map(journal_of, files)] if self.journal.is_resumed else []
                self._clear(but=(JOURNAL, PUBLISHING, *kept))
        except OSError as error:
            raise failure("cannot be written to", error, self.path) from error
        return self.journal

    def check_space(self, needed: int) -> None:
        """See whether the whole output fits, what is staged already counted in.

        Raises:
            OutputError: it does not.
        """
        try:
            held = sum(file.lstat().st_blocks * 512 for file in self.path.iterdir())
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise failure("cannot be looked at", error, self.path) from error
        if free + held < needed:
            message = f"needs {format_size(needed - held)} more, {format_size(free)} are free"
            raise OutputError("OUTPUT_SPACE", message, file=self.destination)

    def _clear(self, but: Collection[str] = ()) -> None:
        """Remove all but the files that are named; of ours the list last, as it tells what is published."""
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == PUBLISHING):
            if entry.name not in (LOCK, *but):
                remove(entry)

    def keeps(self, error: BaseException) -> bool:
        """Whether something is finished that the next run can go on from, after this error."""
        return self._has_begun and not isinstance(error, FOR_GOOD)

    @property
    def _has_begun(self) -> bool:
        units = self.path.glob(f"{journal_of('')}*")
        return bool(
            self.journal and (self.journal.entries or any(units) or Publication.read(self.path).files)
        )

    def __exit__(self, kind: object = None, error: BaseException | None = None, *_: object) -> None:
        untouched = self.journal is None  # by this run
        is_lost = isinstance(error, Exception) and not os.path.lexists(self.path)
        self._leave(keep=error is not None and (untouched or self.keeps(error)))
        if is_lost:
            raise taken_over(self.destination) from error

    def _leave(self, *, keep: bool) -> None:
        if self.journal:
            self.journal.close()
        with suppress(OSError):  # the next run clears it away
            if not (keep or self._shared):
                self._clear()
        if self._claim:
            self._claim.release()
        self._lock.release()
        for folder in reversed(self._created):
            try:
                folder.rmdir()
            except OSError:
                break  # there is something in it

    @property
    def files(self) -> list[Path]:
        """What has been staged so far."""
        return sorted(path for path in self.path.iterdir() if not path.name.startswith("."))

    def write(self, name: str, content: bytes) -> None:
        """A small file, on disk when this returns.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.path / name
        try:
            remove(path)
            write_new(path, content)
            self._sync(path)
        except OSError as error:
            discard(path)
            raise failure("cannot be written", error, path) from error

    def remove(self, name: str) -> None:
        """A file that is not to become part of the output after all."""
        discard(self.path / name)

    def publish(self) -> dict[str, int]:
        """Make the staged files the output: weights first, config and manifest last.

        Files of an older model that stands here (``--overwrite``) go first, its config before its weights.

        Returns:
            Bytes of each file of the output.
        """
        try:
            publication = Publication.read(self.path)
            if not self.is_published:
                publication = self._begin_to_publish()
                publication.carry_out(self.path, self.destination, self._sync)
            sizes = {name: (self.destination / name).stat().st_size for name in publication.files}
            self._sync_destination()
        except OSError as error:
            raise failure("cannot be moved into place", error, self.destination) from error
        self.is_published = True
        return sizes

    def _begin_to_publish(self) -> Publication:
        """Bring all that is staged to disk, and then the list of it."""
        self.refuse_other_files()
        for file in self.files:
            try:
                self._sync(file)
            except OSError:
                discard(file)
                raise
        publication = Publication.of(self._plan, self.files, self.destination, Publication.read(self.path))
        publication.write(self.path, self._sync)
        self._sync(self._folder)
        return publication

    def _sync_destination(self) -> None:
        """Bring the output folder to disk, and the folders around it: an earlier run may have made them."""
        self._sync(self.destination)
        device = self.destination.stat().st_dev
        for folder in self.destination.resolve().parents:
            if folder.stat().st_dev != device:
                break
            with suppress(PermissionError):  # a folder that may not be read was not made by a run of ours
                self._sync(folder)


def _trust(_: Path) -> None:
    """In place of `sync`, where nobody minds losing it all."""
