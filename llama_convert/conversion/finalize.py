"""Moving staged files into place: a list of them is on disk before the first is renamed.

A run that is killed in between leaves the list, and the next one takes the files back. The list names each
file with its inode, so a file that is not the one that was staged is never moved, even if
another process wrote the list. Until the last files are in place, no loader takes the folder for a model.
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
from llama_convert.conversion.journal import sealed, unsealed
from llama_convert.conversion.json_values import from_json
from llama_convert.conversion.model_card import is_user_edited
from llama_convert.conversion.sync import discard, write_new
from llama_convert.errors import InputError, OutputError
from llama_convert.formats.files import read_small

PUBLISHING = ".publishing"
_MAX_BYTES = 4 << 20
_LAST = (
    "generation_config.json",
    CHECKLIST,
    "model.safetensors.index.json",
    "config.json",
    "params.json",
    MANIFEST,
)
_TOKENIZER = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|consolidated\.\d+\.pth")
_OLDER = ".old-"

Identity = tuple[int, int]
"""Inode and size."""
Sync = Callable[[Path], None]
"""Brings a file or folder to disk."""


@dataclass(frozen=True)
class Publication:
    """What is being renamed into place."""

    plan: str = ""
    """The plan's fingerprint."""
    files: Mapping[str, Identity] = field(default_factory=dict)
    """In the order in which they are renamed: weights first, config and manifest last."""
    older: Mapping[str, Identity] = field(default_factory=dict)
    """Files of an older model, in the order in which they are removed before: its config first."""

    @classmethod
    def of(cls, plan: str, files: Iterable[Path], destination: Path, begun: Publication) -> Publication:
        """The one that makes staged ``files`` the output, and ends what an interrupted one had ``begun``."""
        staged = {file.name: file for file in files}
        older = {name for name, identity in begun.older.items() if _is(destination / name, identity)}
        older |= _older_model(destination, staged)
        return cls(
            plan,
            {name: _identity(staged[name]) for name in in_order(staged)},
            {name: _identity(destination / name) for name in reversed(in_order(older))},
        )

    @classmethod
    def read(cls, staging: Path) -> Publication:
        """The one that was interrupted; without files if there is none."""
        try:
            (content,) = unsealed(read_small(staging / PUBLISHING, _MAX_BYTES))
            publication: Publication = from_json(cls, content)
        except (InputError, OutputError, ValueError):
            return cls()
        return publication if all(map(is_name, [*publication.files, *publication.older])) else cls()

    def write(self, staging: Path, sync: Sync) -> None:
        """Write the list, on disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        new = staging / f"{PUBLISHING}-new"
        discard(new)
        try:
            write_new(new, sealed(asdict(self)))
            sync(new)
        except OSError:
            discard(new)
            raise
        os.rename(new, staging / PUBLISHING)
        sync(staging)

    def is_complete(self, destination: Path) -> bool:
        """Whether all files are renamed."""
        return bool(self.files) and all(_is(destination / name, who) for name, who in self.files.items())

    def carry_out(self, staging: Path, destination: Path, sync: Sync) -> None:
        """Rename the files; the list must be on disk.

        An older model's files are moved to the staging folder, not removed from the output folder: nothing
        but a rename from or to the staging folder ends with that folder.

        Raises:
            OSError: one of them cannot be.
        """
        for number, (name, identity) in enumerate(self.older.items()):
            if _is(destination / name, identity):
                os.replace(destination / name, staging / f"{_OLDER}{number}")
        sync(destination)
        weights = [name for name in self.files if name not in _LAST]
        for name in weights:
            os.replace(staging / name, destination / name)
        sync(destination)  # no power cut leaves a config without its weights
        for name in [name for name in self.files if name in _LAST]:
            os.replace(staging / name, destination / name)

    def undo(self, staging: Path, destination: Path, sync: Sync) -> None:
        """Take back what is renamed, so that all of it is checked again; what it replaces stays known.

        Raises:
            OSError: something cannot be.
        """
        for name, identity in reversed([*self.files.items()]):
            if _is(destination / name, identity) and not os.path.lexists(staging / name):
                os.replace(destination / name, staging / name)
        sync(staging)
        Publication(older=self.older).write(staging, sync)


def is_name(name: str) -> bool:
    """Whether it can name a file of an output."""
    return 0 < len(name) < 256 and not name.startswith(".") and "/" not in name and "\0" not in name


def _identity(file: Path) -> Identity:
    status = file.lstat()
    return status.st_ino, status.st_size


def _is(file: Path, identity: Identity) -> bool:
    """Whether it is still that very file."""
    try:
        return _identity(file) == identity
    except OSError:
        return False


def in_order(names: Iterable[str]) -> list[str]:
    """In the order in which they are published: weights first, config and manifest last."""
    return sorted(names, key=_order)


def _order(name: str) -> tuple[int, str]:
    return (_LAST.index(name) + 1 if name in _LAST else 0), name


def _older_model(folder: Path, names: Iterable[str]) -> set[str]:
    """What the new model replaces: files of the same names, and what makes an older model of the folder.

    That is weights, which no index would name any more; what loaders read; and what the older model's
    manifest names, unless it was edited since.
    """
    replaced = {*names, *_LAST, *_said_to_be_ours(folder)}
    replaced |= {entry.name for entry in folder.iterdir() if _WEIGHTS.fullmatch(entry.name)}
    replaced -= {CARD} if is_user_edited(folder / CARD) else set()
    return {name for name in replaced if (folder / name).is_file()}


def _said_to_be_ours(folder: Path) -> Iterator[str]:
    try:
        manifest = read_manifest(folder)
    except (InputError, OutputError):
        return
    for name, said in manifest["files"].items() if manifest else ():
        if name in (*_TOKENIZER, CARD) or _matches(folder / name, said):
            yield name


def _matches(file: Path, said: Mapping[str, Any]) -> bool:
    try:
        return file.is_file() and file_matches(file, said)
    except (OSError, InputError, OutputError):
        return False
