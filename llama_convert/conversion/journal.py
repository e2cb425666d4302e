"""What a run has finished, so that the next one goes on from there.

A line of JSON for each weight, with the digests of its bytes at all its places.  A line says what was
written, not that it is on disk: the next run believes the digests of what stands there, so a torn line, a
lost page or a file that somebody touched costs no more than that weight's work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import xxhash

from llama_convert import __version__
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.plan import Plan

JOURNAL = "journal"


@dataclass(frozen=True)
class Entry:
    """What is known of a weight that was written whole."""

    name: str
    digest: str
    """XXH3-128 of the whole weight as it was written."""
    places: tuple[str, ...]
    """XXH3-128 of the bytes at each place, in the order of the plan."""
    checksums: tuple[int, ...]
    """CRC-32 of the same, where the file's format has one."""
    cast: CastCounts
    rounded: str | None = None
    """A file whose copy of the weight differs by rounding."""


class Journal:
    """The finished weights of one plan.  Safe to share between threads."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Read what a run of the same plan has left; anything else is thrown away.

        Raises:
            OSError: the file cannot be read or written.
        """
        self._lock = Lock()
        lines = list(_lines(path))
        head = {"fingerprint": fingerprint}
        self.is_other = bool(lines) and lines[0] != head
        """Whether there was a journal of another plan."""
        self.entries = {} if self.is_other else {entry.name: entry for entry in map(_entry, lines[1:])}
        """By the weight's name."""
        if not self.entries:
            path.write_bytes(_line(head))
        else:  # without the torn end
            path.write_bytes(b"".join(_line(line) for line in lines))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def add(self, entry: Entry) -> None:
        """Take note of a weight.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            os.write(self._descriptor, _line(asdict(entry)))
            self.entries[entry.name] = entry


def fingerprint(plan: Plan | None, sources: Mapping[Path, os.stat_result], settings: str) -> str:
    """A digest of all that decides the output: the plan, the source files as they are now, the settings."""
    digest = xxhash.xxh3_128(f"{__version__} {settings}".encode())
    for task in plan.tasks if plan else ():
        digest.update(repr(task).encode())
    digest.update(repr(plan.sizes if plan else {}).encode())
    for file, status in sorted(sources.items()):
        digest.update(f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ino}".encode())
    return digest.hexdigest()


def _line(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _lines(path: Path) -> Iterator[dict[str, object]]:
    """The lines that are whole; a run that was killed tears the last one, a lost page any."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            content = json.loads(line)
        except ValueError:
            return
        if not isinstance(content, dict) or not line.endswith(b"\n"):
            return
        yield content


def _entry(line: dict[str, object]) -> Entry:
    values = dict(line)
    values["cast"] = CastCounts(**values["cast"])  # type: ignore[arg-type]
    values["places"] = tuple(values["places"])  # type: ignore[arg-type]
    values["checksums"] = tuple(values["checksums"])  # type: ignore[arg-type]
    return Entry(**values)  # type: ignore[arg-type]
