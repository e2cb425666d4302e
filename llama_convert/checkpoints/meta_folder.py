"""Search for a checkpoint in Meta format in a download.

Meta's downloads have three structures: all files in one folder; ``7B/`` next to the tokenizer (LLaMA 1);
``original/`` in a repository of the Hub, with ``mp8/`` and ``mp16/`` below it for 405B.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llama_convert.checkpoints.folders import GENERIC_NAME, RANK_FILE, folders_below, is_meta
from llama_convert.checkpoints.suggestions import Otherwise, no_checkpoint, no_checkpoint_at
from llama_convert.checkpoints.unsupported import unsupported_content
from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, read_small, same_file
from llama_convert.text import listed

_MAX_RANKS = 1024


@dataclass(frozen=True)
class MetaFolder:
    """The files of a checkpoint in Meta format."""

    path: Path
    """Folder with ``params.json`` and rank files."""
    rank_files: tuple[Path, ...]
    """In the order of the ranks."""
    tokenizer: Path | None
    """``tokenizer.model`` in the folder or its parent."""
    names: tuple[str, ...]
    """Name of the folder, then those of its parents up to the first that may name the release."""


def find_meta_folder(
    path: Path,
    model_size: str | None = None,
    *,
    output: Path | None = None,
    otherwise: Otherwise | None = None,
) -> MetaFolder:
    """The checkpoint in or below ``path``.

    Args:
        path: the path that the user passed.
        model_size: name of the subfolder to use if there are several, for example ``7B`` of LLaMA 1.
        output: the folder to write; it is excluded from the search, and errors suggest to swap the two.
        otherwise: returns the command for a folder in Hugging Face format.

    Raises:
        InputError: there is no checkpoint, there are several, or a rank file is missing.
    """
    found = _checkpoint_folders(path, (model_size or "").lower(), output) if path.is_dir() else []
    if len(found) != 1:
        raise no_checkpoint_at(path, "meta", output=output, otherwise=otherwise)
    folder = found[0]
    rank_files = _rank_files(folder)
    resolved = folder.resolve()
    tokenizers = [parent / "tokenizer.model" for parent in (resolved, resolved.parent)]
    tokenizer = next((tokenizer for tokenizer in tokenizers if os.path.lexists(tokenizer)), None)
    if tokenizer is not None:
        _check_tokenizer(tokenizer)
    return MetaFolder(folder, rank_files, tokenizer, _names(resolved))


def _check_tokenizer(file: Path) -> None:
    """Refuse a file that cannot be read: a pipe, a device, a broken link, or too many bytes."""
    try:
        read_small(file, MAX_TOKENIZER)
    except InputError as error:
        raise InputError("TOKENIZER_MISSING", error.message, file=file) from None


def _names(folder: Path) -> tuple[str, ...]:
    """`MetaFolder.names` of a folder."""
    names: list[str] = []
    for parent in (folder, *folder.parents):
        names.append(parent.name)
        if not GENERIC_NAME.fullmatch(parent.name):
            break
    return tuple(names)


def _checkpoint_folders(path: Path, model_size: str, output: Path | None) -> list[Path]:
    if is_meta(path):
        return [path]
    found = [folder for folder in folders_below(path, is_meta) if not (output and same_file(folder, output))]
    return [folder for folder in found if folder.name.lower() == model_size] or found


def _rank_files(folder: Path) -> tuple[Path, ...]:
    """Rank files in the order of the ranks.

    Raises:
        InputError: a rank is missing or duplicate.
    """
    ranks: dict[int, Path] = {}
    for entry in sorted(folder.iterdir()):
        match = RANK_FILE.fullmatch(entry.name)
        if match is None:
            continue
        rank = int(match[1] or 0)
        if rank in ranks:
            raise InputError(
                "RANKS_NAMES", f"{ranks[rank].name} and {entry.name} are both rank {rank}.", file=folder
            )
        ranks[rank] = entry
    if not ranks:
        if content := unsupported_content(folder):
            raise no_checkpoint(folder, content)
        raise InputError("INPUT_NOT_FOUND", "No consolidated.*.pth next to params.json.", file=folder)
    highest = max(ranks)
    if highest >= len(ranks):
        missing = [rank for rank in range(min(highest, _MAX_RANKS)) if rank not in ranks]
        names = listed(f"consolidated.{rank:02d}.pth" for rank in missing)
        message = f"Missing shard{'s' * (len(missing) > 1)}: {names} (found up to {ranks[highest].name:.60})."
        raise InputError("RANKS_MISSING", message, file=folder, hint="Download the missing files.")
    return tuple(ranks[rank] for rank in sorted(ranks))
