"""Official Llama files, recognized by their published sizes and checksums.

An equal checksum identifies a file.  An unequal one proves nothing: a size follows from shapes, which base,
chat and fine-tuned models share, and not every official file has a published checksum.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

from llama_convert.formats.files import Reader, read_into, reading
from llama_convert.verification.context import Context
from llama_convert.verification.inputs import Input
from llama_convert.verification.report import FileIdentity

_BLOCK = 1 << 20
_WEIGHTS = {".pth", ".safetensors", ".bin"}
_MAX_SETTINGS = 1 << 20
"""Bytes of a settings file.  So many files have each small size that an equal size means nothing."""
# The strongest first.
_CONFIDENCE = {"two": "two public sources agree", "one": "one public source", "computed": "computed"}
_ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class OfficialFile:
    """One line of official_files.csv: a file and one checksum of it, or its size if no checksum is known."""

    format: str
    """``meta`` or ``hf``."""
    release: str
    repository: str
    file: str
    """Its path in the repository; ``?`` matches any digit."""
    size: int | None
    algorithm: str
    digest: str
    """In lower-case hexadecimal; empty if none was published."""
    confidence: str
    """``two`` sources agree, ``one`` source, or ``computed``: from a reconstructed text, from a copy of the
    file, or a size from shapes."""
    source: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.file).name


@cache
def official_files() -> tuple[OfficialFile, ...]:
    """All known official files; read once."""
    with (files("llama_convert.verification") / "official_files.csv").open(encoding="utf-8") as stream:
        return tuple(_official_file(row) for row in csv.DictReader(stream))


def _official_file(row: dict[str, str]) -> OfficialFile:
    size, format_ = row.pop("bytes"), row.pop("layout")
    return OfficialFile(format=format_, size=int(size) if size else None, **row)


def identify_files(context: Context) -> list[FileIdentity]:
    """The files of output and source that are official, or have the size of an official file.

    With `VerifyOptions.checksums` every file is read and listed.
    """
    force = context.options.checksums is True
    prefixes = zip(("", "source: "), context.inputs, strict=False)
    every = [(prefix, file) for prefix, each in prefixes for file in _files_of(each)]
    sizes = [file.stat().st_size for _, file in every]
    total = sum(size for size in sizes if _algorithms_for(size, force))
    identities = []
    with context.progress(total, "Computing checksums"):
        for prefix, file in every:
            identity = identify_file(file, force=force, progress=context.observer.advance)
            if force or identity.verdict != "unknown":
                identities.append(replace(identity, file=prefix + identity.file))
    return identities


def _files_of(one: Input) -> list[Path]:
    result = sorted(file for file in one.folder.iterdir() if file.is_file())
    if one.tokenizer and not one.tokenizer.parent.samefile(one.folder):
        result.append(one.tokenizer)
    return result


def identify_file(
    file: Path, *, force: bool = False, progress: Callable[[int], None] | None = None
) -> FileIdentity:
    """Which official file ``file`` is; it is read only if an official file of its size has a known checksum.

    Safe to call from several threads at once: hashing releases the GIL.

    Args:
        file: the file.
        force: read it whatever its size, because the sizes of some official files were never published.
        progress: receives the number of bytes read since its last call.

    Raises:
        InputError: the file does not exist.
        OutputError: it cannot be read.
    """
    with reading(file) as reader:
        size = reader.size
        digests = _digests(reader, _algorithms_for(size, force), progress)
    return _identity(file.name, size, digests)


def _algorithms_for(size: int, force: bool) -> set[str]:
    """The algorithms of the published checksums of files of this size; with ``force`` of all files."""
    return {row.algorithm for row in official_files() if row.digest and (force or row.size == size)}


def _digests(
    reader: Reader, algorithms: Iterable[str], progress: Callable[[int], None] | None
) -> dict[str, str]:
    """All checksums in one pass; without algorithms no byte is read."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    block, position = memoryview(bytearray(_BLOCK)), 0
    while hashes and (count := read_into(reader, block, position)):
        position += count
        for hash_ in hashes.values():
            hash_.update(block[:count])
        if progress:
            progress(count)
    return {name: hash_.hexdigest() for name, hash_ in hashes.items()}


def _identity(name: str, size: int, digests: dict[str, str]) -> FileIdentity:
    equal = [row for row in official_files() if row.digest and row.digest == digests.get(row.algorithm)]
    if equal:
        best = min(equal, key=_rank)
        message, evidence = f"matches the official checksum of {best.release}", _provenance(best, equal)
        return FileIdentity(name, size, "official", message, best.algorithm, best.digest, evidence)
    verdict, message, provenance = _without_match(name, size, digests)
    algorithm = next((algorithm for algorithm in _ALGORITHMS if algorithm in digests), None)
    digest = digests[algorithm] if algorithm else None
    return FileIdentity(name, size, verdict, message, algorithm, digest, provenance)


def _rank(row: OfficialFile) -> tuple[int, int]:
    """Sorts the row with the strongest evidence first."""
    return list(_CONFIDENCE).index(row.confidence), list(_ALGORITHMS).index(row.algorithm)


def _provenance(best: OfficialFile, equal: list[OfficialFile]) -> str:
    others = dict.fromkeys(row.repository for row in equal if row.repository != best.repository)
    return (
        f"{best.file} of {best.repository}, {_ALGORITHMS[best.algorithm]}, "
        f"{_CONFIDENCE[best.confidence]}: {best.source}"
        + (f". The same file is in {', '.join(others)}" if others else "")
    )


def _without_match(name: str, size: int, digests: dict[str, str]) -> tuple[str, str, str | None]:
    """Verdict, message and provenance of a file that has the checksum of no official file."""
    computed = " or ".join(label for algorithm, label in _ALGORITHMS.items() if algorithm in digests)
    similar = [row for row in official_files() if row.size == size and _is_of_kind(row, name)]
    if not similar or _is_settings(name, size):
        if digests:
            return "unknown", f"matches no official {computed}", None
        return "unknown", "has the size of no known official file (checksum not computed)", None
    releases, listed = _releases(similar), _listed(similar, name)
    without = [row for row in similar if not row.digest]
    if similar == without:
        message = f"has the size of {listed}, whose checksum was not published"
        return "size only", message, None
    if without:  # it may be one of these: unofficial means that no file of this size is left
        message = f"has the size of {listed} but not its {computed}"
        return "size only", message, f"The checksum of {_releases(without)} was not published"
    message = f"has the size but not the {computed} of the official file of {releases}"
    reasons = "Fine-tuned, re-saved or damaged, or an official file whose checksum was not published"
    return "unofficial", message, f"{listed}. {reasons}"


def _is_settings(name: str, size: int) -> bool:
    return size <= _MAX_SETTINGS and PurePosixPath(name).suffix not in {*_WEIGHTS, ".model"}


def _is_of_kind(row: OfficialFile, name: str) -> bool:
    """Whether a file of this name may be ``row``: weights by their suffix, other files by their name."""
    suffix = PurePosixPath(row.file).suffix
    return name.endswith(suffix) if suffix in _WEIGHTS else name == row.name


def _releases(rows: list[OfficialFile]) -> str:
    return ", ".join(dict.fromkeys(row.release for row in rows))


def _listed(rows: list[OfficialFile], name: str) -> str:
    """Files with their releases; only those called ``name``, if there are any."""
    by_name: dict[str, list[OfficialFile]] = {}
    for row in [row for row in rows if fnmatchcase(name, row.name)] or rows:
        by_name.setdefault(row.name, []).append(row)
    return ", ".join(f"{file} of {_releases(members)}" for file, members in by_name.items())
