"""What should be looked at of weights that were written; `--strict` takes it for a no."""

from __future__ import annotations

from collections.abc import Iterable

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.stored_weight import StoredWeight, storages_without_crc
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.write_report import Report
from llama_convert.llama.weights import HEAD, Weight
from llama_convert.units import format_part

_MOST = 10
"""Weights of which one thing is said, before the rest are only counted."""


def warn_about_output(report: Report, plan: Plan, notes: Notes) -> None:
    """Say all that was noticed on the way."""
    _checksums(plan, notes)
    if report.kept_bytes:
        kept = format_part(report.kept_bytes, plan.payload_bytes)
        notes.note(f"Resumed: reused {kept} from the previous run (checksums match).")
    for name, file in report.rounded.items():
        notes.warn(f"{file}: {name}: differs from the first rank's by rounding; the first rank's is kept")
    sources = {task.name: task.source for task in plan.tasks}
    _warn_of_each(_odd(report, sources), notes)
    _warn_of_each(_overflowed(report), notes)
    vanished = sum(counts.vanished for counts in report.casts.values())
    if vanished:
        notes.note(f"{vanished} values were too small for the new dtype and became zero")


def warn_of_head(checkpoint: MetaCheckpoint, notes: Notes) -> None:
    """Warn of rank files without an output head, unless the release is one whose head is the embedding."""
    if Weight(HEAD) not in checkpoint.weights and not checkpoint.detected.release.tied:
        notes.warn(
            f"{checkpoint.folder.path}: no rank file has output.weight, "
            "so the embedding is used as the output head (tied)"
        )


def _checksums(plan: Plan, notes: Notes) -> None:
    """Warn of torch files with storages that no checksum covers; safetensors files never have any."""
    without = storages_without_crc(task.source for task in plan.tasks)
    files = [file for file in without if file.suffix == ".pth"]
    if files:
        first, every = without[files[0]]
        more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
        notes.warn(
            f"{files[0]}{more}: {first} of {every} storages have no CRC-32, so damage to them goes undetected"
        )


def _odd(report: Report, sources: dict[str, StoredWeight]) -> Iterable[str]:
    for name, odd in report.oddities.items():
        source = sources[name]
        if odd.first:
            file = source.file_of(*odd.first)
            place = list(odd.first) if len(source.shape) > 1 else [odd.first[1]]
            yield (
                f"{file}: {source.name}: {odd.nonfinite} values are NaN or infinite, the first at {place}; "
                "they are carried over as they are"
            )
        elif odd.is_zero:
            yield f"{source.file_of(0, 0)}: {source.name}: holds nothing but zeros"


def _overflowed(report: Report) -> Iterable[str]:
    for name, counts in report.casts.items():
        if counts.overflowed:
            yield (
                f"{name}: {counts.overflowed} of {counts.elements} values overflow "
                f"(largest {counts.largest:g}) and became infinite; try --dtype bf16"
            )


def _warn_of_each(lines: Iterable[str], notes: Notes) -> None:
    every = list(lines)
    for line in every[:_MOST]:
        notes.warn(line)
    if len(every) > _MOST:
        notes.warn(f"the same of {len(every) - _MOST} weights more")
