"""Finds the checkpoint inside the folder a user names: Meta's downloads come in three layouts.

Flat; ``7B/`` beside the tokenizer, as LLaMA 1 came; ``original/`` inside a download from the Hub (with
``mp8/`` and ``mp16/`` below it for 405B).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llama_convert.checkpoints.content import content_of
from llama_convert.checkpoints.folders import RANK_FILE, SAYS_NOTHING, below, is_meta
from llama_convert.checkpoints.suggestions import Otherwise, no_checkpoint, no_checkpoint_at
from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, read_small, same_file


@dataclass(frozen=True)
class MetaFolder:
    """A folder that holds ``params.json`` and rank files, and the tokenizer that goes with it."""

    path: Path
    rank_files: tuple[Path, ...]
    """In the order of the ranks."""
    tokenizer: Path | None
    names: tuple[str, ...]
    """The folder's name and those around it that may name the release, the nearest first."""


def locate(
    path: Path,
    model_size: str | None = None,
    *,
    output: Path | None = None,
    otherwise: Otherwise | None = None,
) -> MetaFolder:
    """The checkpoint in or below ``path``.

    Args:
        path: what the user named.
        model_size: the subfolder to take where there are several, as LLaMA 1's ``7B``.
        output: the folder to write, which is no source; and for who has swapped the two.
        otherwise: gives the command to type for a folder in Hugging Face's layout.

    Raises:
        InputError: there is no checkpoint here, there are several, or one of its rank files is missing.
    """
    found = _found(path, (model_size or "").lower(), output) if path.is_dir() else []
    if len(found) != 1:
        raise no_checkpoint_at(path, "meta", output=output, otherwise=otherwise)
    folder = found[0]
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
        if not SAYS_NOTHING.fullmatch(place.name):
            break
    return tuple(names)


def _found(path: Path, model_size: str, output: Path | None) -> list[Path]:
    if is_meta(path):
        return [path]
    found = [folder for folder in below(path, is_meta) if not (output and same_file(folder, output))]
    return [folder for folder in found if folder.name.lower() == model_size] or found


def _rank_files(folder: Path) -> tuple[Path, ...]:
    """The rank files in numeric order, every rank from 0 on exactly once."""
    ranks: dict[int, Path] = {}
    for entry in sorted(folder.iterdir()):
        match = RANK_FILE.fullmatch(entry.name)
        if match is None:
            continue
        rank = int(match[1] or 0)
        if rank in ranks:
            raise InputError(
                "RANKS_NAMES", f"{ranks[rank].name} and {entry.name} are both rank {rank}", file=folder
            )
        ranks[rank] = entry
    if not ranks:
        if content := content_of(folder):
            raise no_checkpoint(folder, content)
        raise InputError("INPUT_NOT_FOUND", "no consolidated.*.pth next to params.json", file=folder)
    if max(ranks) >= len(ranks):
        missing = (rank for rank in range(len(ranks)) if rank not in ranks)
        names = ", ".join(f"consolidated.{rank:02d}.pth" for rank in islice(missing, 5))
        raise InputError(
            "RANKS_MISSING", f"{names} is missing; the highest is {ranks[max(ranks)].name}", file=folder
        )
    return tuple(ranks[rank] for rank in sorted(ranks))
