"""What goes along with the weights: the source's tokenizer, settings and licence; the output's checksums."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from llama_convert.checkpoints.checklist import CHECKLIST, md5_of_all
from llama_convert.checkpoints.locate import MetaFolder
from llama_convert.checkpoints.manifest import CARD, MANIFEST
from llama_convert.conversion.card import is_licence, is_ours
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.publish import Staging
from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, quoted, read_small, reading
from llama_convert.tokenizers import (
    RECORDS,
    Tokenizer,
    added_tokens,
    open_tokenizer,
    ranks_of_tokenizer_json,
    read_tiktoken,
)

_NEVER = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.gguf", ".*", "*.index.json", "*.chk", MANIFEST)
"""Weights of any form, and what is told of the weights' files."""
_LARGEST = 64 << 20
_MAX_NAMES = 5
"""Tokens that a warning names."""
_IN_A_DOWNLOAD = re.compile(r"original|mp\d+")
"""Folders within a download from the Hub: the licence lies above them."""


def small_files(source: Path, skip: tuple[str, ...] = ()) -> list[Path]:
    """The files of the source's folder that go along: licence, tokenizer, settings; no weights.

    Args:
        source: the folder.
        skip: patterns of names to leave behind, besides those of weights and dot-files (such as our own).
    """
    return [
        file
        for file in sorted(source.iterdir())
        if file.is_file()
        and not any(fnmatch(file.name, pattern) for pattern in (*_NEVER, *skip))
        and file.stat().st_size <= _LARGEST
        and not (file.name == CARD and is_ours(file))
    ]


def licences(folder: MetaFolder) -> list[Path]:
    """The files that hold terms of use: beside the rank files, or above them where the download begins."""
    places = [folder.path]
    while _IN_A_DOWNLOAD.fullmatch(places[-1].resolve().name):
        places.append(places[-1].resolve().parent)
    if folder.tokenizer and folder.tokenizer.parent not in places:
        places.append(folder.tokenizer.parent)
    found: dict[str, Path] = {}
    for place in places:
        with suppress(OSError):  # what may not be listed has none
            for file in small_files(place):
                if is_licence(file.name):
                    found.setdefault(file.name, file)
    return list(found.values())


def carry_over(files: Iterable[Path], staging: Staging) -> None:
    """Copy them.

    Raises:
        InputError: one of them may not be read.
        OutputError: the machine could not read or write.
    """
    for file in files:
        with reading(file):  # tells what is wrong with it
            staging.write_with(file.name, partial(shutil.copyfile, file))


def tokenizer_sources(source: Path, chosen: Path | None) -> list[Path]:
    """The one file that Meta's ``tokenizer.model`` is made of: the chosen, the source's own, or converted."""
    names = ("tokenizer.model", "original/tokenizer.model", "tokenizer.json")
    places = [chosen] if chosen else [source / name for name in names]
    return [place for place in places if place.is_file()][:1]


def tokenizer_back(source: Path, chosen: Path | None, rows: int, notes: Notes) -> bytes | None:
    """Meta's ``tokenizer.model``: the chosen one, the source's, or made of ``tokenizer.json``; or None.

    The ranks of Llama 3's tokenizer are the ids of its tokens; sentencepiece's scores are in no other file.
    Warns of tokens that it lacks, and if it does not have one token for each of the embedding's `rows`.

    Raises:
        InputError: the file cannot be read, or is no tokenizer.json.
    """
    found = tokenizer_sources(source, chosen)
    if not found:
        notes.warn(f"{source}: no tokenizer here, so none is carried over")
        return None
    (file,) = found
    if file.name == "tokenizer.json":
        try:
            model = ranks_of_tokenizer_json(json.loads(read_small(file, _LARGEST)))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise InputError("TOKENIZER_JSON", "is no tokenizer.json", file=file) from None
        if model is None:
            notes.warn(
                f"{file}: Meta's form of this tokenizer cannot be told from it, so none is carried over; "
                "--tokenizer PATH names the tokenizer.model of its release"
            )
            return None
        tokenizer: Tokenizer = read_tiktoken(file, model)
    else:
        model = read_small(file, MAX_TOKENIZER)
        try:
            tokenizer = open_tokenizer(file)
        except InputError as error:
            notes.warn(f"{error}.  It is copied as it is.")
            return model
    lost = _lost_tokens(source, tokenizer, notes)
    if lost:
        names = ", ".join(map(quoted, lost[:_MAX_NAMES]))
        more = f" and {len(lost) - _MAX_NAMES:,} more" if len(lost) > _MAX_NAMES else ""
        notes.warn(
            f"{file}: Added tokens are not in Meta's tokenizer.model; {len(lost):,} "
            f"{'token is' if len(lost) == 1 else 'tokens are'} lost: {names}{more}"
        )
    elif tokenizer.n_words != rows:
        notes.warn(
            f"{file}: The tokenizer has {tokenizer.n_words:,} tokens; the embedding has {rows:,} rows."
        )
    return model


def _lost_tokens(source: Path, tokenizer: Tokenizer, notes: Notes) -> list[str]:
    """The names of the source's tokens that Meta's code does not have, by their ids."""
    numbers: dict[str, set[int | None]] = {}
    for record in RECORDS:
        try:
            for name, number in added_tokens(source / record):
                numbers.setdefault(name, set()).add(number)
        except InputError as error:
            notes.warn(f"{error}, so tokens that it adds are not checked.")
    lost = [(n, name) for name, each in numbers.items() for n in each if not tokenizer.holds(name, n)]
    lost.sort(key=lambda token: (token[0] is None, token[0] or 0))
    return list(dict.fromkeys(name for _, name in lost))


def write_checklist(staging: Staging, options: ConvertOptions, notes: Notes) -> None:
    """Write ``checklist.chk``, the MD5 of each file as ``md5sum`` prints it, in the order of Meta's."""
    if not options.checklist:
        return
    ranks = sorted(staging.path.glob("consolidated.*.pth"))
    others = [staging.path / name for name in ("params.json", "tokenizer.model")]
    files = [*ranks, *(file for file in others if file.exists())]
    notes.observer.start(sum(file.stat().st_size for file in files), "checksummed")

    try:
        digests = md5_of_all(files, workers=options.workers, progress=notes.observer.advance)
    finally:
        notes.observer.finish()
    lines = [f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True)]
    staging.write(CHECKLIST, "".join(lines).encode())
