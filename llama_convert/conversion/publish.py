"""Nothing counts as written until it is published.

Files are made in a staging folder inside the output folder (so on its file system) and renamed into place
when all of them are complete and on disk, the ones that make a folder a model last.  A run holds a lock in
the staging folder: a second run is told of the first.  What a stopped run leaves there, the next one goes on
from, be it weights that are written or a publication half done.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.conversion.journal import JOURNAL, Journal
from llama_convert.conversion.sync import sync
from llama_convert.errors import ConflictError, OutputError, UsageError
from llama_convert.units import format_size

STAGING = ".llama-convert"
_LOCK = "lock"
_PUBLISHING = "publishing"
"""Lists the files that are being renamed into place and those of an older model, while that is being done."""
_OURS = (_LOCK, JOURNAL, _PUBLISHING)
_LAST = (
    "generation_config.json",
    "checklist.chk",
    "model.safetensors.index.json",
    "config.json",
    "params.json",
    MANIFEST,
)


class Staging:
    """A folder to write into; what is in it when `publish` is called becomes the output.

    Leaving the context removes every trace, unless weights are finished and it is an interruption or the
    machine that ends it: then they stay for the next run.
    """

    def __init__(self, destination: Path, *, source: Path, overwrite: bool) -> None:
        """Check that the output may go there.

        Raises:
            UsageError: the output folder is, or lies in, the source.
            ConflictError: it holds something already.
        """
        self.destination = destination
        self.path = destination / STAGING
        self.journal: Journal | None = None
        """What was finished, once `resume` was called."""
        self._overwrite = overwrite
        self._lock = -1
        self._created: list[Path] = []
        resolved, origin = destination.resolve(), source.resolve()
        if resolved == origin or origin in resolved.parents:
            raise UsageError(
                "OUTPUT_IS_INPUT", "the output folder lies in the input folder", file=destination
            )
        if destination.exists() and not destination.is_dir():
            raise ConflictError("OUTPUT_EXISTS", "is a file; the output is a folder", file=destination)
        self._refuse_foreign_files()

    def _refuse_foreign_files(self) -> None:
        """The output folder may hold what a stopped run left, and with `overwrite` an older model."""
        if self._overwrite or not self.destination.is_dir():
            return
        ours = {STAGING, *self._half_published()}
        present = sorted(entry.name for entry in self.destination.iterdir() if entry.name not in ours)
        if present:
            more = f" and {len(present) - 3} more" if len(present) > 3 else ""
            raise ConflictError(
                "OUTPUT_EXISTS",
                f"holds {', '.join(present[:3])}{more}",
                file=self.destination,
                hint="choose another folder, or replace what is there with --overwrite",
            )

    def _half_published(self, which: str = "files") -> list[str]:
        """The files of a publication that was interrupted; some are renamed, some still staged."""
        try:
            names = json.loads((self.path / _PUBLISHING).read_bytes())[which]
        except (OSError, ValueError, LookupError, TypeError):
            return []
        return [name for name in names if isinstance(name, str) and Path(name).name == name]

    def __enter__(self) -> Staging:
        try:
            for folder in reversed([self.destination, *self.destination.parents]):
                if not folder.exists():
                    folder.mkdir()
                    self._created.append(folder)
            self._take_lock()
            self._probe()
        except OSError as error:
            self._leave(keep=False)
            message = f"cannot be written to: {error.strerror}"
            raise OutputError("OUTPUT_PERMISSION", message, file=self.destination) from error
        return self

    def _take_lock(self) -> None:
        """Hold the lock of the folder that is there when it is held: another run may just have removed it.

        Raises:
            ConflictError: another run holds it.
        """
        while True:
            if self.path.is_symlink():
                raise ConflictError("OUTPUT_EXISTS", "is a link; it would lead elsewhere", file=self.path)
            self.path.mkdir(exist_ok=True)
            try:
                lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(lock, 200).decode(errors="replace") or "another run"
                os.close(lock)
                message = f"is being written by {owner}"
                raise ConflictError("OUTPUT_LOCKED", message, file=self.destination) from None
            except OSError:
                pass  # no locks here; names are checked as they are used
            try:
                if os.path.samestat(os.fstat(lock), (self.path / _LOCK).stat()):
                    break
            except FileNotFoundError:
                pass
            os.close(lock)
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _probe(self) -> None:
        """Learn now, not after hours, whether files can be renamed here."""
        probe, there = self.path / "probe", self.destination / f"{STAGING}-probe"
        probe.write_bytes(b"")
        os.replace(probe, there)
        there.unlink()

    def resume(self, fingerprint: str, *, restart: bool = False) -> Journal:
        """What an earlier run of the same plan has finished; what is left of any other is cleared away.

        Args:
            fingerprint: tells the plan.
            restart: clear it away in any case.

        Raises:
            OutputError: the journal cannot be written.
        """
        path = self.path / JOURNAL
        try:
            journal = Journal(path, fingerprint)
            if restart or journal.is_other or not journal.entries:
                journal.close()
                self._clear()
                journal = Journal(path, fingerprint)
        except OSError as error:
            raise OutputError("OUTPUT_IO", f"cannot be written: {error.strerror}", file=path) from error
        self.journal = journal
        return journal

    def check_space(self, needed: int) -> None:
        """See whether the whole output fits, what is staged already counted in.

        Raises:
            OutputError: it does not.
        """
        held = sum(file.stat().st_blocks * 512 for file in self.path.iterdir())
        free = shutil.disk_usage(self.path).free
        if free + held < needed:
            message = f"needs {format_size(needed - held)} more, {format_size(free)} are free"
            raise OutputError("OUTPUT_SPACE", message, file=self.destination)

    def _clear(self) -> None:
        """Remove what another plan has left, half published files included."""
        for name in self._half_published():
            if not (self.path / name).exists():
                (self.destination / name).unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        of_the_moment = kind is not None and issubclass(kind, OutputError | KeyboardInterrupt | MemoryError)
        half_done = bool(self.journal and self.journal.entries) or bool(self._half_published())
        self._leave(keep=of_the_moment and half_done)

    def _leave(self, *, keep: bool) -> None:
        if self.journal:
            self.journal.close()
        if not keep and (self._lock >= 0 or (self.path.is_dir() and not any(self.path.iterdir()))):
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        for folder in reversed(self._created):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    @property
    def files(self) -> list[Path]:
        """What has been staged so far."""
        return sorted(path for path in self.path.iterdir() if path.name not in _OURS)

    def write(self, name: str, content: bytes) -> None:
        """A small file, on disk when this returns."""
        self.write_with(name, lambda path: path.write_bytes(content))

    def write_with(self, name: str, writer: Callable[[Path], object]) -> None:
        """A file that ``writer`` writes, given its path."""
        path = self.path / name
        try:
            writer(path)
            sync(path)
        except OSError as error:
            raise OutputError("OUTPUT_IO", f"cannot be written: {error.strerror}", file=path) from error

    @property
    def was_publishing(self) -> bool:
        """Whether an earlier run of this plan had everything on disk, and had begun to publish it."""
        return bool(self._half_published())

    def publish(self) -> dict[str, int]:
        """Make the staged files the output: weights first, config and manifest last.

        Files of an older model that stands here (``--overwrite``) go first, its config before its weights.

        Returns:
            Bytes of each file of the output.
        """
        self._refuse_foreign_files()
        try:
            if not self.was_publishing:
                names = sorted((path.name for path in self.files), key=_publication_order)
                older = sorted(_older_model(self.destination, names), key=_publication_order, reverse=True)
                self.write(_PUBLISHING, json.dumps({"files": names, "older": older}).encode())
                sync(self.path)
            names = self._half_published()
            for name in self._half_published("older"):
                if name not in names or (self.path / name).exists():  # not yet one of the new
                    (self.destination / name).unlink(missing_ok=True)
            for name in names:
                if (self.path / name).exists():
                    os.replace(self.path / name, self.destination / name)
            sync(self.destination)
            return {name: (self.destination / name).stat().st_size for name in names}
        except OSError as error:
            message = f"cannot be moved into place: {error.strerror}"
            raise OutputError("OUTPUT_IO", message, file=self.destination) from error


def _publication_order(name: str) -> tuple[int, str]:
    return (_LAST.index(name) + 1 if name in _LAST else 0), name


def _older_model(folder: Path, names: Iterable[str]) -> set[str]:
    """What the new model replaces: files of its own names, and weights that no index will name any more."""
    replaced = {name for name in (*names, *_LAST) if (folder / name).is_file()}
    weights = (*folder.glob("model*.safetensors"), *folder.glob("consolidated.*.pth"))
    return replaced | {entry.name for entry in weights if entry.is_file()}
