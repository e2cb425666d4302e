"""Auxiliary files: the source's tokenizer, settings and license, and the output's ``checklist.chk``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from llama_convert.checkpoints.checklist import CHECKLIST, md5_of_all
from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.meta_folder import MetaFolder
from llama_convert.conversion.job import MAX_AUXILIARY_SIZE
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.model_card import is_generated, is_license_file
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.staging import Staging
from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, MAX_TOKENIZER_JSON, is_file_name, read_small, same_file
from llama_convert.formats.strict_json import MAX_LISTS_OF_TOKENIZER, parse_json
from llama_convert.text import quoted
from llama_convert.tokenizers import (
    RECORDS,
    Tokenizer,
    added_tokens,
    open_tokenizer,
    ranks_of_tokenizer_json,
    read_tiktoken,
)
from llama_convert.units import format_size

_NOT_COPIED = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.gguf", ".*", "*.index.json", "*.chk", MANIFEST)
"""Weights in any format, and files that describe weight files."""
_MAX_NAMES = 5
"""Token names in a warning."""
_CHECKLIST_LINE = "{}  {}\n"
"""An MD5 and a file name."""
_DOWNLOAD_SUBFOLDER = re.compile(r"original|mp\d+")
"""Folders within a download from the Hub: the license is above them."""


def auxiliary_files(
    folder: Path,
    weights: Iterable[Path],
    messages: Messages,
    *,
    skip: tuple[str, ...] = (),
    wanted: Callable[[str], bool] = lambda _: True,
) -> list[Path]:
    """Return the files of a folder that are copied to the output: license, tokenizer, settings; no weights.

    A file whose name is not `is_file_name` is skipped with a warning, because no manifest could list it.

    Args:
        folder: the source or a folder around it.
        weights: the files of the checkpoint's weights.
        messages: receives the names of skipped files.
        skip: patterns of names that are not copied, in addition to weights and dot-files.
        wanted: called with each name; False skips the file.

    Raises:
        InputError: a file is a link out of the folder; see `_check_link`.
    """
    folders = {file.resolve().parent for file in weights}
    chosen = []
    for file in sorted(folder.iterdir()):
        unwanted = any(fnmatch(file.name, pattern) for pattern in (*_NOT_COPIED, *skip)) or not wanted(
            file.name
        )
        if unwanted or not file.is_file() or is_generated(file):
            continue
        if not is_file_name(file.name):
            messages.warn(f"{file}: Not copied: the name is not printable UTF-8 text. Rename the file.")
        elif (size := file.stat().st_size) > MAX_AUXILIARY_SIZE:
            limit = format_size(MAX_AUXILIARY_SIZE)
            messages.note(f"{file}: Not copied: larger than {limit} ({format_size(size)}).")
        else:
            _check_link(file, folders)
            chosen.append(file)
    return chosen


def _check_link(file: Path, folders: Collection[Path]) -> None:
    """Refuse a link out of the folder: a downloaded ``LICENSE`` could point to a private key.

    A link may point to a file in its own folder or below it, or in one of ``folders``, which hold the
    weights: the blobs of the same repository in the Hub's cache, or a folder whose files a user has linked.
    Files that are parsed (weights, settings, ``tokenizer.model``) may be links to any place: a file of
    another kind does not get into the output.

    Raises:
        InputError: the file is such a link.
    """
    if not file.is_symlink():
        return
    target = file.resolve()
    if file.parent.resolve() not in target.parents and target.parent not in folders:
        raise InputError(
            "INPUT_LINK",
            f"Links to {target}, which is neither in its folder nor next to the weights.",
            file=file,
            hint="Replace the link with a copy of the file, or remove it.",
        )


def license_files(folder: MetaFolder, messages: Messages) -> list[Path]:
    """Return the files with terms of use: next to the shards, or in the folders above within the download.

    Raises:
        InputError: see `auxiliary_files`.
    """
    folders = [folder.settings.resolve()]
    while _DOWNLOAD_SUBFOLDER.fullmatch(folders[-1].name):
        folders.append(folders[-1].parent)
    if folder.tokenizer and folder.tokenizer.parent.resolve() not in folders:
        folders.append(folder.tokenizer.parent)
    found: dict[str, Path] = {}
    for each in folders:
        with suppress(OSError):  # a folder without read permission
            for file in auxiliary_files(each, folder.files, messages, wanted=is_license_file):
                found.setdefault(file.name, file)
    return list(found.values())


def copy_files(files: Iterable[Path], staging: Staging) -> None:
    """Copy files to the staging folder.

    Raises:
        InputError: a file may not be read.
        OutputError: a file cannot be read or written.
    """
    for file in files:
        staging.write(file.name, read_small(file, MAX_AUXILIARY_SIZE))


def tokenizer_sources(source: Path, chosen: Path | None, output: Path) -> list[Path]:
    """Return the file that Meta's ``tokenizer.model`` is made from, as a list of at most one.

    Args:
        source: the source folder.
        chosen: a file named by the user, which has precedence.
        output: the output folder; if it is in the source folder, its files do not count.
    """
    if chosen:
        return [chosen]
    names = ("tokenizer.model", "original/tokenizer.model", "tokenizer.json")
    candidates = (source / name for name in names if not same_file((source / name).parent, output))
    return [file for file in candidates if file.is_file()][:1]


def meta_tokenizer(files: list[Path], source: Path, rows: int, messages: Messages) -> bytes | None:
    """Return the content of Meta's ``tokenizer.model``: copied, or made from ``tokenizer.json``.

    The ranks of Llama 3's tokenizer are its token ids. SentencePiece's scores are in no other file. Warns of
    tokens that the result lacks, and if its size is not the number of embedding rows.

    Args:
        files: the result of `tokenizer_sources`.
        source: the source folder.
        rows: number of rows of the embedding.
        messages: receives the warnings.

    Returns:
        None if there is no tokenizer, or if it cannot be made from ``tokenizer.json``.

    Raises:
        InputError: the file cannot be read, or is not a tokenizer.
    """
    if not files:
        messages.warn(
            f"{source}: No tokenizer found. The output has no tokenizer. Use --tokenizer PATH to add one."
        )
        return None
    (file,) = files
    if file.name == "tokenizer.json":
        try:
            content = parse_json(read_small(file, MAX_TOKENIZER_JSON), max_lists=MAX_LISTS_OF_TOKENIZER)
            model = ranks_of_tokenizer_json(content)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise InputError("TOKENIZER_JSON", "Not a tokenizer.json.", file=file) from None
        if model is None:
            messages.warn(
                f"{file}: Cannot be converted to tokenizer.model. The output has no tokenizer. "
                "Use --tokenizer PATH to add the tokenizer.model of the release."
            )
            return None
        tokenizer: Tokenizer = read_tiktoken(file, model)
    else:
        model = read_small(file, MAX_TOKENIZER)
        tokenizer = open_tokenizer(file)  # refuses a file of another kind, which would be copied unchanged
    lost = _lost_tokens(source, tokenizer, messages)
    if lost:
        names = ", ".join(map(quoted, lost[:_MAX_NAMES]))
        more = f" and {len(lost) - _MAX_NAMES:,} more" if len(lost) > _MAX_NAMES else ""
        messages.warn(
            f"{file}: Meta's tokenizer.model cannot hold added tokens. {len(lost):,} "
            f"{'token is' if len(lost) == 1 else 'tokens are'} lost: {names}{more}."
        )
    elif tokenizer.vocab_size != rows:
        messages.warn(
            f"{file}: The tokenizer has {tokenizer.vocab_size:,} tokens; the embedding has {rows:,} rows."
        )
    return model


def _lost_tokens(source: Path, tokenizer: Tokenizer, messages: Messages) -> list[str]:
    """Return the names of the source's tokens that Meta's tokenizer lacks, in the order of their ids."""
    numbers: dict[str, set[int | None]] = {}
    for record in RECORDS:
        try:
            for name, number in added_tokens(source / record):
                numbers.setdefault(name, set()).add(number)
        except InputError as error:
            messages.warn(f"{error} Added tokens in it are not checked.")
    lost = [(n, name) for name, each in numbers.items() for n in each if not tokenizer.has_token(name, n)]
    lost.sort(key=lambda token: (token[0] is None, token[0] or 0))
    return list(dict.fromkeys(name for _, name in lost))


def checklist_names(names: Collection[str]) -> list[str]:
    """Return the files of an output that ``checklist.chk`` lists, in its order."""
    ranks = sorted(name for name in names if name.endswith(".pth"))
    return [*ranks, *(name for name in ("params.json", "tokenizer.model") if name in names)]


def checklist_size(names: Collection[str]) -> int:
    """Return the bytes of an output's ``checklist.chk``."""
    return sum(len(_CHECKLIST_LINE.format("0" * 32, name)) for name in checklist_names(names))


def write_checklist(staging: Staging, options: ConvertOptions, messages: Messages) -> None:
    """Write ``checklist.chk``: the MD5 of each file in the format of ``md5sum`` and the order of Meta's."""
    files = [staging.path / name for name in checklist_names([file.name for file in staging.files])]
    messages.observer.start(sum(file.stat().st_size for file in files), "Computing checksums")

    try:
        with staging.reading_staged_files():
            checksums = md5_of_all(files, workers=options.workers, progress=messages.observer.advance)
    finally:
        messages.observer.finish()
    lines = [_CHECKLIST_LINE.format(md5, file.name) for md5, file in zip(checksums, files, strict=True)]
    staging.write(CHECKLIST, "".join(lines).encode())
