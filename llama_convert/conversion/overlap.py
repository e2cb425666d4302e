"""Whether an output folder holds what is read: by inode, because a path may lead there in many ways."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from llama_convert.conversion.staging import STAGING
from llama_convert.errors import UsageError


def check_apart(destination: Path, folders: Iterable[Path], files: Iterable[Path]) -> None:
    """Refuse an output folder that is an input folder, or that holds an input file, by whatever name.

    Hard links, links and bind mounts count. The files in folders below the output folder do not: nothing is
    written or removed there, except in the staging folder.

    Args:
        destination: the output folder, which need not exist.
        folders: the input folders.
        files: all files that are read or copied.

    Raises:
        UsageError: it is one, or holds one.
    """
    inputs = {_inode(path) for path in (*folders, *files)} - {None}
    for place in (destination, *_entries(destination), *_below(destination / STAGING)):
        if _inode(place) in inputs:
            message = (
                f"Holds {place.name}, which is an input." if place != destination else "Is the input folder."
            )
            hint = "Choose another output folder."
            raise UsageError("OUTPUT_IS_INPUT", message, file=destination, hint=hint)


def _entries(folder: Path) -> Iterator[Path]:
    """What is directly in a folder, but no folders: of the source there may be some below the output."""
    if folder.is_dir():
        yield from (entry for entry in folder.iterdir() if not entry.is_dir())


def _below(folder: Path) -> Iterator[Path]:
    """All that is in a folder, and the folder, as far as no link leads elsewhere."""
    for place, folders, files in os.walk(folder):
        yield Path(place)
        yield from (Path(place, name) for name in (*folders, *files))


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None
