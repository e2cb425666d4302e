"""``checklist.chk``: the MD5 of each file of a folder, as ``md5sum`` prints it and Meta sends it along."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from llama_convert.formats.files import is_plain, read_at, read_small, reading

CHECKLIST = "checklist.chk"
_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](?:\./)?([^/]+)")
_MOST_BYTES = 1 << 20
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Checklist:
    """What a checklist says of which file."""

    said: dict[Path, str]
    """MD5 of each file that is here."""
    absent: tuple[str, ...]
    """Files that it names, and that are not here."""
    malformed: tuple[str, ...]
    """Lines that say nothing, each with its number."""

    def named(self, digest: str) -> str | None:
        """The name of the file that a digest belongs to."""
        return next((file.name for file, said in self.said.items() if said == digest), None)


def read_checklist(folder: Path) -> Checklist | None:
    """The folder's checklist; None if it has none.  A tokenizer may lie one folder up, as LLaMA 1's does.

    Raises:
        InputError: it is no regular file, or too large.
        OutputError: the machine cannot read it.
    """
    file = folder / CHECKLIST
    if not file.exists():
        return None
    said, absent, malformed = {}, [], []
    lines = read_small(file, _MOST_BYTES).decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None or match[2] in ("..", ".") or not is_plain(match[2]):
            malformed += [f"line {number} is malformed: {line.strip()!r:.60}"] if line.strip() else []
            continue
        places = [folder / match[2]]
        places += [folder.parent / match[2]] if match[2] == "tokenizer.model" else []
        here = next((place for place in places if _is_file(place)), None)
        if here:
            said[here] = match[1].lower()
        else:
            absent.append(match[2])
    return Checklist(said, tuple(absent), tuple(malformed))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def md5_of_all(
    files: list[Path], *, workers: int, progress: Callable[[int], None] = lambda _: None
) -> list[str]:
    """The MD5 of each file, several at a time; stops at once when interrupted.

    Raises:
        InputError: one of them is not there.
        OutputError: the machine cannot read one.
    """
    stop = Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(lambda file: _md5(file, progress, stop), files))
        finally:
            stop.set()


def _md5(file: Path, progress: Callable[[int], None], stop: Event) -> str:
    digest, position = hashlib.md5(usedforsecurity=False), 0
    with reading(file) as reader:
        while not stop.is_set() and (block := read_at(reader, _BLOCK, position)):
            digest.update(block)
            position += len(block)
            progress(len(block))
    return digest.hexdigest()
