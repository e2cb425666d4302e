"""What goes along with the weights: the source's tokenizer, settings and licence; the output's checksums."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.checklist import CHECKLIST, md5_of_all
from llama_convert.checkpoints.locate import MetaFolder
from llama_convert.checkpoints.manifest import CARD, MANIFEST
from llama_convert.conversion.card import is_licence, is_ours
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.publish import Staging
from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, read_small, same_file
from llama_convert.tokenizers import ranks_of_tokenizer_json, tokens_beyond

_NEVER = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.gguf", ".*", "*.index.json", "*.chk", MANIFEST)
"""Weights of any form, and what is told of the weights' files."""
_LARGEST = 64 << 20
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
        staging.write(file.name, read_small(file, _LARGEST))


def tokenizer_sources(source: Path, chosen: Path | None, output: Path) -> list[Path]:
    """The one file that Meta's ``tokenizer.model`` is made of: the chosen, the source's own, or converted.

    An output folder in the source is no source, whatever an earlier run has written there.
    """
    names = ("tokenizer.model", "original/tokenizer.model", "tokenizer.json")
    own = [source / name for name in names if not same_file((source / name).parent, output)]
    return [place for place in ([chosen] if chosen else own) if place.is_file()][:1]


def carry_tokenizer_back(found: list[Path], source: Path, staging: Staging, notes: Notes) -> None:
    """Write Meta's ``tokenizer.model``, of the `tokenizer_sources`: a copy, or made of ``tokenizer.json``.

    The ranks of Llama 3's tokenizer are the ids of its tokens; scores of sentencepiece's stand nowhere.
    """
    if not found:
        notes.warn(f"{source}: no tokenizer here, so none is carried over")
        return
    (converted,) = found
    if converted.name != "tokenizer.json":
        staging.write("tokenizer.model", read_small(converted, MAX_TOKENIZER))
        return
    try:
        content: Any = json.loads(read_small(converted, _LARGEST))
        ranks = ranks_of_tokenizer_json(content)
        lost = tokens_beyond(content, ranks) if ranks else []
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise InputError("TOKENIZER_JSON", "is no tokenizer.json", file=converted) from None
    if ranks is None:
        notes.warn(
            f"{converted}: Meta's form of this tokenizer cannot be told from it, so none is carried over; "
            "--tokenizer PATH names the tokenizer.model of its release"
        )
        return
    if lost:
        names = ", ".join(map(repr, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        notes.warn(
            f"{converted}: Meta's form has no place for tokens that were added, which stay behind: {names}"
        )
    staging.write("tokenizer.model", ranks)


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
