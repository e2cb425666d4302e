"""Nothing counts as written until it is published.

Files are made in a staging folder inside the output folder (so on its file system) and renamed into place
when all of them are complete and on disk, the ones that make a folder a model last.  A run holds a lock in
the staging folder: a second run is told of the first.  What a stopped run leaves there, the next one goes on
from: weights are looked at again and kept if they are good, and a publication half done is first undone.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from pathlib import Path

from llama_convert.conversion.journal import JOURNAL, Journal, journal_of
from llama_convert.conversion.lock import LOCK, Lock
from llama_convert.conversion.publication import PUBLISHING, Publication
from llama_convert.conversion.sync import discard, failure, sync
from llama_convert.errors import ConflictError, InputError, OutputError, RefusedError, UsageError
from llama_convert.units import format_size

STAGING = ".llama-convert"
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
        source: Path,
        overwrite: bool,
        fsync: bool = True,
        shared: bool = False,
    ) -> None:
        """Check that the output may go there.

        Args:
            destination: the output folder.
            source: the input folder.
            overwrite: whether a model that is there may be replaced.
            fsync: whether to wait for the disk, without which no promise holds beyond a power cut.
            shared: whether others may work here too, each on files of its own.

        Raises:
            UsageError: the output folder is, or lies in, the source.
            ConflictError: it holds something already.
        """
        self.destination = destination
        self.path = destination / STAGING
        self.journal: Journal | None = None
        """What was finished, once `resume` was called."""
        self.is_published = False
        """Whether the whole output stands in its place, be it from an earlier run."""
        self._plan = ""
        self._sync = sync if fsync else _trust
        self._overwrite = overwrite
        self._lock = Lock(self.path, shared=shared)
        self._shared = shared
        self._created: list[Path] = []
        resolved, origin = destination.resolve(), source.resolve()
        if resolved == origin or origin in resolved.parents:
            message = "the output folder lies in the input folder"
            raise UsageError("OUTPUT_IS_INPUT", message, file=destination, hint="choose one beside it")
        if destination.exists() and not destination.is_dir():
            raise ConflictError("OUTPUT_EXISTS", "is a file; the output is a folder", file=destination)
        self._refuse_foreign_files(Publication.read(self.path).files)

    def _refuse_foreign_files(self, but: Iterable[str] = ()) -> None:
        """The output folder may hold what a stopped run left, and with `overwrite` an older model."""
        if self._overwrite or not self.destination.is_dir():
            return
        ours = {STAGING, _PROBE, *but}
        present = sorted(entry.name for entry in self.destination.iterdir() if entry.name not in ours)
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
            if not self._shared:
                self._remove_links()
                self._probe()
        except BaseException as error:
            self._leave(keep=True)
            if isinstance(error, OSError):
                raise failure("cannot be written to", error, self.destination) from error
            raise
        return self

    def _remove_links(self) -> None:
        """Remove what would lead elsewhere when it is written to: we make plain files alone."""
        for entry in self.path.iterdir():
            status = entry.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                _remove(entry)

    def _probe(self) -> None:
        """Learn now, not after hours, whether files can be renamed here."""
        probe, there = self.path / ".probe", self.destination / _PROBE
        try:
            probe.write_bytes(b"")
            os.replace(probe, there)
            there.unlink()
        finally:
            discard(probe)

    def resume(self, plan: str, files: Collection[str], *, restart: bool = False) -> Journal:
        """What an earlier run of the same plan has finished; what is left of any other is cleared away.

        Args:
            plan: the plan's fingerprint.
            files: the names of the files whose weights the journal tells of.
            restart: clear it away in any case.

        Raises:
            ConflictError: a run of another plan had published its output, all but for telling so.
            OutputError: the staging folder cannot be read or written.
        """
        self._plan = plan
        try:
            begun = Publication.read(self.path)
            if begun.is_complete(self.path, self.destination):
                self.is_published = begun.plan == plan and not restart
                if not self.is_published:
                    self._refuse_foreign_files()
            elif begun.files:
                begun.undo(self.path, self.destination)
            self.journal = Journal(self.path / JOURNAL, plan, restart=restart)
            if not (self.is_published or self._shared):
                kept = [*files, *map(journal_of, files)] if self.journal.is_resumed else []
                kept += [] if begun.is_complete(self.path, self.destination) else [PUBLISHING]
                self._clear(but=(JOURNAL, *kept))
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
                _remove(entry)

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
        self._leave(keep=error is not None and (untouched or self.keeps(error)))

    def _leave(self, *, keep: bool) -> None:
        if self.journal:
            self.journal.close()
        try:
            if not keep and self._lock.is_held:
                self._clear()
        except OSError:
            pass  # the next run clears it away
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
        """A small file, on disk when this returns."""
        self.write_with(name, lambda path: path.write_bytes(content))

    def write_with(self, name: str, writer: Callable[[Path], object]) -> None:
        """A file that ``writer`` writes, given its path."""
        self._lock.check()
        path = self.path / name
        try:
            writer(path)
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
        self._lock.check()
        try:
            publication = Publication.read(self.path)
            if not self.is_published:
                publication = self._begin_to_publish()
                publication.carry_out(self.path, self.destination, self._sync)
            sizes = {name: (self.destination / name).stat().st_size for name in publication.files}
            for folder in (self.destination, *(folder.parent for folder in self._created)):
                self._sync(folder)
        except OSError as error:
            raise failure("cannot be moved into place", error, self.destination) from error
        self.is_published = True
        return sizes

    def _begin_to_publish(self) -> Publication:
        """Bring all that is staged to disk, and then the list of it."""
        self._refuse_foreign_files()
        for file in self.files:
            try:
                self._sync(file)
            except OSError:
                discard(file)
                raise
        names = [file.name for file in self.files]
        begun = Publication.read(self.path)
        publication = Publication.of(self._plan, names, self.destination, begun)
        self.write(PUBLISHING, json.dumps(asdict(publication)).encode())
        self._sync(self.path)
        return publication


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _trust(_: Path) -> None:
    """In place of `sync`, where nobody minds losing it all."""
