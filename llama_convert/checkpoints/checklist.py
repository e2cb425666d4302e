"""``checklist.chk``: MD5s of the files of a folder in the format of ``md5sum``, part of Meta's downloads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from llama_convert.formats.files import read_at, read_small, reading
from llama_convert.text import is_printable_name

CHECKLIST = "checklist.chk"
_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](?:\./)?([^/]+)")
_MAX_BYTES = 1 << 20
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Checklist:
    """Content of a ``checklist.chk``."""

    md5s: dict[Path, str]
    """MD5 of each listed file that exists."""
    missing: tuple[str, ...]
    """Listed files that do not exist."""
    malformed: tuple[str, ...]
    """A message for each malformed line."""

    def file_with(self, md5: str) -> str | None:
        """Name of the listed file with this MD5."""
        return next((file.name for file, recorded in self.md5s.items() if recorded == md5), None)


def read_checklist(folder: Path) -> Checklist | None:
    """The checklist of a folder; None if it has none.

    ``tokenizer.model`` may be in the parent folder, as in LLaMA 1.

    Raises:
        InputError: the checklist is not a regular file, or too large.
        OutputError: a read error.
    """
    file = folder / CHECKLIST
    if not file.exists():
        return None
    md5s, missing, malformed = {}, [], []
    lines = read_small(file, _MAX_BYTES).decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None or match[2] in ("..", ".") or not is_printable_name(match[2]):
            malformed += [f"Line {number} is malformed: {line.strip()!r:.60}."] if line.strip() else []
            continue
        paths = [folder / match[2]]
        paths += [folder.parent / match[2]] if match[2] == "tokenizer.model" else []
        existing = next((path for path in paths if _is_file(path)), None)
        if existing:
            md5s[existing] = match[1].lower()
        else:
            missing.append(match[2])
    return Checklist(md5s, tuple(missing), tuple(malformed))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # not a valid file name
        return False


def md5_of_all(
    files: list[Path], *, workers: int, progress: Callable[[int], None] = lambda _: None
) -> list[str]:
    """The MD5 of each file.

    Args:
        files: the files.
        workers: number of files to read in parallel.  An interruption ends all of them.
        progress: called with the number of bytes after each block.

    Raises:
        InputError: a file is missing.
        OutputError: a read error.
    """
    stop = Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(lambda file: _md5(file, progress, stop), files))
        finally:
            stop.set()


def _md5(file: Path, progress: Callable[[int], None], stop: Event) -> str:
    md5, position = hashlib.md5(usedforsecurity=False), 0
    with reading(file) as reader:
        while not stop.is_set() and (block := read_at(reader, _BLOCK, position)):
            md5.update(block)
            position += len(block)
            progress(len(block))
    return md5.hexdigest()
