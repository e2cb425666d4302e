"""Finalization of an output: renames of staged files into the output folder.

The list of files is on disk before the first rename. If a run is killed in between, the next run reads the
list and moves the files back. The list names each file with its inode, so a file other than the staged one is
never moved, even if another process wrote the list. No loader accepts the folder as a model before the last
files are in place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.checklist import CHECKLIST
from llama_convert.checkpoints.manifest import CARD, MANIFEST, file_matches, read_manifest
from llama_convert.conversion.disk import remove_if_possible, write_new
from llama_convert.conversion.model_card import is_user_edited
from llama_convert.conversion.sealed_json import from_json, sealed, unsealed
from llama_convert.errors import InputError, OutputError
from llama_convert.formats.files import read_small

FINALIZING = ".finalizing"
"""The list of files being renamed, in the staging folder."""
_MAX_LIST = 4 << 20
_LAST = (
    "generation_config.json",
    CHECKLIST,
    "model.safetensors.index.json",
    "config.json",
    "params.json",
    MANIFEST,
)
"""Files that are renamed last, in this order."""
_TOKENIZER = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|consolidated\.\d+\.pth")
_REPLACED = ".old-"

FileIdentity = tuple[int, int]
"""Inode and size."""
Sync = Callable[[Path], None]
"""Flushes a file or folder to disk."""


@dataclass(frozen=True)
class Finalization:
    """The files to rename into the output folder, and the files that they replace."""

    plan: str = ""
    """The plan's fingerprint."""
    files: Mapping[str, FileIdentity] = field(default_factory=dict)
    """In the order of the renames: weights first, config and manifest last."""
    older: Mapping[str, FileIdentity] = field(default_factory=dict)
    """Files of an older model to remove first, in this order: its config before its weights."""

    @classmethod
    def of(
        cls, plan: str, files: Iterable[Path], destination: Path, interrupted: Finalization
    ) -> Finalization:
        """Return the finalization of staged files; it also completes an interrupted one.

        Args:
            plan: the plan's fingerprint.
            files: the staged files.
            destination: the output folder.
            interrupted: a finalization that an earlier run did not complete.
        """
        staged = {file.name: file for file in files}
        older = {
            name for name, identity in interrupted.older.items() if _is_same(destination / name, identity)
        }
        older |= _replaced_files(destination, staged)
        return cls(
            plan,
            {name: _identity(staged[name]) for name in finalization_order(staged)},
            {name: _identity(destination / name) for name in reversed(finalization_order(older))},
        )

    @classmethod
    def read(cls, staging: Path) -> Finalization:
        """Return the finalization that was interrupted; one without files if there is none."""
        try:
            (content,) = unsealed(read_small(staging / FINALIZING, _MAX_LIST))
            finalization: Finalization = from_json(cls, content)
        except (InputError, OutputError, ValueError):
            return cls()
        names = [*finalization.files, *finalization.older]
        return finalization if all(map(is_output_name, names)) else cls()

    def write(self, staging: Path, sync: Sync) -> None:
        """Write the list. It is on disk when this returns.

        Raises:
            OSError: the list cannot be written.
        """
        temporary = staging / f"{FINALIZING}-new"
        remove_if_possible(temporary)
        try:
            write_new(temporary, sealed(asdict(self)))
            sync(temporary)
        except OSError:
            remove_if_possible(temporary)
            raise
        os.rename(temporary, staging / FINALIZING)
        sync(staging)

    def is_complete(self, destination: Path) -> bool:
        """Return whether all files are renamed."""
        return bool(self.files) and all(
            _is_same(destination / name, identity) for name, identity in self.files.items()
        )

    def rename_files(self, staging: Path, destination: Path, sync: Sync) -> None:
        """Rename the files into the output folder. The list must be on disk.

        Files of an older model are moved to the staging folder rather than removed from the output folder:
        only renames from or to the staging folder fail once another run has taken it over.

        Raises:
            OSError: a file cannot be renamed.
        """
        for number, (name, identity) in enumerate(self.older.items()):
            if _is_same(destination / name, identity):
                os.replace(destination / name, staging / f"{_REPLACED}{number}")
        sync(destination)
        for name in [name for name in self.files if name not in _LAST]:
            os.replace(staging / name, destination / name)
        sync(destination)  # a power failure never leaves a config without its weights
        for name in [name for name in self.files if name in _LAST]:
            os.replace(staging / name, destination / name)

    def undo(self, staging: Path, destination: Path, sync: Sync) -> None:
        """Move renamed files back, so that all of them are checked again. Files to replace stay listed.

        Raises:
            OSError: a file cannot be moved or the list cannot be written.
        """
        for name, identity in reversed([*self.files.items()]):
            if _is_same(destination / name, identity) and not os.path.lexists(staging / name):
                os.replace(destination / name, staging / name)
        sync(staging)
        Finalization(older=self.older).write(staging, sync)


def is_output_name(name: str) -> bool:
    """Return whether a file of an output can have this name."""
    return 0 < len(name) < 256 and not name.startswith(".") and "/" not in name and "\0" not in name


def finalization_order(names: Iterable[str]) -> list[str]:
    """Return names in the order in which files are finalized: weights first, config and manifest last."""
    return sorted(names, key=lambda name: (_LAST.index(name) + 1 if name in _LAST else 0, name))


def _identity(file: Path) -> FileIdentity:
    status = file.lstat()
    return status.st_ino, status.st_size


def _is_same(file: Path, identity: FileIdentity) -> bool:
    """Return whether a path still is the same file."""
    try:
        return _identity(file) == identity
    except OSError:
        return False


def _replaced_files(folder: Path, staged: Iterable[str]) -> set[str]:
    """Return the files in the output folder that the new model replaces.

    These are files with the same names; weight files, which no index would name any more; files that loaders
    read; and unedited files in the older model's manifest.
    """
    replaced = {*staged, *_LAST, *_unedited_files(folder)}
    replaced |= {entry.name for entry in folder.iterdir() if _WEIGHTS.fullmatch(entry.name)}
    replaced -= {CARD} if is_user_edited(folder / CARD) else set()
    return {name for name in replaced if (folder / name).is_file()}


def _unedited_files(folder: Path) -> Iterator[str]:
    """Yield the files in the folder's manifest that match it; tokenizer files and the card in any case."""
    try:
        manifest = read_manifest(folder)
    except (InputError, OutputError):
        return
    for name, entry in manifest["files"].items() if manifest else ():
        if name in (*_TOKENIZER, CARD) or _matches(folder / name, entry):
            yield name


def _matches(file: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return file.is_file() and file_matches(file, entry)
    except (OSError, InputError, OutputError):
        return False
