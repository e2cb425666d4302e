"""What goes along with the weights: the source's tokenizer, settings and licence; the output's checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.conversion.job import Notes
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.publish import Staging
from llama_convert.errors import InputError
from llama_convert.tokenizers import ranks_of_tokenizer_json

_NEVER = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.gguf", ".*", "*.index.json", "*.chk", MANIFEST)
"""Weights of any form, and what is told of the weights' files."""
_LARGEST = 64 << 20
_MD5_BLOCK = 1 << 20


def carry_over(source: Path, staging: Staging, skip: tuple[str, ...] = ()) -> None:
    """Copy the small files of the source's folder: licence, tokenizer, settings; no weights.

    Args:
        source: the folder.
        staging: where to.
        skip: patterns of names to leave behind.
    """
    for file in sorted(source.iterdir()):
        left_behind = any(fnmatch(file.name, pattern) for pattern in (*_NEVER, *skip))
        if file.is_file() and not left_behind and file.stat().st_size <= _LARGEST:
            staging.write_with(file.name, partial(shutil.copyfile, file))


def carry_tokenizer_back(source: Path, chosen: Path | None, staging: Staging, notes: Notes) -> None:
    """Write Meta's ``tokenizer.model``: a copy of the chosen or the source's, or made of ``tokenizer.json``.

    The ranks of Llama 3's tokenizer are the ids of its tokens; scores of sentencepiece's stand nowhere.
    """
    beside = [source / "tokenizer.model", source / "original" / "tokenizer.model"]
    for original in [chosen] if chosen else beside:
        if original.is_file():
            staging.write("tokenizer.model", original.read_bytes())
            return
    converted = source / "tokenizer.json"
    if not converted.is_file():
        notes.warn(f"{source}: no tokenizer here, so none is carried over")
        return
    try:
        content: Any = json.loads(converted.read_bytes())
        ranks = ranks_of_tokenizer_json(content)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise InputError("TOKENIZER_JSON", "is no tokenizer.json", file=converted) from None
    if ranks is None:
        notes.warn(
            f"{converted}: Meta's form of this tokenizer cannot be told from it, so none is carried over; "
            "--tokenizer PATH names the tokenizer.model of its release"
        )
        return
    staging.write("tokenizer.model", ranks)


def write_checklist(staging: Staging, options: ConvertOptions, notes: Notes) -> None:
    """Write ``checklist.chk``, the MD5 of each file as ``md5sum`` prints it, in the order of Meta's."""
    if not options.checklist:
        return
    ranks = sorted(staging.path.glob("consolidated.*.pth"))
    others = [staging.path / name for name in ("params.json", "tokenizer.model")]
    files = [*ranks, *(file for file in others if file.exists())]
    notes.observer.start(sum(file.stat().st_size for file in files), "checksummed")

    def md5(file: Path) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        with file.open("rb") as stream:
            while block := stream.read(_MD5_BLOCK):
                digest.update(block)
                notes.observer.advance(len(block))
        return digest.hexdigest()

    try:
        with ThreadPoolExecutor(options.workers) as pool:
            lines = [
                f"{digest}  {file.name}\n" for file, digest in zip(files, pool.map(md5, files), strict=True)
            ]
    finally:
        notes.observer.finish()
    staging.write("checklist.chk", "".join(lines).encode())
