"""What all conversions share, whatever their ends: stage, write, check, publish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_convert import __version__
from llama_convert.checkpoints.manifest import MANIFEST, describe_files, write_manifest
from llama_convert.convert.cast import CastCounts
from llama_convert.convert.execute import Report, execute
from llama_convert.convert.options import ConvertOptions, ConvertResult
from llama_convert.convert.plan import Plan
from llama_convert.convert.publish import Staging
from llama_convert.errors import RefusedError
from llama_convert.observer import Observer
from llama_convert.units import format_size


class Notes:
    """Tells the observer, and remembers the warnings."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Something that may be wrong."""
        self.warnings.append(text)
        self.observer.warning(text)

    def note(self, text: str) -> None:
        """Something that was decided."""
        self.observer.note(text)


@dataclass
class Job:
    """A conversion that has been thought through, and only needs doing."""

    source: Path
    plan: Plan | None
    """None: there are no weights to write."""
    result: ConvertResult
    """To be filled in."""
    read: Sequence[Path]
    """The files that the weights and settings come from."""
    write_small_files: Callable[[Staging], object]
    """Writes everything but the weights and what belongs to them."""
    small_bytes: int = 0
    """About what those take."""
    finish: Callable[[Staging], object] = lambda _: None
    """Writes what can be told only of the finished files."""


def run_job(job: Job, options: ConvertOptions, notes: Notes) -> ConvertResult:
    """Do a job; with `dry_run` only say what it would write.

    Raises:
        InputError: a source file is damaged, or not what it was.
        OutputError: the machine could not write it.
        ConflictError: the destination holds something.
        RefusedError: `strict`, and something was warned of.
    """
    result, plan = job.result, job.plan
    result.warnings = notes.warnings
    if options.dry_run:
        return result
    with Staging(
        result.destination,
        source=job.source,
        needed=(plan.total_bytes if plan else 0) + job.small_bytes,
        overwrite=options.overwrite,
    ) as staging:
        job.write_small_files(staging)
        report = _write_weights(plan, staging, options, notes) if plan else None
        if notes.warnings and options.strict:
            message = f"--strict, and there was a warning: {notes.warnings[0]}"
            raise RefusedError("STRICT_WARNINGS", message)
        job.finish(staging)
        if report:
            result.casts = report.casts
            staging.write(MANIFEST, write_manifest(_manifest(job, report, staging)))
        result.files = {path.name: path.stat().st_size for path in staging.files}
        staging.publish()
    notes.note(f"{len(result.files)} files, {format_size(sum(result.files.values()))}")
    return result


def _write_weights(plan: Plan, staging: Staging, options: ConvertOptions, notes: Notes) -> Report:
    observer = notes.observer
    observer.start(plan.payload_bytes)
    try:
        report = execute(
            plan,
            staging.path,
            workers=options.workers,
            block_size=options.block_size,
            progress=observer.advance,
        )
    finally:
        observer.finish()
    for name, content in plan.small_files.items():
        staging.write(name, content)
    for name, file in report.rounded.items():
        notes.warn(f"{file}: {name}: differs from the first rank's by rounding; the first rank's is kept")
    _report_casts(report.casts, notes)
    return report


def _report_casts(casts: dict[str, CastCounts], notes: Notes) -> None:
    for name, counts in casts.items():
        if counts.overflowed:
            notes.warn(
                f"{name}: {counts.overflowed} of {counts.elements} values overflow "
                f"(largest {counts.largest:g}) and became infinite; try --dtype bf16"
            )
    vanished = sum(counts.vanished for counts in casts.values())
    if vanished:
        notes.note(f"{vanished} values were too small for the new dtype and became zero")


def _manifest(job: Job, report: Report, staging: Staging) -> dict[str, Any]:
    result = job.result
    return {
        "tool": f"llama-convert {__version__}",
        "release": result.release,
        "evidence": list(result.evidence),
        "instruct": result.instruct,
        "dtype": result.dtype,
        "sources": [{"name": path.name, "bytes": path.stat().st_size} for path in job.read],
        "casts": {name: asdict(counts) for name, counts in result.casts.items()},
        "files": describe_files(staging.files),
        "tensors": report.digests,
    }
