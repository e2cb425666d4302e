"""What was noticed while weights were written, by one run or by many that wrote a file each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llama_convert.checkpoints.value_scan import ValueScan
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.journal import Entry
from llama_convert.conversion.plan import Plan

Entries = Mapping[str, Entry]
"""What is known of weights, by name."""


@dataclass
class Report:
    """Of each weight, by name."""

    casts: dict[str, CastCounts] = field(default_factory=dict)
    """What changing the dtype did, where it changed."""
    digests: dict[str, str] = field(default_factory=dict)
    """XXH3-128 of its bytes, where all of them stand in one file."""
    rounded: dict[str, str] = field(default_factory=dict)
    """The file of a copy that differs by rounding."""
    oddities: dict[str, ValueScan] = field(default_factory=dict)
    """What no trained weight has."""
    kept_bytes: int = 0
    """Bytes of weights that an earlier run had written, and were found good."""


def report_of_run(plan: Plan, entries: Entries, kept_bytes: int) -> Report:
    """Of a run that wrote each weight to all its places at once."""
    report = Report(kept_bytes=kept_bytes)
    for task in plan.tasks:
        entry = entries[task.name]
        _add(report, task.name, entry.oddities, entry.rounded)
        if task.is_cast:
            report.casts[task.name] = entry.cast
        if len(task.places) == 1:
            (report.digests[task.name],) = entry.digests
    return report


def report_of_units(plan: Plan, units: Mapping[str, Entries]) -> Report:
    """Of runs that wrote one file each, by its name; a rectangle that several files hold counts once."""
    report = Report()
    for task in plan.tasks:
        rectangles = {(place.rows, place.columns): place for place in reversed(task.places)}
        for place in sorted(rectangles.values(), key=lambda place: (place.rows, place.columns)):
            entry = units[place.file][task.name]
            odd = entry.oddities.shifted(place.rows[0], place.columns[0])
            _add(report, task.name, odd, entry.rounded)
            if task.is_cast:
                report.casts[task.name] = report.casts.get(task.name, CastCounts()) + entry.cast
            if len(task.places) == 1:
                (report.digests[task.name],) = entry.digests
    return report


def _add(report: Report, name: str, odd: ValueScan, rounded: str | None) -> None:
    known = report.oddities.get(name)
    report.oddities[name] = known + odd if known else odd
    if rounded:
        report.rounded.setdefault(name, rounded)
