"""Nothing counts as written until it is published.

Files are made in a staging folder inside the output folder (so on its file system) and renamed into place
when all of them are complete and on disk, the ones that make a folder a model last.  Each run stages under a
name of its own and holds a lock there: a second run is told of the first, and clears away what a killed one
left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.errors import ConflictError, OutputError, UsageError
from llama_convert.units import format_size

_STAGING = ".llama-convert-"
_LOCK = "lock"
_LAST = ("generation_config.json", "model.safetensors.index.json", "config.json", MANIFEST)


class Staging:
    """A folder to write into; what is in it when `publish` is called becomes the output.

    Leaving the context without having published removes every trace.
    """

    def __init__(self, destination: Path, *, source: Path, needed: int, overwrite: bool) -> None:
        """Check that the output may go there and fits.

        Raises:
            UsageError: the output folder is, or lies in, the source.
            ConflictError: it holds something already.
            OutputError: it is no folder, or too little space is left for ``needed`` bytes.
        """
        self.destination = destination
        self.path = destination
        """The staging folder, while the context lasts."""
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
        existing = next(place for place in (resolved, *resolved.parents) if place.exists())
        free = shutil.disk_usage(existing).free
        if free < needed:
            message = f"needs {format_size(needed)}, {format_size(free)} are free"
            raise OutputError("OUTPUT_SPACE", message, file=destination)

    def _refuse_foreign_files(self) -> None:
        """The output folder may hold what runs left that were killed, and with `overwrite` an older model."""
        if self._overwrite or not self.destination.is_dir():
            return
        present = sorted(entry.name for entry in self.destination.iterdir())
        present = [name for name in present if not name.startswith(_STAGING)]
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
                    folder.mkdir()
                    self._created.append(folder)
            for other in self.destination.glob(f"{_STAGING}*"):
                _clear_away(other)
            self.path = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.destination))
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            self.__exit__()
            message = f"cannot be written to: {error.strerror}"
            raise OutputError("OUTPUT_PERMISSION", message, file=self.destination) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self.path != self.destination:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
        for folder in reversed(self._created):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    @property
    def files(self) -> list[Path]:
        """What has been staged so far."""
        return sorted(path for path in self.path.iterdir() if path.name != _LOCK)

    def write(self, name: str, content: bytes) -> None:
        """A small file, on disk when this returns."""
        self.write_with(name, lambda path: path.write_bytes(content))

    def write_with(self, name: str, writer: Callable[[Path], object]) -> None:
        """A file that ``writer`` writes, given its path."""
        path = self.path / name
        try:
            writer(path)
            _sync(path)
        except OSError as error:
            raise OutputError("OUTPUT_IO", f"cannot be written: {error.strerror}", file=path) from error

    def publish(self) -> None:
        """Make the staged files the output: weights first, config and manifest last.

        Files of an older model that stands here (``--overwrite``) go first, its config before its weights.
        """
        self._refuse_foreign_files()
        names = sorted((path.name for path in self.files), key=_publication_order)
        try:
            for name in sorted(_older_model(self.destination, names), key=_publication_order, reverse=True):
                (self.destination / name).unlink()
            for name in names:
                os.replace(self.path / name, self.destination / name)
            _sync(self.destination)
        except OSError as error:
            message = f"cannot be moved into place: {error.strerror}"
            raise OutputError("OUTPUT_IO", message, file=self.destination) from error


def _clear_away(staging: Path) -> None:
    """Remove the staging folder of a run that is no more.

    Raises:
        ConflictError: the run is alive.
    """
    try:
        lock = os.open(staging / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # about to be made, or half removed; in neither case ours to touch
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(lock, 200).decode(errors="replace") or "another run"
        raise ConflictError("OUTPUT_LOCKED", f"is being written by {owner}", file=staging.parent) from None
    else:
        shutil.rmtree(staging)
    finally:
        os.close(lock)


def _publication_order(name: str) -> tuple[int, str]:
    return (_LAST.index(name) + 1 if name in _LAST else 0), name


def _older_model(folder: Path, names: Iterable[str]) -> set[str]:
    """What the new model replaces: files of its own names, and weights that no index will name any more."""
    replaced = {name for name in (*names, *_LAST) if (folder / name).is_file()}
    return replaced | {entry.name for entry in folder.glob("model*.safetensors") if entry.is_file()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
