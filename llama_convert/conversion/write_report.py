"""What a conversion found while it wrote the weights, and the warnings about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llama_convert.checkpoints.stored_weight import StoredWeight, storages_without_crc
from llama_convert.checkpoints.value_scan import ValueScan
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.journal import Entry
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.plan import Plan
from llama_convert.units import format_part

Entries = Mapping[str, Entry]
"""Journal entries by weight name."""

_MAX_WARNINGS = 10
"""Warnings of one kind; the remaining weights are only counted."""


@dataclass
class WriteReport:
    """Findings about each written weight, by name."""

    casts: dict[str, CastCounts] = field(default_factory=dict)
    """Counts of the cast, for weights whose dtype changed."""
    hashes: dict[str, str] = field(default_factory=dict)
    """XXH3-128 of the bytes, for weights that one file holds completely."""
    rounded: dict[str, str] = field(default_factory=dict)
    """The source file whose copy differs by rounding."""
    value_scans: dict[str, ValueScan] = field(default_factory=dict)
    """NaN, infinite and all-zero values."""
    reused_bytes: int = 0
    """Bytes of weights that an earlier run had written and whose checksums match."""


def report_of_run(plan: Plan, entries: Entries, reused_bytes: int) -> WriteReport:
    """Return the report of a run that wrote each weight to all its places at once."""
    report = WriteReport(reused_bytes=reused_bytes)
    for task in plan.tasks:
        entry = entries[task.name]
        _add(report, task.name, entry.value_scan, entry.rounded)
        if task.is_cast:
            report.casts[task.name] = entry.cast
        if len(task.places) == 1:
            (report.hashes[task.name],) = entry.hashes
    return report


def report_of_units(plan: Plan, units: Mapping[str, Entries]) -> WriteReport:
    """Return the report of runs that wrote one file each.

    Args:
        plan: what was written.
        units: entries by file name; a rectangle that several files hold counts once.
    """
    report = WriteReport()
    for task in plan.tasks:
        rectangles = {(place.rows, place.columns): place for place in reversed(task.places)}
        for place in sorted(rectangles.values(), key=lambda place: (place.rows, place.columns)):
            entry = units[place.file][task.name]
            scan = entry.value_scan.shifted(place.rows[0], place.columns[0])
            _add(report, task.name, scan, entry.rounded)
            if task.is_cast:
                report.casts[task.name] = report.casts.get(task.name, CastCounts()) + entry.cast
            if len(task.places) == 1:
                (report.hashes[task.name],) = entry.hashes
    return report


def _add(report: WriteReport, name: str, scan: ValueScan, rounded: str | None) -> None:
    known = report.value_scans.get(name)
    report.value_scans[name] = known + scan if known else scan
    if rounded:
        report.rounded.setdefault(name, rounded)


def report_findings(report: WriteReport, plan: Plan, messages: Messages) -> None:
    """Note reused bytes and underflows; warn of everything that may be wrong with the weights."""
    _warn_of_missing_crcs(plan, messages)
    if report.reused_bytes:
        reused = format_part(report.reused_bytes, plan.payload_bytes)
        messages.note(f"Resumed: reused {reused} from the previous run (checksums match).")
    for name, file in report.rounded.items():
        messages.warn(f"{file}: {name}: Differs from the first shard by rounding. The first shard is used.")
    sources = {task.name: task.source for task in plan.tasks}
    _warn_each(_value_warnings(report, sources), messages)
    _warn_each(_overflow_warnings(report), messages)
    underflowed = sum(counts.underflowed for counts in report.casts.values())
    if underflowed:
        verb = "value underflows" if underflowed == 1 else "values underflow"
        messages.note(f"{underflowed:,} {verb} to zero in the new dtype.")


def _warn_of_missing_crcs(plan: Plan, messages: Messages) -> None:
    """Warn of PyTorch files with storages that have no CRC-32; safetensors files never have any."""
    without = storages_without_crc(task.source for task in plan.tasks)
    files = [file for file in without if file.suffix != ".safetensors"]
    if files:
        count, total = without[files[0]]
        more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
        messages.warn(
            f"{files[0]}{more}: {count} of {total} storages have no CRC-32. Damage to them goes undetected."
        )


def _value_warnings(report: WriteReport, sources: Mapping[str, StoredWeight]) -> Iterable[str]:
    for name, scan in report.value_scans.items():
        source = sources[name]
        if scan.first:
            file = source.file_of(*scan.first)
            index = list(scan.first) if len(source.shape) > 1 else [scan.first[1]]
            count = "1 value is" if scan.nonfinite == 1 else f"{scan.nonfinite} values are"
            yield f"{file}: {source.name}: {count} NaN or infinite (first at {index}) and copied unchanged."
        elif scan.is_zero:
            yield f"{source.file_of(0, 0)}: {source.name}: All values are zero."


def _overflow_warnings(report: WriteReport) -> Iterable[str]:
    for name, counts in report.casts.items():
        if counts.overflowed:
            yield (
                f"{name}: {counts.overflowed} of {counts.elements} values overflow to infinity "
                f"(max {counts.max_overflowed:g}). Use --dtype bf16 to avoid it."
            )


def _warn_each(lines: Iterable[str], messages: Messages) -> None:
    every = list(lines)
    for line in every[:_MAX_WARNINGS]:
        messages.warn(line)
    if len(every) > _MAX_WARNINGS:
        messages.warn(f"{len(every) - _MAX_WARNINGS} more weights have the same problem.")
