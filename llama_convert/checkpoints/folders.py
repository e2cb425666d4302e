"""Detection of checkpoint folders by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from llama_convert.checkpoints.shards import INDEX_FILE

RANK_FILE = re.compile(r"consolidated(?:\.(\d+))?\.pth")
ADAPTER_FILE = re.compile(r"adapter_model.*\.(?:safetensors|bin)")
GENERIC_NAME = re.compile(r"original|mp\d+|\d+Bf?|snapshots|[0-9a-f]{40}")
"""Names of folders in a download or in the Hub cache that do not name the model; a parent folder does."""
_MAX_DEPTH = 5

FolderTest = Callable[[Path], bool]


def is_meta(folder: Path) -> bool:
    """Whether a folder is in Meta format: it has ``params.json`` or rank files."""
    return (folder / "params.json").exists() or has_rank_files(folder)


def has_rank_files(folder: Path) -> bool:
    """Whether a folder has rank files (``consolidated.NN.pth``)."""
    return any(RANK_FILE.fullmatch(file.name) for file in folder.iterdir())


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is in Hugging Face format: it has an index or safetensors files of a model."""
    return (folder / INDEX_FILE).exists() or any(
        not ADAPTER_FILE.fullmatch(file.name) for file in folder.glob("*.safetensors")
    )


def is_either(folder: Path) -> bool:
    """Whether a folder has weights in either format."""
    return is_huggingface(folder) or has_rank_files(folder)


def folders_below(
    path: Path, test: FolderTest, *, levels: int = 1, max_depth: int = _MAX_DEPTH
) -> Iterator[Path]:
    """Checkpoint folders below a folder, in alphabetical order.  Does not search in checkpoint folders.

    Args:
        path: the folder to search.
        test: whether a folder is a checkpoint.
        levels: levels to search; folders with a `GENERIC_NAME` do not count.
        max_depth: levels to search regardless of names, because links may be circular.
    """
    with suppress(OSError):  # skip folders that cannot be listed
        for folder in sorted(path.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            if test(folder):
                yield folder
                continue
            left = levels if GENERIC_NAME.fullmatch(folder.name) else levels - 1
            if left and max_depth > 1:
                yield from folders_below(folder, test, levels=left, max_depth=max_depth - 1)
