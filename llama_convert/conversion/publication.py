"""The moment in which staged files become the output, told to the disk before it begins.

It is a list of names beside the staged files.  A run that is stopped in between leaves the list, and the next
one takes the files back.  Until the last ones are in place, no loader takes the folder for a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_convert.checkpoints.checklist import CHECKLIST
from llama_convert.checkpoints.manifest import CARD, MANIFEST, read_manifest
from llama_convert.conversion.card import is_somebodys
from llama_convert.conversion.sync import sync
from llama_convert.errors import InputError, OutputError
from llama_convert.formats.files import read_small
from llama_convert.formats.strict_json import parse_json

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


@dataclass(frozen=True)
class Publication:
    """What is being renamed into place."""

    plan: str = ""
    """The plan's fingerprint."""
    files: tuple[str, ...] = ()
    """In the order in which they are renamed: weights first, config and manifest last."""
    older: tuple[str, ...] = ()
    """Files of an older model, in the order in which they are removed before: its config first."""

    @classmethod
    def of(cls, plan: str, files: Iterable[str], destination: Path, begun: Publication) -> Publication:
        """The one that makes ``files`` the output, and ends what one had ``begun`` that was interrupted."""
        names = sorted(files, key=_order)
        there = {name for name in begun.older if (destination / name).is_file()}
        older = sorted(_older_model(destination, names) | there, key=_order, reverse=True)
        return cls(plan, tuple(names), tuple(older))

    @classmethod
    def read(cls, staging: Path) -> Publication:
        """The one that was interrupted; without files if there is none."""
        try:
            content = parse_json(read_small(staging / PUBLISHING, _MAX_BYTES))
            plan, files, older = content["plan"], content["files"], content["older"]
            plain = all(Path(name).name == name for name in [*files, *older])
        except (InputError, OutputError, ValueError, LookupError, TypeError):
            return cls()
        return cls(plan, tuple(files), tuple(older)) if plain else cls()

    def is_complete(self, staging: Path, destination: Path) -> bool:
        """Whether all files are renamed."""
        return bool(self.files) and all(
            (destination / name).is_file() and not (staging / name).exists() for name in self.files
        )

    def carry_out(self, staging: Path, destination: Path, sync: Callable[[Path], None]) -> None:
        """Rename the files; the list must be on disk.  ``sync`` brings a folder there.

        Raises:
            OSError: one of them cannot be.
        """
        for name in self.older:
            (destination / name).unlink(missing_ok=True)
        sync(destination)
        weights = [name for name in self.files if name not in _LAST]
        for name in weights:
            os.replace(staging / name, destination / name)
        sync(destination)  # no power cut leaves a config without its weights
        for name in self.files[len(weights) :]:
            os.replace(staging / name, destination / name)

    def undo(self, staging: Path, destination: Path) -> None:
        """Take back what is renamed, so that all of it is looked at again; what it replaces stays known.

        Raises:
            OSError: something cannot be.
        """
        for name in reversed(self.files):
            staged, published = staging / name, destination / name
            if not staged.exists() and published.is_file() and not published.is_symlink():
                os.replace(published, staged)
        sync(staging)
        if not self.files:
            return
        rest = staging / f"{PUBLISHING}-rest"
        rest.write_text(json.dumps(asdict(Publication(older=self.older))))
        sync(rest)
        os.replace(rest, staging / PUBLISHING)


def _order(name: str) -> tuple[int, str]:
    return (_LAST.index(name) + 1 if name in _LAST else 0), name


def _older_model(folder: Path, names: Iterable[str]) -> set[str]:
    """What the new model replaces: files of its own names, what came with the older one, and weights.

    A manifest tells what came with it; weights, no index would name any more.
    """
    replaced = {name for name in (*names, *_LAST) if (folder / name).is_file()}
    weights = (*folder.glob("model*.safetensors"), *folder.glob("consolidated.*.pth"))
    replaced |= {name for name in _said_to_be_ours(folder) if (folder / name).is_file()}
    replaced -= {CARD} if is_somebodys(folder / CARD) else set()
    return replaced | {entry.name for entry in weights if entry.is_file()}


def _said_to_be_ours(folder: Path) -> Iterable[str]:
    try:
        manifest = read_manifest(folder)
    except (InputError, OutputError):
        return ()
    return manifest["files"] if manifest else ()
