"""Which folders hold a checkpoint, told by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from llama_convert.checkpoints.shards import INDEX_FILE

RANK_FILE = re.compile(r"consolidated(?:\.(\d+))?\.pth")
ADAPTER_FILE = re.compile(r"adapter_model.*\.(?:safetensors|bin)")
SAYS_NOTHING = re.compile(r"original|mp\d+|\d+Bf?|snapshots|[0-9a-f]{40}")
"""Folders within a download, and within the Hub's cache: the model's name stands above them."""
_DEEPEST = 5

Holds = Callable[[Path], bool]


def is_meta(folder: Path) -> bool:
    """Whether a folder holds rank files, or says that it should."""
    return (folder / "params.json").exists() or has_rank_files(folder)


def has_rank_files(folder: Path) -> bool:
    """Whether a folder holds rank files."""
    return any(RANK_FILE.fullmatch(file.name) for file in folder.iterdir())


def is_huggingface(folder: Path) -> bool:
    """Whether a folder holds a model's safetensors, not only an adapter's, or says that it should."""
    return (folder / INDEX_FILE).exists() or any(
        not ADAPTER_FILE.fullmatch(file.name) for file in folder.glob("*.safetensors")
    )


def is_either(folder: Path) -> bool:
    """Whether a folder holds the files of a checkpoint in either layout."""
    return is_huggingface(folder) or has_rank_files(folder)


def below(path: Path, holds: Holds, *, names: int = 1, deepest: int = _DEEPEST) -> Iterator[Path]:
    """The folders in this one that hold a checkpoint, and none that lies in another of them.

    Args:
        path: where to look.
        holds: whether a folder is what is looked for.
        names: folders to go down; those whose names say nothing do not count.
        deepest: folders to go down, whatever their names: links may lead in circles.
    """
    with suppress(OSError):  # what we may not look into is not meant
        for folder in sorted(path.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            if holds(folder):
                yield folder
                continue
            left = names if SAYS_NOTHING.fullmatch(folder.name) else names - 1
            if left and deepest > 1:
                yield from below(folder, holds, names=left, deepest=deepest - 1)
