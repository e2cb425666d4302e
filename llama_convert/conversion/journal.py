"""What a run has written, so that the next one resumes there.

A line for each weight that is written, and for each so many bytes of a large one, with the hashes of its
bytes at all its places, and before it a hash of the line; of several lines of a weight the last counts.  A
line says what was written, not that it is on disk: the next run hashes what is in the files, so a torn line,
a lost page or an edited file costs no more than that weight's work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash

from llama_convert import __version__
from llama_convert.checkpoints.value_scan import ValueScan
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.json_values import from_json
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.sync import failure, open_own
from llama_convert.errors import InputError
from llama_convert.formats.files import read_descriptor, remote_files
from llama_convert.formats.strict_json import parse_json
from llama_convert.stores.location import Location

JOURNAL = ".journal"
MAX_JOURNAL = 256 << 20


def journal_of(file: str) -> str:
    """The name of the journal of a run that writes one file of the plan."""
    return f"{JOURNAL}.{file}"


@dataclass(frozen=True)
class Entry:
    """What is known of a weight that was written, or of its first rows."""

    name: str
    rows: int
    """Rows that are written, from the first on; all of them where the weight is complete."""
    digests: tuple[str, ...]
    """XXH3-128 of these rows' bytes at each place, in the order of the plan."""
    checksums: tuple[int, ...]
    """CRC-32 of the same, where the file's format has one."""
    cast: CastCounts
    oddities: ValueScan
    rounded: str | None = None
    """A file whose copy of the weight differs by rounding."""
    read: tuple[tuple[int, int, int, int], ...] = ()
    """`Checksums.known` of what was read of the source's storages."""

    def __post_init__(self) -> None:
        if not all(0 <= checksum < 1 << 32 for checksum in self.checksums):
            raise ValueError("not a CRC-32")


class Record:
    """What `execute` has written of the weights of one plan, as long as the process lives."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        """By the weight's name."""

    def add(self, entry: Entry) -> None:
        """Record what is written of a weight."""
        self.entries[entry.name] = entry


class Journal(Record):
    """What is written of the weights of one plan.  Safe to share between threads."""

    def __init__(self, path: Path, fingerprint: str, *, restart: bool = False) -> None:
        """Read what a run of the same plan has left; anything else, or all with `restart`, is thrown away.

        Raises:
            OutputError: the file cannot be read or written.
        """
        super().__init__()
        self._path = path
        self._lock = Lock()
        self.thrown_away = 0
        """How many weights an earlier run had begun, of which nothing is kept."""
        self._complete: object = None
        self.is_resumed = False
        """Whether an earlier run of the same plan has left something."""
        try:
            self._descriptor = open_own(path, os.O_RDWR | os.O_APPEND)
            self._read({"fingerprint": fingerprint}, restart)
        except OSError as error:
            raise failure("cannot be opened", error, path) from error

    def _read(self, head: dict[str, str], restart: bool) -> None:
        try:
            content = read_descriptor(self._descriptor, self._path, MAX_JOURNAL)
        except InputError:  # too large to be one
            content = b""
        first, *rest = list(unsealed(content)) or [{}]
        self.is_resumed = first == head and not restart
        if not self.is_resumed:
            self.thrown_away = len({str(line["name"]) for line in rest if "name" in line})
            os.ftruncate(self._descriptor, 0)
            self._append(sealed(head))
            return
        for line in rest:
            if line.keys() == {"complete"}:
                self._complete = line["complete"]
            elif entry := _entry(line):
                self.entries[entry.name] = entry
        if not content.endswith(b"\n"):
            self._append(b"\n")  # the torn line ends here

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def add(self, entry: Entry) -> None:
        """Record what is written of a weight.

        Raises:
            OutputError: the file cannot be written.
        """
        with self._lock:
            try:
                self._append(sealed(asdict(entry)))
            except OSError as error:
                raise failure("cannot be written", error, self._path) from error
            super().add(entry)

    def complete(self, file: Path) -> None:
        """Take note that all of the one file that this journal is of is on disk.

        Raises:
            OutputError: the journal cannot be written.
        """
        with self._lock:
            try:
                self._complete = _state(file)
                self._append(sealed({"complete": self._complete}))
            except OSError as error:
                raise failure("cannot be written", error, self._path) from error

    def reopen(self) -> None:
        """Record that the file is not complete after all: the next run reads it back.

        Raises:
            OutputError: the journal cannot be written.
        """
        with self._lock:
            try:
                self._complete = None
                self._append(sealed({"complete": None}))
            except OSError as error:
                raise failure("cannot be written", error, self._path) from error

    def is_complete(self, file: Path) -> bool:
        """Whether the file was complete, and nobody has touched it since."""
        try:
            return self._complete is not None and self._complete == _state(file)
        except OSError:
            return False

    def _append(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]


@dataclass(frozen=True)
class Identity:
    """What decides an output but the bytes of the source's weights, as hashes."""

    plan: str
    """Of all of it."""
    weights: str
    """Of what decides the weights' files."""

    @classmethod
    def of(cls, plan: Plan | None, settings: str) -> Identity:
        """The identity of an output; `settings` has what decides it besides the plan."""
        return cls(plan_digest(plan, settings), plan_digest(plan, ""))


def plan_digest(plan: Plan | None, settings: str) -> str:
    """A digest of all that decides the output but the source's bytes, wherever its folder lies.

    Args:
        plan: what is written of the weights.
        settings: all else that makes a difference.
    """
    digest = xxhash.xxh3_128(f"{__version__} {settings}".encode())
    for task in plan.tasks if plan else ():
        digest.update(repr((task.name, task.dtype, task.places, task.reorder, task.source.shape)).encode())
        for slab in task.source.slabs:
            nameless = replace(slab, storage=replace(slab.storage, file=Path(slab.file.name)))
            digest.update(repr(nameless).encode())
    digest.update(repr(plan.sizes if plan else {}).encode())
    return digest.hexdigest()


def fingerprint(identity: str, sources: Mapping[Path, tuple[object, ...]], location: Location) -> str:
    """A hash of the `plan_digest` and of the source files as they are now.

    Args:
        identity: the `plan_digest`.
        sources: size, time and version of each file.
        location: the source. The fingerprint of a mounted one has URLs, and no inodes of downloaded copies,
            which differ in the next run.
    """
    digest = xxhash.xxh3_128(identity.encode())
    for file, (size, modified, version) in sorted(sources.items()):
        is_copy = location.contains(file) and file not in remote_files
        state = (location.display(str(file)), size, modified, "" if is_copy else version)
        digest.update(" ".join(map(str, state)).encode())
    return digest.hexdigest()


def _state(file: Path) -> list[int] | str:
    """What changes when the file does; of an upload, which is complete or absent, the store's version."""
    if file in remote_files:
        return remote_files[file].version()
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def sealed(content: object) -> bytes:
    """A line of JSON, and before it a hash of it."""
    text = json.dumps(content, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def unsealed(content: bytes) -> Iterator[dict[str, Any]]:
    """The objects of the lines that are whole: a killed run tears the last one, a lost page any."""
    for line in content.splitlines():
        digest, _, text = line.partition(b" ")
        if digest == xxhash.xxh3_64_hexdigest(text).encode():
            with suppress(ValueError):
                value = parse_json(text)
                if isinstance(value, dict):
                    yield value


def _entry(line: dict[str, Any]) -> Entry | None:
    """What a line says of a weight; None if it is no line that `Journal.add` writes."""
    try:
        entry: Entry = from_json(Entry, line)
    except ValueError:
        return None
    return entry
