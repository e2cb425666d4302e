"""A plan's files are independent units: each can be written by another process, on another machine.

Of each a journal in the staging folder tells whether it is written, and what was noticed meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_convert.conversion.journal import Entry, Journal, journal_of
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.publish import Staging
from llama_convert.conversion.report import Report, report_of_units
from llama_convert.errors import OutputError, UsageError


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
    units = {file: _entries(plan, staging.path, file, fingerprint) for file in plan.layouts}
    missing = [file for file, entries in units.items() if entries is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        message = f"{missing[0]}{more} of {len(units)} files are not written yet"
        raise OutputError("UNITS_MISSING", message, file=staging.destination)
    return report_of_units(plan, {file: entries for file, entries in units.items() if entries is not None})


def is_complete(plan: Plan, folder: Path, fingerprint: str) -> bool:
    """Whether every unit is."""
    return all(_entries(plan, folder, file, fingerprint) is not None for file in plan.layouts)


def _entries(plan: Plan, folder: Path, file: str, fingerprint: str) -> dict[str, Entry] | None:
    """What a unit's journal tells; None if there is none, or it is not complete.

    Lines may be lost, and a journal may have lines that are of no weight in the file.
    """
    path = folder / journal_of(file)
    if not path.is_file():
        return None
    journal = Journal(path, fingerprint)
    journal.close()
    names = {task.name for task in plan.tasks if any(place.file == file for place in task.places)}
    entries = {name: entry for name, entry in journal.entries.items() if name in names and entry.is_of(1)}
    return entries if journal.is_complete(folder / file) and entries.keys() == names else None


def adopt(plan: Plan, staging: Staging, fingerprint: str) -> None:
    """Let a run of its own go on from units, as far as they hold whole weights."""
    assert staging.journal
    places = {task.name: task.places for task in plan.tasks}
    for file in plan.layouts:
        for name, entry in (_entries(plan, staging.path, file, fingerprint) or {}).items():
            if len(places[name]) == 1 and name not in staging.journal.entries:
                staging.journal.add(entry)
