"""The journal of a run: which weights it has written, so that the next run resumes there.

Each line is sealed with a checksum and records one weight, or the first rows of a large one, with the hashes
of the bytes at all its places. The last line of a weight counts. A line does not prove that the bytes are on
disk: the next run hashes what the files hold, so a torn line, a lost page or an edited file only costs the
work of that weight.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from llama_convert.checkpoints.value_scan import ValueScan
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.disk import open_for_writing, output_error
from llama_convert.conversion.sealed_json import from_json, sealed, unsealed
from llama_convert.errors import InputError
from llama_convert.formats.files import read_descriptor, remote_files

JOURNAL = ".journal"
MAX_JOURNAL = 256 << 20


def journal_name(file: str) -> str:
    """Return the name of the journal of a run that writes one file of the plan."""
    return f"{JOURNAL}.{file}"


@dataclass(frozen=True)
class Entry:
    """What a journal records of a weight, or of its first rows."""

    name: str
    rows: int
    """Number of rows written, counted from the first; all rows if the weight is complete."""
    hashes: tuple[str, ...]
    """XXH3-128 of these rows' bytes at each place, in the order of the plan."""
    crc32s: tuple[int, ...]
    """CRC-32 of the same bytes, if the output format stores one."""
    cast: CastCounts
    value_scan: ValueScan
    rounded: str | None = None
    """A source file whose copy of the weight differs by rounding."""
    read: tuple[tuple[int, int, int, int], ...] = ()
    """`Checksums.read_ranges` of what was read of the source's storages."""

    def __post_init__(self) -> None:
        if not all(0 <= crc32 < 1 << 32 for crc32 in self.crc32s):
            raise ValueError("not a CRC-32")


class Record:
    """The entries of one plan, kept in memory only."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        """Entries by weight name."""

    def add(self, entry: Entry) -> None:
        """Record what is written of a weight."""
        self.entries[entry.name] = entry


class Journal(Record):
    """The entries of one plan, kept in a file. Thread-safe."""

    def __init__(self, path: Path, fingerprint: str, *, restart: bool = False) -> None:
        """Read the journal of an earlier run of the same plan; a journal of any other run is emptied.

        Args:
            path: the journal's file.
            fingerprint: identifies the plan and its sources.
            restart: empty the journal in any case.

        Raises:
            OutputError: the file cannot be read or written.
        """
        super().__init__()
        self._path = path
        self._lock = Lock()
        self.n_discarded = 0
        """Number of weights in a journal of an earlier run that was emptied."""
        self._complete: object = None
        self.is_resumed = False
        """Whether an earlier run of the same plan left this journal."""
        try:
            self._descriptor = open_for_writing(path, os.O_RDWR | os.O_APPEND)
            self._read({"fingerprint": fingerprint}, restart)
        except OSError as error:
            raise output_error("Cannot open the journal", error, path) from error

    def _read(self, head: dict[str, str], restart: bool) -> None:
        try:
            content = read_descriptor(self._descriptor, self._path, MAX_JOURNAL)
        except InputError:  # too large for a journal
            content = b""
        first, *rest = list(unsealed(content)) or [{}]
        self.is_resumed = first == head and not restart
        if not self.is_resumed:
            self.n_discarded = len({str(line["name"]) for line in rest if "name" in line})
            os.ftruncate(self._descriptor, 0)
            self._append(sealed(head))
            return
        for line in rest:
            if line.keys() == {"complete"}:
                self._complete = line["complete"]
            elif entry := _entry(line):
                self.entries[entry.name] = entry
        if not content.endswith(b"\n"):
            self._append(b"\n")  # ends a torn line

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def add(self, entry: Entry) -> None:
        """Record what is written of a weight.

        Raises:
            OutputError: the journal cannot be written.
        """
        with self._lock:
            self._append_or_fail(asdict(entry))
            super().add(entry)

    def complete(self, file: Path) -> None:
        """Record that the one file of this journal is complete and on disk.

        Raises:
            OutputError: the journal cannot be written, or the file is gone.
        """
        with self._lock:
            try:
                self._complete = _file_state(file)
            except OSError as error:
                raise output_error("Cannot write the journal", error, self._path) from error
            self._append_or_fail({"complete": self._complete})

    def reopen(self) -> None:
        """Record that the file is not complete after all: the next run reads it back.

        Raises:
            OutputError: the journal cannot be written.
        """
        with self._lock:
            self._complete = None
            self._append_or_fail({"complete": None})

    def is_complete(self, file: Path) -> bool:
        """Return whether the file is recorded as complete and has not been modified since."""
        try:
            return self._complete is not None and self._complete == _file_state(file)
        except OSError:
            return False

    def _append_or_fail(self, content: object) -> None:
        try:
            self._append(sealed(content))
        except OSError as error:
            raise output_error("Cannot write the journal", error, self._path) from error

    def _append(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]


def _file_state(file: Path) -> list[int] | str:
    """Return a value that changes when the file does; for an upload, the version that the store gave it."""
    if file in remote_files:
        return remote_files[file].version()
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _entry(line: dict[str, Any]) -> Entry | None:
    """Return a line's entry; None if `Journal.add` did not write the line."""
    try:
        entry: Entry = from_json(Entry, line)
    except ValueError:
        return None
    return entry
