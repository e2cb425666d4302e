"""Work units: a plan's files, each of which another process may write.

The journal of each file in the staging folder records whether it is complete and what was found meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_convert.conversion.execute import Progress, fits
from llama_convert.conversion.journal import Entry, Journal, journal_name
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.read_back import first_difference
from llama_convert.conversion.staging import Staging
from llama_convert.conversion.write_report import WriteReport, report_of_units
from llama_convert.errors import OutputError, UsageError
from llama_convert.formats.files import remote_files
from llama_convert.text import listed


@dataclass(frozen=True)
class ArrayTask:
    """Task ``number`` of ``count`` tasks that share a plan's files, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> ArrayTask:
        """Return the task that text like ``3/16`` names.

        Raises:
            UsageError: the text names none.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            hint = "Pass I/N with I from 1 to N, for example 3/16."
            raise UsageError("BAD_USAGE", f"--array-task {text}: Invalid task.", hint=hint)
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def select(self, files: Sequence[str]) -> Sequence[str]:
        """Return this task's files: every ``count``-th one."""
        return files[self.number - 1 :: self.count]


def collect_report(plan: Plan, staging: Staging, fingerprint: str) -> WriteReport:
    """Return the report of all units from their journals.

    Raises:
        OutputError: not all units are complete.
    """
    units = {
        file: _complete_entries(plan.restricted_to(file), staging.path, file, fingerprint)
        for file in plan.layouts
    }
    missing = [file for file, entries in units.items() if entries is None]
    if missing:
        message = f"{len(missing)} of {len(units)} files are not written yet: {listed(missing)}."
        raise OutputError("ARRAY_TASKS_MISSING", message, file=staging.destination)
    return report_of_units(plan, {file: entries for file, entries in units.items() if entries is not None})


def verify_units(
    plan: Plan, folder: Path, fingerprint: str, options: ConvertOptions, progress: Progress
) -> None:
    """Read back the files of all units and compare them with their journals.

    Uploads are not read back: a store shows a file completely or not at all, and the journal has its version.

    Raises:
        OutputError: a file differs from what was written; its journal no longer marks it complete.
    """
    for file in local_units(plan, folder):
        unit = plan.restricted_to(file)
        journal = _journal(unit, folder, file, fingerprint)
        if journal is None:
            continue
        hashes = {name: entry.hashes for name, entry in journal.entries.items()}
        difference = first_difference(
            folder,
            unit,
            hashes,
            workers=options.workers,
            block_size=options.block_size,
            progress=progress,
        )
        if difference:
            journal = Journal(folder / journal_name(file), fingerprint)
            journal.reopen()
            journal.close()
            raise OutputError(
                "OUTPUT_CHECKSUM",
                f"{difference[1]}: Differs from what was written.",
                file=folder / file,
                hint="Run the command or array task that wrote it again. It rewrites what is damaged.",
            )


def local_units(plan: Plan, folder: Path) -> list[str]:
    """Return the files that can be read back."""
    return [file for file in plan.layouts if folder / file not in remote_files]


def are_units_complete(plan: Plan, folder: Path, fingerprint: str) -> bool:
    """Return whether every unit is complete."""
    return all(
        _complete_entries(plan.restricted_to(file), folder, file, fingerprint) is not None
        for file in plan.layouts
    )


def _complete_entries(unit: Plan, folder: Path, file: str, fingerprint: str) -> dict[str, Entry] | None:
    """Return the journal entries of a unit; None if the unit is not complete."""
    journal = _journal(unit, folder, file, fingerprint)
    return journal.entries if journal and is_unit_complete(unit, journal, folder / file) else None


def is_unit_complete(unit: Plan, journal: Journal, path: Path) -> bool:
    """Return whether a unit's journal marks its file complete and has entries for all rows."""
    rows = {name: entry.rows for name, entry in journal.entries.items()}
    return journal.is_complete(path) and all(rows.get(task.name) == task.n_rows for task in unit.tasks)


def _journal(unit: Plan, folder: Path, file: str, fingerprint: str) -> Journal | None:
    """Return a unit's journal with the entries that fit the unit; None if there is no journal."""
    path = folder / journal_name(file)
    if not path.is_file():
        return None
    journal = Journal(path, fingerprint)
    journal.close()
    tasks = {task.name: task for task in unit.tasks}
    journal.entries = {
        name: entry for name, entry in journal.entries.items() if name in tasks and fits(entry, tasks[name])
    }
    return journal


def adopt_unit_entries(plan: Plan, staging: Staging, fingerprint: str) -> None:
    """Let one process resume what array tasks have written, for weights that it writes the same way."""
    assert staging.journal
    for entry in adoptable_entries(plan, staging.path, fingerprint):
        if entry.name not in staging.journal.entries:
            staging.journal.add(entry)


def adoptable_entries(plan: Plan, folder: Path, fingerprint: str) -> Iterator[Entry]:
    """Yield the units' journal entries of weights that are in a single file."""
    places = {task.name: task.places for task in plan.tasks}
    for file in plan.layouts:
        journal = _journal(plan.restricted_to(file), folder, file, fingerprint)
        for name, entry in journal.entries.items() if journal else ():
            if len(places[name]) == 1:
                yield entry


def saved_bytes(plan: Plan, entries: Mapping[str, Entry]) -> int:
    """Return the bytes of weights that entries record."""
    return sum(task.bytes_of(entries[task.name].rows) for task in plan.tasks if task.name in entries)


def saved_bytes_in_units(
    plan: Plan, folder: Path, fingerprint: str, files: Iterable[str], *, only_complete: bool
) -> tuple[int, int]:
    """Return the bytes of weights that the units' journals record, and of all weights in these files.

    Args:
        plan: what is written.
        folder: the staging folder.
        fingerprint: identifies the journals.
        files: the units.
        only_complete: count complete files only: an upload cannot be resumed.
    """
    saved = total = 0
    for file in files:
        unit = plan.restricted_to(file)
        journal = _journal(unit, folder, file, fingerprint)
        total += unit.payload_bytes
        if journal and (is_unit_complete(unit, journal, folder / file) or not only_complete):
            saved += saved_bytes(unit, journal.entries)
    return saved, total
