"""A plan's files are independent units: each can be written by another process, on another machine.

Of each a journal in the staging folder tells whether it is written, and what was noticed meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_convert.conversion.execute import Progress, fits
from llama_convert.conversion.journal import Entry, Journal, journal_of
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.read_back import first_difference
from llama_convert.conversion.staging import Staging
from llama_convert.conversion.write_report import Report, report_of_units
from llama_convert.errors import OutputError, UsageError
from llama_convert.formats.files import remote_files


@dataclass(frozen=True)
class Share:
    """The ``number``th of ``count`` shares of a plan's files, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """What ``3/16`` means.

        Raises:
            UsageError: it means none.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            hint = "I is from 1 to N, as in 3/16"
            raise UsageError("BAD_USAGE", f"--array-task {text}: expected I/N", hint=hint)
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, files: Sequence[str]) -> Sequence[str]:
        """Every ``count``th file."""
        return files[self.number - 1 :: self.count]


def gather(plan: Plan, staging: Staging, fingerprint: str) -> Report:
    """What the units' journals tell.

    Raises:
        OutputError: not all of them are complete.
    """
    units = {file: _entries(plan.only(file), staging.path, file, fingerprint) for file in plan.layouts}
    missing = [file for file, entries in units.items() if entries is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        message = f"{missing[0]}{more} of {len(units)} files are not written yet"
        raise OutputError("UNITS_MISSING", message, file=staging.destination)
    return report_of_units(plan, {file: entries for file, entries in units.items() if entries is not None})


def check_units(
    plan: Plan, folder: Path, fingerprint: str, options: ConvertOptions, progress: Progress
) -> None:
    """Read what the units have written, and compare it with their journals.

    Uploads are not read: a store shows them complete or not at all, and the journal has the version it gave.

    Raises:
        OutputError: a file is not what was written; its journal no longer calls it complete.
    """
    for file in units_here(plan, folder):
        unit = plan.only(file)
        journal = _journal(unit, folder, file, fingerprint)
        if journal is None:
            continue
        digests = {name: entry.digests for name, entry in journal.entries.items()}
        difference = first_difference(
            folder,
            unit,
            digests,
            workers=options.workers,
            block_size=options.block_size,
            progress=progress,
        )
        if difference:
            journal = Journal(folder / journal_of(file), fingerprint)
            journal.reopen()
            journal.close()
            raise OutputError(
                "OUTPUT_CHECKSUM",
                f"{difference[1]} is not what was written.",
                file=folder / file,
                hint="Run the command or array task that wrote it again; it rewrites what is damaged.",
            )


def units_here(plan: Plan, folder: Path) -> list[str]:
    """The files that can be read back."""
    return [file for file in plan.layouts if folder / file not in remote_files]


def is_complete(plan: Plan, folder: Path, fingerprint: str) -> bool:
    """Whether every unit is."""
    return all(_entries(plan.only(file), folder, file, fingerprint) is not None for file in plan.layouts)


def _entries(unit: Plan, folder: Path, file: str, fingerprint: str) -> dict[str, Entry] | None:
    """What a unit's journal records; None if there is none, or it is not complete."""
    journal = _journal(unit, folder, file, fingerprint)
    return journal.entries if journal and is_written(unit, journal, folder / file) else None


def is_written(unit: Plan, journal: Journal, path: Path) -> bool:
    """Whether a unit's journal calls its file complete, and has the lines of all its weights."""
    rows = {name: entry.rows for name, entry in journal.entries.items()}
    return journal.is_complete(path) and all(rows.get(task.name) == task.n_rows for task in unit.tasks)


def _journal(unit: Plan, folder: Path, file: str, fingerprint: str) -> Journal | None:
    """A unit's journal with the lines that can be of its weights; None if there is none."""
    path = folder / journal_of(file)
    if not path.is_file():
        return None
    journal = Journal(path, fingerprint)
    journal.close()
    tasks = {task.name: task for task in unit.tasks}
    entries = journal.entries.items()
    journal.entries = {n: entry for n, entry in entries if n in tasks and fits(entry, tasks[n])}
    return journal


def adopt(plan: Plan, staging: Staging, fingerprint: str) -> None:
    """Let one process resume what array tasks have begun, where it writes the same weights."""
    assert staging.journal
    for entry in adoptable(plan, staging.path, fingerprint):
        if entry.name not in staging.journal.entries:
            staging.journal.add(entry)


def adoptable(plan: Plan, folder: Path, fingerprint: str) -> Iterator[Entry]:
    """Of weights that are in one file each, what the units' journals record."""
    places = {task.name: task.places for task in plan.tasks}
    for file in plan.layouts:
        journal = _journal(plan.only(file), folder, file, fingerprint)
        for name, entry in journal.entries.items() if journal else ():
            if len(places[name]) == 1:
                yield entry


def saved_bytes(plan: Plan, entries: Mapping[str, Entry]) -> int:
    """Bytes of weights that these entries record."""
    return sum(task.bytes_of(entries[task.name].rows) for task in plan.tasks if task.name in entries)


def saved_in_units(
    plan: Plan, folder: Path, fingerprint: str, files: Iterable[str], *, only_complete: bool
) -> tuple[int, int]:
    """Bytes of weights that the units' journals record, and of all weights in these files.

    Args:
        plan: what is written.
        folder: the staging folder.
        fingerprint: what the journals begin with.
        files: the units.
        only_complete: count no part of a file, as of uploads, which cannot be resumed.
    """
    saved = total = 0
    for file in files:
        unit = plan.only(file)
        journal = _journal(unit, folder, file, fingerprint)
        total += unit.payload_bytes
        if journal and (is_written(unit, journal, folder / file) or not only_complete):
            saved += saved_bytes(unit, journal.entries)
    return saved, total
