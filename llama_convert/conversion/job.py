"""What all conversions share, whatever their ends: stage, write, check, publish."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_convert import __version__
from llama_convert.checkpoints.manifest import MANIFEST, describe_files, write_manifest
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.execute import Report, execute
from llama_convert.conversion.journal import Journal, fingerprint
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.publish import Staging
from llama_convert.conversion.sync import failure
from llama_convert.errors import InputError, RefusedError
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

    Whatever is raised while files are staged has two attributes more: `resumable`, whether something is kept
    that the same command goes on from, and `left`, what has become of the output.
    """
    result, plan = job.result, job.plan
    result.warnings = notes.warnings
    if options.dry_run:
        return result
    before = _states(job)
    with Staging(result.destination, source=job.source, overwrite=options.overwrite) as staging:
        try:
            journal = _resume(job, staging, before, options, notes)
            if not staging.is_published:
                _stage(job, staging, journal, before, options, notes)
            result.files = staging.publish()
        except OSError as error:
            told = failure("cannot be read or written", error, Path(str(error.filename or staging.path)))
            _say_what_is_kept(told, plan, staging, notes)
            raise told from error
        except BaseException as error:
            _say_what_is_kept(error, plan, staging, notes)
            raise
    notes.note(f"{len(result.files)} files, {format_size(sum(result.files.values()))}")
    return result


def _resume(
    job: Job,
    staging: Staging,
    before: Mapping[Path, os.stat_result],
    options: ConvertOptions,
    notes: Notes,
) -> Journal:
    """See what an earlier run has left, and tell of what cannot be used of it."""
    plan, result = job.plan, job.result
    settings = repr((options.decisive, result.release, result.instruct))
    files = list(plan.sizes) if plan else []
    journal = staging.resume(fingerprint(plan, before, settings), files, restart=not options.resume)
    if journal.thrown_away:
        why = ", as it had other options or its files have changed" if options.resume else ""
        notes.note(f"{journal.thrown_away} weights of an earlier run are thrown away{why}")
    if staging.is_published:
        notes.note("an earlier run has published all of it, and was stopped before it could say so")
    return journal


def _stage(
    job: Job,
    staging: Staging,
    journal: Journal,
    before: Mapping[Path, os.stat_result],
    options: ConvertOptions,
    notes: Notes,
) -> None:
    """Write all files of the output."""
    plan, result = job.plan, job.result
    staging.check_space((plan.total_bytes if plan else 0) + job.small_bytes)
    job.write_small_files(staging)
    report = _write_weights(plan, staging, journal, options, notes) if plan else None
    _check_unchanged(before)
    if notes.warnings and options.strict:
        raise RefusedError("STRICT_WARNINGS", f"--strict, and there was a warning: {notes.warnings[0]}")
    job.finish(staging)
    if report:
        result.casts = report.casts
        sources = [{"name": path.name, "bytes": before[path].st_size} for path in job.read]
        staging.write(MANIFEST, write_manifest(_manifest(result, sources, report, staging)))


def _say_what_is_kept(error: BaseException, plan: Plan | None, staging: Staging, notes: Notes) -> None:
    """Tell whoever is there, and whoever catches the error."""
    resumable = staging.keeps(error)
    vars(error).update(resumable=resumable, left=staging.state)
    if resumable and plan and staging.journal:
        names = staging.journal.entries
        done = sum(task.nbytes for task in plan.tasks if task.name in names)
        notes.note(
            f"{format_size(done)} of {format_size(plan.payload_bytes)} are kept in {staging.path}; "
            "the same command goes on from there"
        )


def _states(job: Job) -> dict[Path, os.stat_result]:
    """The files that are read, as they are now."""
    files = {*job.read, *(job.plan.sources if job.plan else ())}
    try:
        return {file: file.stat() for file in files}
    except OSError as error:
        message = f"cannot be looked at again: {error.strerror}"
        raise InputError("INPUT_CHANGED", message, file=error.filename) from None


def _check_unchanged(before: Mapping[Path, os.stat_result]) -> None:
    """See whether the source files still are what they were.

    Raises:
        InputError: one of them is not.
    """
    for file, old in before.items():
        try:
            new = file.stat()
        except OSError:
            raise InputError("INPUT_CHANGED", "is gone; it was read a moment ago", file=file) from None
        if (old.st_ino, old.st_size, old.st_mtime_ns) != (new.st_ino, new.st_size, new.st_mtime_ns):
            raise InputError("INPUT_CHANGED", "changed while it was read", file=file)


def _write_weights(
    plan: Plan, staging: Staging, journal: Journal, options: ConvertOptions, notes: Notes
) -> Report:
    observer = notes.observer
    observer.start(plan.payload_bytes)
    try:
        report = execute(
            plan,
            staging.path,
            journal,
            workers=options.workers,
            block_size=options.block_size,
            progress=observer.advance,
        )
    finally:
        observer.finish()
    if report.kept_bytes:
        kept, total = format_size(report.kept_bytes), format_size(plan.payload_bytes)
        notes.note(f"{kept} of {total} stood there from an earlier run, and were found good")
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


def _manifest(
    result: ConvertResult, sources: list[dict[str, Any]], report: Report, staging: Staging
) -> dict[str, Any]:
    return {
        "tool": f"llama-convert {__version__}",
        "release": result.release,
        "evidence": list(result.evidence),
        "instruct": result.instruct,
        "dtype": result.dtype,
        "sources": sources,
        "casts": {name: asdict(counts) for name, counts in result.casts.items()},
        "files": describe_files(staging.files),
        "tensors": report.digests,
    }
