"""What goes along with the weights: the source's tokenizer, settings and licence; the output's checksums."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from llama_convert.checkpoints.checklist import CHECKLIST, md5_of_all
from llama_convert.checkpoints.locate import MetaFolder
from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.conversion.job import LARGEST_CARRIED
from llama_convert.conversion.model_card import is_generated, is_licence
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.staging import Staging
from llama_convert.errors import InputError
from llama_convert.formats.files import (
    MAX_TOKENIZER,
    MAX_TOKENIZER_JSON,
    is_file_name,
    quoted,
    read_small,
    same_file,
)
from llama_convert.formats.strict_json import MOST_LISTS_OF_TOKENIZER, parse_json
from llama_convert.tokenizers import (
    RECORDS,
    Tokenizer,
    added_tokens,
    open_tokenizer,
    ranks_of_tokenizer_json,
    read_tiktoken,
)
from llama_convert.units import format_size

_NEVER = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.gguf", ".*", "*.index.json", "*.chk", MANIFEST)
"""Weights of any form, and what is told of the weights' files."""
_MAX_NAMES = 5
"""Tokens that a warning names."""
_LINE = "{}  {}\n"
"""Of ``checklist.chk``: an MD5 and a name."""
_IN_A_DOWNLOAD = re.compile(r"original|mp\d+")
"""Folders within a download from the Hub: the licence lies above them."""


def small_files(
    folder: Path,
    weights: Iterable[Path],
    notes: Notes,
    *,
    skip: tuple[str, ...] = (),
    wanted: Callable[[str], bool] = lambda _: True,
) -> list[Path]:
    """The files of a folder that are copied to the output: license, tokenizer, settings; no weights.

    A file whose name is not `is_file_name` is left behind with a warning: no manifest could list it.

    Args:
        folder: the source, or a folder around it.
        weights: the files of the checkpoint's weights.
        notes: receives the names of files that are left behind.
        skip: patterns of names that are not copied, besides those of weights and dot-files.
        wanted: decides by the name, too.

    Raises:
        InputError: one of them is a link that leads elsewhere, see `_check_link`.
    """
    folders = {file.resolve().parent for file in weights}
    chosen = []
    for file in sorted(folder.iterdir()):
        unwanted = any(fnmatch(file.name, pattern) for pattern in (*_NEVER, *skip)) or not wanted(file.name)
        if unwanted or not file.is_file() or is_generated(file):
            continue
        if not is_file_name(file.name):
            notes.warn(f"{file}: Not copied: its name is not printable UTF-8 text. Rename the file.")
        elif (size := file.stat().st_size) > LARGEST_CARRIED:
            limit = format_size(LARGEST_CARRIED)
            notes.note(f"{file}: Not copied: it has {format_size(size)} (limit {limit}).")
        else:
            _check_link(file, folders)
            chosen.append(file)
    return chosen


def _check_link(file: Path, folders: Collection[Path]) -> None:
    """Refuse to copy what a link leads to elsewhere: a downloaded ``LICENSE`` may lead to a private key.

    A link may lead to a file in its own folder or below it, and to one of ``folders``, where the weights
    really are: the blobs of the same repository in the Hub's cache, or a folder to all of whose files
    a user made links. Files that are parsed (weights, settings, ``tokenizer.model``) may be links to
    anywhere: of a file of another kind nothing gets into the output.

    Raises:
        InputError: it is such a link.
    """
    if not file.is_symlink():
        return
    target = file.resolve()
    if file.parent.resolve() not in target.parents and target.parent not in folders:
        raise InputError(
            "INPUT_LINK",
            f"Is a link to {target}, which is neither in its folder nor next to the weights.",
            file=file,
            hint="Replace the link with a copy of the file, or remove it.",
        )


def licences(folder: MetaFolder, notes: Notes) -> list[Path]:
    """The files that hold terms of use: beside the rank files, or above them where the download begins.

    Raises:
        InputError: as `small_files`.
    """
    places = [folder.path.resolve()]
    while _IN_A_DOWNLOAD.fullmatch(places[-1].name):
        places.append(places[-1].parent)
    if folder.tokenizer and folder.tokenizer.parent.resolve() not in places:
        places.append(folder.tokenizer.parent)
    found: dict[str, Path] = {}
    for place in places:
        with suppress(OSError):  # what may not be listed has none
            for file in small_files(place, folder.rank_files, notes, wanted=is_licence):
                found.setdefault(file.name, file)
    return list(found.values())


def carry_over(files: Iterable[Path], staging: Staging) -> None:
    """Copy them.

    Raises:
        InputError: one of them may not be read.
        OutputError: the machine could not read or write.
    """
    for file in files:
        staging.write(file.name, read_small(file, LARGEST_CARRIED))


def tokenizer_sources(source: Path, chosen: Path | None, output: Path) -> list[Path]:
    """The one file that Meta's ``tokenizer.model`` is made of: the chosen, the source's own, or converted.

    An output folder in the source is no source, whatever an earlier run has written there.
    """
    if chosen:
        return [chosen]
    names = ("tokenizer.model", "original/tokenizer.model", "tokenizer.json")
    own = (source / name for name in names if not same_file((source / name).parent, output))
    return [place for place in own if place.is_file()][:1]


def tokenizer_back(found: list[Path], source: Path, rows: int, notes: Notes) -> bytes | None:
    """Meta's ``tokenizer.model`` from `tokenizer_sources`: a copy, or made of ``tokenizer.json``; or None.

    The ranks of Llama 3's tokenizer are the ids of its tokens; sentencepiece's scores are in no other file.
    Warns of tokens that it lacks, and if it does not have one token for each of the embedding's `rows`.

    Raises:
        InputError: the file cannot be read, or is no tokenizer.json.
    """
    if not found:
        notes.warn(f"{source}: no tokenizer here, so none is carried over")
        return None
    (file,) = found
    if file.name == "tokenizer.json":
        try:
            content = parse_json(read_small(file, MAX_TOKENIZER_JSON), most_lists=MOST_LISTS_OF_TOKENIZER)
            model = ranks_of_tokenizer_json(content)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise InputError("TOKENIZER_JSON", "is no tokenizer.json", file=file) from None
        if model is None:
            notes.warn(
                f"{file}: Meta's form of this tokenizer cannot be derived from it, so none is carried over; "
                "--tokenizer PATH names the tokenizer.model of its release"
            )
            return None
        tokenizer: Tokenizer = read_tiktoken(file, model)
    else:
        model = read_small(file, MAX_TOKENIZER)
        tokenizer = open_tokenizer(file)  # refuses any other file, which is copied as it is
    lost = _lost_tokens(source, tokenizer, notes)
    if lost:
        names = ", ".join(map(quoted, lost[:_MAX_NAMES]))
        more = f" and {len(lost) - _MAX_NAMES:,} more" if len(lost) > _MAX_NAMES else ""
        notes.warn(
            f"{file}: Added tokens are not in Meta's tokenizer.model; {len(lost):,} "
            f"{'token is' if len(lost) == 1 else 'tokens are'} lost: {names}{more}"
        )
    elif tokenizer.vocab_size != rows:
        notes.warn(
            f"{file}: The tokenizer has {tokenizer.vocab_size:,} tokens; the embedding has {rows:,} rows."
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


def listed_in_checklist(names: Collection[str]) -> list[str]:
    """Of an output's files those that ``checklist.chk`` lists, in its order."""
    ranks = sorted(name for name in names if name.endswith(".pth"))
    return [*ranks, *(name for name in ("params.json", "tokenizer.model") if name in names)]


def checklist_size(names: Collection[str]) -> int:
    """Bytes of the ``checklist.chk`` of these files."""
    return sum(len(_LINE.format("0" * 32, name)) for name in listed_in_checklist(names))


def write_checklist(staging: Staging, options: ConvertOptions, notes: Notes) -> None:
    """Write ``checklist.chk``, the MD5 of each file as ``md5sum`` prints it, in the order of Meta's."""
    files = [staging.path / name for name in listed_in_checklist([file.name for file in staging.files])]
    notes.observer.start(sum(file.stat().st_size for file in files), "Computing checksums")

    try:
        digests = md5_of_all(files, workers=options.workers, progress=notes.observer.advance)
    finally:
        notes.observer.finish()
    lines = [_LINE.format(digest, file.name) for digest, file in zip(digests, files, strict=True)]
    staging.write(CHECKLIST, "".join(lines).encode())
