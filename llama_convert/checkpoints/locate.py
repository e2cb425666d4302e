"""Finds the checkpoint inside the folder a user names: Meta's downloads come in three layouts.

Flat; ``7B/`` beside the tokenizer, as LLaMA 1 came; ``original/`` inside a download from the Hub (with
``mp8/`` and ``mp16/`` below it for 405B).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, read_small

_RANK_FILE = re.compile(r"consolidated(?:\.(\d+))?\.pth")
_SAYS_NOTHING = re.compile(r"original|mp\d+|\d+Bf?|snapshots|[0-9a-f]{40}")
"""Folders within a download, and within the Hub's cache: the model's name stands above them."""


@dataclass(frozen=True)
class MetaFolder:
    """A folder that holds ``params.json`` and rank files, and the tokenizer that goes with it."""

    path: Path
    rank_files: tuple[Path, ...]
    """In the order of the ranks."""
    tokenizer: Path | None
    names: tuple[str, ...]
    """The folder's name and those around it that may name the release, the nearest first."""


def locate(path: Path, model_size: str | None = None) -> MetaFolder:
    """The checkpoint in or below ``path``.

    Args:
        path: what the user named.
        model_size: the subfolder to take where there are several, as LLaMA 1's ``7B``.

    Raises:
        InputError: there is no checkpoint here, there are several, or one of its rank files is missing.
    """
    if not path.exists():
        raise InputError("INPUT_NOT_FOUND", "not found", file=path)
    if not path.is_dir():
        hint = f"name the folder instead: {path.parent}" if _RANK_FILE.fullmatch(path.name) else None
        raise InputError("INPUT_NOT_FOUND", "a file; expected the folder it lies in", file=path, hint=hint)
    folder = _choose(path, model_size)
    rank_files = _rank_files(folder)
    here = folder.resolve()
    tokenizers = [place / "tokenizer.model" for place in (here, here.parent)]
    tokenizer = next((tokenizer for tokenizer in tokenizers if os.path.lexists(tokenizer)), None)
    if tokenizer is not None:
        _check_tokenizer(tokenizer)
    return MetaFolder(folder, rank_files, tokenizer, _names(here))


def _check_tokenizer(file: Path) -> None:
    """Refuse what cannot be read as a whole: a pipe, a device, a link to nowhere, gigabytes."""
    try:
        read_small(file, MAX_TOKENIZER)
    except InputError as error:
        raise InputError("TOKENIZER_MISSING", error.message, file=file) from None


def _names(folder: Path) -> tuple[str, ...]:
    """Its name, and if that says nothing of its own the names around it, up to the first that does."""
    names: list[str] = []
    for place in (folder, *folder.parents):
        names.append(place.name)
        if not _SAYS_NOTHING.fullmatch(place.name):
            break
    return tuple(names)


def _holds_checkpoint(folder: Path) -> bool:
    return (
        any(_RANK_FILE.fullmatch(entry.name) for entry in folder.iterdir())
        or (folder / "params.json").exists()
    )


def _choose(path: Path, model_size: str | None) -> Path:
    if _holds_checkpoint(path):
        return path
    if model_size and (path / model_size).is_dir() and _holds_checkpoint(path / model_size):
        return path / model_size
    below = [path, path / "original"] if (path / "original").is_dir() else [path]
    found = [
        entry
        for place in below
        for entry in sorted(place.iterdir())
        if entry.is_dir() and _holds_checkpoint(entry)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(str(entry.relative_to(path)) for entry in found[:8])
        raise InputError(
            "INPUT_SEVERAL",
            f"holds {len(found)} checkpoints: {listed}",
            file=path,
            hint=f"name one of them: {found[0]}",
        )
    if any(path.glob("*.safetensors")):
        hint = f"convert {path} DST --to meta goes back, shard {path} DST --max-shard-size SIZE cuts it anew"
        message = "holds safetensors: already in Hugging Face's layout"
        raise InputError("INPUT_NOT_FOUND", message, file=path, hint=hint)
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    hint = f"a Meta checkpoint has params.json and consolidated.00.pth; here is {inside}"
    raise InputError("INPUT_NOT_FOUND", "no consolidated.*.pth in this folder", file=path, hint=hint)


def _rank_files(folder: Path) -> tuple[Path, ...]:
    """The rank files in numeric order, every rank from 0 on exactly once."""
    ranks: dict[int, Path] = {}
    for entry in sorted(folder.iterdir()):
        match = _RANK_FILE.fullmatch(entry.name)
        if match is None:
            continue
        rank = int(match[1] or 0)
        if rank in ranks:
            raise InputError(
                "RANKS_NAMES", f"{ranks[rank].name} and {entry.name} are both rank {rank}", file=folder
            )
        ranks[rank] = entry
    if not ranks:
        raise InputError("INPUT_NOT_FOUND", "no consolidated.*.pth beside params.json", file=folder)
    if max(ranks) >= len(ranks):
        missing = (rank for rank in range(len(ranks)) if rank not in ranks)
        names = ", ".join(f"consolidated.{rank:02d}.pth" for rank in islice(missing, 5))
        raise InputError(
            "RANKS_MISSING", f"{names} is missing; the highest is {ranks[max(ranks)].name}", file=folder
        )
    return tuple(ranks[rank] for rank in sorted(ranks))
