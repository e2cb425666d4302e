"""Search for a checkpoint in Meta format in a download.

Meta's downloads have three structures: all files in one folder; ``7B/`` next to the tokenizer (LLaMA 1);
``original/`` in a repository of the Hub, with ``mp8/`` and ``mp16/`` below it for 405B.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llama_convert.checkpoints.folders import (
    GENERIC_NAME,
    RANK_FILE,
    RANK_FOLDER,
    folders_below,
    is_dcp,
    is_meta,
)
from llama_convert.checkpoints.suggestions import Otherwise, no_checkpoint_at
from llama_convert.checkpoints.tensor_set import TensorSet, read_loose_files
from llama_convert.checkpoints.unsupported import unsupported_content
from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, read_small, same_file
from llama_convert.text import listed, natural_key

_MAX_RANKS = 1024


@dataclass(frozen=True)
class MetaFolder:
    """The files of a checkpoint in Meta format."""

    path: Path
    """Folder of the weights."""
    ranks: tuple[tuple[Path, ...], ...]
    """Files of each rank; 405B on the Hub has several in a folder for each rank."""
    tokenizer: Path | None
    """``tokenizer.model`` in the folder or its parent."""
    names: tuple[str, ...]
    """Name of the folder, then those of its parents up to the first that may name the release."""
    settings: Path
    """Folder with ``params.json``."""
    found: TensorSet | None = None
    """Tensors that were read already, of a single rank."""

    @property
    def n_ranks(self) -> int:
        """Number of tensor-parallel ranks."""
        return len(self.ranks)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of all ranks, in their order."""
        return tuple(file for rank in self.ranks for file in rank)

    @property
    def rank_paths(self) -> tuple[Path, ...]:
        """The file of each rank, or the folder of its files."""
        return tuple(rank[0] if len(rank) == 1 else rank[0].parent for rank in self.ranks)


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
    found = meta_folders(path, model_size, output)
    if len(found) != 1:
        raise no_checkpoint_at(path, "meta", output=output, otherwise=otherwise)
    if folder := meta_folder_at(found[0]):
        return folder
    if is_dcp(found[0]):
        raise no_checkpoint_at(found[0], "meta", otherwise=otherwise)
    raise unsupported_content(found[0]) or without_weights(found[0])


def meta_folders(path: Path, model_size: str | None = None, output: Path | None = None) -> list[Path]:
    """Folders in Meta format: ``path``, or those below it.

    Args:
        path: the path that the user passed.
        model_size: name of the only subfolder to return, if it exists.
        output: the folder to write, which is excluded.
    """
    if not path.is_dir():
        return []
    if is_meta(path):
        return [path]
    found = [folder for folder in folders_below(path, is_meta) if not (output and same_file(folder, output))]
    return [folder for folder in found if folder.name.lower() == (model_size or "").lower()] or found


def meta_folder_at(folder: Path) -> MetaFolder | None:
    """The checkpoint in a folder with ``params.json``; None without weights of a Llama.

    Raises:
        InputError: a rank file is missing, or PyTorch files are of several checkpoints.
    """
    if ranks := ranks_in(folder):
        return meta_folder(folder, ranks)
    loose = read_loose_files(folder)
    return meta_folder(folder, (loose.files,), loose) if loose else None


def without_weights(folder: Path) -> InputError:
    """The error for a folder with ``params.json`` but without weights."""
    return InputError("INPUT_NOT_FOUND", "No consolidated.*.pth next to params.json.", file=folder)


def meta_folder(
    path: Path,
    ranks: tuple[tuple[Path, ...], ...],
    found: TensorSet | None = None,
    settings: Path | None = None,
) -> MetaFolder:
    """The files of a checkpoint whose ranks are known.

    Args:
        path: folder of the weights.
        ranks: files of each rank.
        found: tensors that were read already.
        settings: the folder with ``params.json`` and tokenizer, if it is another one.

    Raises:
        InputError: the tokenizer cannot be read.
    """
    settings = settings or path
    resolved = settings.resolve()
    tokenizers = [parent / "tokenizer.model" for parent in (resolved, resolved.parent)]
    tokenizer = next((tokenizer for tokenizer in tokenizers if os.path.lexists(tokenizer)), None)
    if tokenizer is not None:
        _check_tokenizer(tokenizer)
    return MetaFolder(path, ranks, tokenizer, _names(resolved), settings, found)


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


def ranks_in(folder: Path) -> tuple[tuple[Path, ...], ...]:
    """Files of each rank, in the order of the ranks; empty if there are none.

    Raises:
        InputError: a rank is missing or duplicate.
    """
    ranks: dict[int, Path] = {}
    for entry in sorted(folder.iterdir()):
        match = RANK_FILE.fullmatch(entry.name) or RANK_FOLDER.fullmatch(entry.name)
        if match is None or not _files_of(entry):
            continue
        rank = int(match[1] or 0)
        if rank in ranks:
            raise InputError(
                "RANKS_NAMES", f"{ranks[rank].name} and {entry.name} are both rank {rank}.", file=folder
            )
        ranks[rank] = entry
    highest = max(ranks, default=-1)
    if highest >= len(ranks):
        missing = [rank for rank in range(min(highest, _MAX_RANKS)) if rank not in ranks]
        suffix = ".pth" if RANK_FILE.fullmatch(ranks[highest].name) else ""
        names = listed(f"consolidated.{rank:02d}{suffix}" for rank in missing)
        message = f"Missing shard{'s' * (len(missing) > 1)}: {names} (found up to {ranks[highest].name:.60})."
        raise InputError("RANKS_MISSING", message, file=folder, hint="Download the missing files.")
    return tuple(_files_of(ranks[rank]) for rank in sorted(ranks))


def _files_of(rank: Path) -> tuple[Path, ...]:
    """The file of a rank, or the files in its folder."""
    if RANK_FILE.fullmatch(rank.name):
        return (rank,)
    return tuple(sorted(rank.glob("*.pth"), key=lambda file: natural_key(file.name)))
