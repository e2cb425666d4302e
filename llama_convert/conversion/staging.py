"""The staging folder: files are written in it and become the output only when all of them are complete.

It is inside the output folder, so on the same file system. Files are renamed into place when all of them are
on disk, those that make the folder a model last. A run works in its own `RunFolder` there. Array tasks share
a folder, which the run that finalizes takes over. The next run resumes what a killed run has left: it hashes
the weights and keeps those that match, after undoing an interrupted finalization.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llama_convert.conversion.disk import output_error, remove, remove_if_possible, sync, write_new
from llama_convert.conversion.finalize import FINALIZING, Finalization
from llama_convert.conversion.journal import JOURNAL, Journal, journal_name
from llama_convert.conversion.ownership import LOCK, Lock, RunFolder, takeover_error
from llama_convert.errors import ConflictError, InputError, OutputError, RefusedError, UsageError
from llama_convert.text import listed
from llama_convert.units import format_size

STAGING = ".llama-convert"
"""Name of the staging folder in the output folder."""
SHARED = "shared"
"""Name of the folder in the staging folder where array tasks work."""
_RENAME_TEST = f"{STAGING}-probe"
PERMANENT_ERRORS = (InputError, UsageError, RefusedError)
"""Errors that running the same command again does not solve: nothing is kept for a resume."""


class Staging:
    """A context in which files are staged; `finalize` makes them the output.

    Leaving the context removes all staged files, unless something is finished and the error that ends the run
    may not end the next one: then they are kept for a resume.
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
        """Check that the output may be written to the folder.

        Args:
            destination: the output folder.
            overwrite: whether a model in the folder may be replaced.
            fsync: whether to flush files to disk; without it, no guarantee survives a power cut.
            shared: whether other runs may stage other files of the same output.
            private: whether no other process can find the folder, so that no other run can use it.

        Raises:
            ConflictError: the folder holds something already.
        """
        self.destination = destination
        self._folder = destination / STAGING
        self._run_folder = None if shared or private else RunFolder(self._folder)
        self.path = self._run_folder.path if self._run_folder else self._folder / ("" if private else SHARED)
        """Where files are staged."""
        self.journal: Journal | None = None
        """What is written so far; set by `open_journal`."""
        self.is_finalized = False
        """Whether the whole output is in place, from this run or an earlier one."""
        self._plan = ""
        self._sync = sync if fsync else _no_sync
        self.may_replace = overwrite
        """Whether a model in the output folder may be replaced."""
        self._lock = Lock(self._folder, shared=shared)
        self._shared = shared
        self._private = private
        self._created_folders: list[Path] = []
        for path in (destination, *destination.parents):
            if os.path.lexists(path) and not path.is_dir():
                message = (
                    f"Is a link to {os.readlink(path)}, which does not exist. The output is a folder."
                    if path.is_symlink()
                    else "Is a file, but the output is a folder."
                )
                raise ConflictError("OUTPUT_EXISTS", message, file=path)
        if not os.path.lexists(self._folder):
            self.check_destination()

    def check_destination(self) -> None:
        """Check that the output folder is empty or that a model in it may be replaced.

        Raises:
            ConflictError: it holds other files.
        """
        if self.may_replace or not self.destination.is_dir():
            return
        present = {entry.name for entry in self.destination.iterdir()} - {STAGING, _RENAME_TEST}
        if present:
            raise ConflictError(
                "OUTPUT_EXISTS",
                f"Not empty (holds {listed(present)}).",
                file=self.destination,
                hint="Choose another folder, or pass --overwrite to replace a model in it.",
            )

    def __enter__(self) -> Staging:
        try:
            for folder in reversed([self.destination, *self.destination.parents]):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    self._created_folders.append(folder)
            self._lock.acquire()
            if self._run_folder:
                self._run_folder.take_over()
                self._undo_interrupted_finalization(self.path)
                self._test_rename()
            elif self._private:
                self.path.mkdir(exist_ok=True)
            else:
                self._join_shared_folder()
        except BaseException as error:
            is_lost = self._run_folder is not None and self._run_folder.is_lost
            self._leave(keep=True)
            if isinstance(error, OSError) and is_lost:
                raise takeover_error(self.destination) from error
            if isinstance(error, OSError):
                raise output_error("Cannot write to the folder", error, self.destination) from error
            raise
        return self

    def _join_shared_folder(self) -> None:
        """Create the folder that array tasks share, and move into it what killed runs have left.

        Tasks that start together may take the leftovers from one another. They retry after a random pause,
        until one of them has finished the move.
        """
        pause = 0.01
        while True:
            run_folder = RunFolder(self._folder)
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                if not run_folder.other_entries(exclude=SHARED):
                    return
                run_folder.take_over(exclude=SHARED)
                self._undo_interrupted_finalization(run_folder.path)
                run_folder.move_files_to(self.path)
            except (ConflictError, FileNotFoundError):
                time.sleep(random.uniform(0, pause))
                pause = min(2 * pause, 1)

    def _undo_interrupted_finalization(self, folder: Path) -> None:
        """Move files that a killed run has finalized back, unless its output is complete."""
        interrupted = Finalization.read(folder)
        if interrupted.files and not interrupted.is_complete(self.destination):
            interrupted.undo(folder, self.destination, self._sync)

    def _test_rename(self) -> None:
        """Rename a test file into the output folder: fail now rather than hours later."""
        source, target = self.path / ".probe", self.destination / _RENAME_TEST
        remove_if_possible(source)
        try:
            write_new(source, b"")
            os.replace(source, target)
            target.unlink(missing_ok=True)  # another run may have replaced and removed it
        finally:
            remove_if_possible(source)

    def is_already_finalized(self, plan: str, *, restart: bool = False) -> bool:
        """Return whether a run of the same plan was killed after it had finalized the whole output.

        Args:
            plan: the plan's fingerprint.
            restart: ignore earlier runs.
        """
        self._plan = plan
        interrupted = Finalization.read(self.path)
        self.is_finalized = (
            interrupted.is_complete(self.destination) and interrupted.plan == plan and not restart
        )
        return self.is_finalized

    def open_journal(self, plan: str, files: Collection[str], *, restart: bool = False) -> Journal:
        """Open the journal of an earlier run of the same plan; remove what any other run has staged.

        Args:
            plan: the plan's fingerprint.
            files: the names of the files with weights.
            restart: remove everything in any case.

        Raises:
            OutputError: the staging folder cannot be read or written.
        """
        self._plan = plan
        try:
            self.journal = Journal(self.path / JOURNAL, plan, restart=restart)
            if not self._shared:
                resumable = [*files, *map(journal_name, files)] if self.journal.is_resumed else []
                self._clear(exclude=(JOURNAL, FINALIZING, *resumable))
        except OSError as error:
            raise output_error("Cannot write to the folder", error, self.path) from error
        return self.journal

    def check_space(self, needed: int) -> None:
        """Check that the whole output fits on the disk, counting what is already staged.

        Raises:
            OutputError: it does not fit.
        """
        try:
            staged = sum(file.lstat().st_blocks * 512 for file in self.path.iterdir())
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise output_error("Cannot read the folder", error, self.path) from error
        if free + staged < needed:
            message = f"Needs {format_size(needed - staged)} of disk space; {format_size(free)} is free."
            raise OutputError("OUTPUT_SPACE", message, file=self.destination)

    def _clear(self, exclude: Collection[str] = ()) -> None:
        """Remove staged files; last the list of a finalization, which records which files are in place."""
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == FINALIZING):
            if entry.name not in (LOCK, *exclude):
                remove(entry)

    def is_resumable_after(self, error: BaseException) -> bool:
        """Return whether something is finished that the next run can reuse after this error."""
        return self._has_progress and not isinstance(error, PERMANENT_ERRORS)

    @property
    def _has_progress(self) -> bool:
        units = self.path.glob(f"{journal_name('')}*")
        return bool(
            self.journal and (self.journal.entries or any(units) or Finalization.read(self.path).files)
        )

    def __exit__(self, kind: object = None, error: BaseException | None = None, *_: object) -> None:
        is_untouched = self.journal is None
        is_lost = isinstance(error, Exception) and not os.path.lexists(self.path)
        self._leave(keep=error is not None and (is_untouched or self.is_resumable_after(error)))
        if is_lost:
            raise takeover_error(self.destination) from error

    def _leave(self, *, keep: bool) -> None:
        """Release the folder; removes everything in it unless ``keep`` is set or other runs share it."""
        if self.journal:
            self.journal.close()
        with suppress(OSError):  # the next run removes leftovers
            if not (keep or self._shared):
                self._clear()
        if self._run_folder:
            self._run_folder.release()
        self._lock.release()
        for folder in reversed(self._created_folders):
            try:
                folder.rmdir()
            except OSError:
                break  # not empty

    @contextmanager
    def reading_staged_files(self) -> Iterator[None]:
        """Turn errors of reading into errors of the output: the source is right, and a resume can succeed.

        Raises:
            OutputError: a staged file cannot be read.
        """
        try:
            yield
        except InputError as error:
            raise OutputError("OUTPUT_IO", error.message, file=error.file) from error

    @property
    def files(self) -> list[Path]:
        """The files staged so far."""
        return sorted(path for path in self.path.iterdir() if not path.name.startswith("."))

    def write(self, name: str, content: bytes) -> None:
        """Stage a small file. It is on disk when this returns.

        Raises:
            OutputError: the file cannot be written.
        """
        path = self.path / name
        try:
            remove(path)
            write_new(path, content)
            self._sync(path)
        except OSError as error:
            remove_if_possible(path)
            raise output_error("Cannot write the file", error, path) from error

    def remove(self, name: str) -> None:
        """Remove a staged file, so that it does not become part of the output."""
        remove_if_possible(self.path / name)

    def finalize(self) -> dict[str, int]:
        """Make the staged files the output: weights first, config and manifest last.

        With ``--overwrite``, files of an older model are removed first, its config before its weights.

        Returns:
            Bytes of each file of the output, by name.
        """
        try:
            finalization = Finalization.read(self.path)
            if not self.is_finalized:
                finalization = self._write_finalization()
                finalization.rename_files(self.path, self.destination, self._sync)
            sizes = {name: (self.destination / name).stat().st_size for name in finalization.files}
            self._sync_destination()
        except OSError as error:
            raise output_error("Cannot move files into the folder", error, self.destination) from error
        self.is_finalized = True
        return sizes

    def _write_finalization(self) -> Finalization:
        """Flush all staged files to disk, then write the list of them."""
        self.check_destination()
        for file in self.files:
            try:
                self._sync(file)
            except OSError:
                remove_if_possible(file)
                raise
        interrupted = Finalization.read(self.path)
        finalization = Finalization.of(self._plan, self.files, self.destination, interrupted)
        finalization.write(self.path, self._sync)
        self._sync(self._folder)
        return finalization

    def _sync_destination(self) -> None:
        """Flush the output folder and the folders around it, which an earlier run may have created."""
        self._sync(self.destination)
        device = self.destination.stat().st_dev
        for folder in self.destination.resolve().parents:
            if folder.stat().st_dev != device:
                break
            with suppress(PermissionError):  # no run created a folder that it may not read
                self._sync(folder)


def _no_sync(_: Path) -> None:
    """Do nothing: replaces `sync` with ``--no-fsync``."""
