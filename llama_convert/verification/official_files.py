"""Recognises official Llama files by the sizes and checksums that the public has noted of them.

An equal digest says which file it is.  An unequal one proves nothing: a size follows from shapes, which base,
chat and fine-tuned models share; not every official file has a published digest, and some that were published
were wrong.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

from llama_convert.formats.files import Reader, read_into, reading
from llama_convert.verification.report import FileIdentity

_BLOCK = 1 << 20
_WEIGHTS = {".pth", ".safetensors", ".bin"}
# The strongest first.
_CONFIDENCE = {"two": "two public sources agree", "one": "one public source", "computed": "computed"}
_ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}
_FOREIGN = ": fine-tuned, re-saved or damaged, or an official file whose checksum was not published"


@dataclass(frozen=True)
class OfficialFile:
    """One line of official_files.csv: a file and one digest of it, or its size where no digest is known."""

    layout: str
    release: str
    repository: str
    file: str
    """Its path in the repository; ``?`` stands for any digit."""
    size: int | None
    algorithm: str
    digest: str
    """In lower-case hexadecimal; empty where none was published."""
    confidence: str
    """``two`` sources agree, ``one``, or ``computed``: from a text rebuilt or a file held, or a size from
    shapes."""
    source: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.file).name


@cache
def official_files() -> tuple[OfficialFile, ...]:
    """All that is known, read once."""
    with (files("llama_convert.verification") / "official_files.csv").open(encoding="utf-8") as stream:
        return tuple(_official_file(row) for row in csv.DictReader(stream))


def _official_file(row: dict[str, str]) -> OfficialFile:
    size = row.pop("bytes")
    return OfficialFile(size=int(size) if size else None, **row)


def identify_file(
    file: Path, *, force: bool = False, progress: Callable[[int], None] | None = None
) -> FileIdentity:
    """Tell which official file ``file`` is; it is read only if its size is that of one whose digest is known.

    May be called from several threads at once: digesting does not hold Python's lock.

    Args:
        file: the file.
        force: read it whatever its size, since the sizes of some official files were never published.
        progress: is told how many more bytes were read.

    Raises:
        InputError: there is no such file.
        OutputError: it cannot be read.
    """
    with reading(file) as reader:
        size = reader.size
        digests = _digests(reader, _wanted(size, force), progress)
    return _identity(file.name, size, digests)


def _wanted(size: int, force: bool) -> set[str]:
    """The algorithms whose digests may tell something of a file of this size."""
    return {row.algorithm for row in official_files() if row.digest and (force or row.size == size)}


def _digests(
    reader: Reader, algorithms: Iterable[str], progress: Callable[[int], None] | None
) -> dict[str, str]:
    """All digests in one pass; no byte is read if none is wanted."""
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
        best = min(equal, key=_doubt)
        return FileIdentity(name, size, "official", _official(best, equal), best.algorithm, best.digest)
    verdict, message = _unequal(name, size, digests)
    algorithm = next((algorithm for algorithm in _ALGORITHMS if algorithm in digests), None)
    return FileIdentity(name, size, verdict, message, algorithm, digests[algorithm] if algorithm else None)


def _doubt(row: OfficialFile) -> tuple[int, int]:
    """What the best of several equal digests has the least of."""
    return list(_CONFIDENCE).index(row.confidence), list(_ALGORITHMS).index(row.algorithm)


def _official(best: OfficialFile, equal: list[OfficialFile]) -> str:
    others = dict.fromkeys(row.repository for row in equal if row.repository != best.repository)
    return (
        f"is {best.file} of {best.release} ({best.repository}) by its {_ALGORITHMS[best.algorithm]}; "
        f"{_CONFIDENCE[best.confidence]}: {best.source}"
        + (f"; the same file is in {', '.join(others)}" if others else "")
    )


def _unequal(name: str, size: int, digests: dict[str, str]) -> tuple[str, str]:
    """Verdict and message on a file with the digest of no official file."""
    alike = [row for row in official_files() if row.size == size and _alike(row, name)]
    unpublished = [row for row in alike if not row.digest]
    digested = " or ".join(label for algorithm, label in _ALGORITHMS.items() if algorithm in digests)
    if alike and alike == unpublished:
        return "size only", f"has the size of {_list(alike, name)}, of which no checksum is known"
    if alike:
        message = f"has the size of {_list(alike, name)} but not the {digested} published"
        # It may be one of these: nothing is foreign before the digest of every file of its size is known.
        if releases := dict.fromkeys(row.release for row in unpublished):
            return "size only", f"{message}; that of {', '.join(releases)} was not"
        return "unofficial", message + _FOREIGN
    if digests:
        return "unknown", f"no official file is known to have its {digested}"
    return "unknown", "no official file of its size is known; not digested"


def _alike(row: OfficialFile, name: str) -> bool:
    """Whether a file of this name and this size may be meant to be ``row``: small sizes agree by chance."""
    kind = PurePosixPath(row.file).suffix
    return name.endswith(kind) if kind in _WEIGHTS else name == row.name


def _list(rows: list[OfficialFile], name: str) -> str:
    """Files with their releases; just those called ``name``, if there are any."""
    releases: dict[str, list[str]] = {}
    for row in [row for row in rows if fnmatchcase(name, row.name)] or rows:
        known = releases.setdefault(row.name, [])
        if row.release not in known:
            known.append(row.release)
    return "; ".join(f"{file} of {', '.join(of)}" for file, of in releases.items())
