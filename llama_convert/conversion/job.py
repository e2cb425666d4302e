"""What all conversions share, whatever their ends: stage, write, check, publish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_convert import __version__
from llama_convert.checkpoints.manifest import MANIFEST, describe_files, write_manifest
from llama_convert.conversion.execute import execute
from llama_convert.conversion.journal import fingerprint, plan_digest
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.publish import STAGING, Staging
from llama_convert.conversion.remarks import remark_on
from llama_convert.conversion.report import Report, report_of_run
from llama_convert.conversion.sources import States, check_unchanged, compare_with_checklist, states_of
from llama_convert.conversion.standing import what_stands
from llama_convert.conversion.sync import failure
from llama_convert.errors import RefusedError
from llama_convert.units import format_size


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
    carried: Sequence[Path]
    """The files that go along."""
    write_small_files: Callable[[Staging], object]
    """Writes everything but the weights and what belongs to them."""
    small_bytes: int = 0
    """About what those take."""
    finish: Callable[[Staging], object] = lambda _: None
    """Writes what can be told only of the finished files."""


def run_job(job: Job, options: ConvertOptions, notes: Notes) -> ConvertResult:
    """Do a job, unless it is done; with `dry_run` only say what it would write.

    Raises:
        InputError: a source file is damaged, or not what it was.
        OutputError: the machine could not write it.
        ConflictError: the destination holds something.
        RefusedError: `strict`, and something was warned of.

    Whatever is raised while files are staged has attributes more: `resumable`, whether something is kept that
    the same command goes on from; `kept`, that in words; `left`, what has become of the output.
    """
    result, plan = job.result, job.plan
    result.warnings = notes.warnings
    if options.compare_checklist:
        compare_with_checklist(job.read[0].parent if job.read else job.source, options.workers, notes)
    if options.dry_run:
        return result
    before = states_of({*job.read, *job.carried, *(plan.sources if plan else ())})
    identity = plan_digest(plan, repr((options.decisive, result.release, result.instruct)))
    begun = (result.destination / STAGING).exists()
    if plan and options.resume and not options.overwrite and not begun:
        standing = what_stands(result.destination, identity, before, options, notes)
        if standing:
            result.files = standing
            return result
    staging = Staging(result.destination, source=job.source, overwrite=options.overwrite, fsync=options.fsync)
    try:
        with staging:
            _resume(job, staging, fingerprint(identity, before), options, notes)
            if not staging.is_published:
                _stage(job, staging, before, identity, options, notes)
            result.files = staging.publish()
    except OSError as error:
        told = failure("cannot be read or written", error, Path(str(error.filename or staging.path)))
        _say_what_is_kept(told, plan, staging)
        raise told from error
    except BaseException as error:
        _say_what_is_kept(error, plan, staging)
        raise
    notes.note(f"{len(result.files)} files, {format_size(sum(result.files.values()))}")
    return result


def _resume(job: Job, staging: Staging, plan: str, options: ConvertOptions, notes: Notes) -> None:
    """See what an earlier run has left, and tell of what cannot be used of it."""
    files = list(job.plan.sizes) if job.plan else []
    journal = staging.resume(plan, files, restart=not options.resume)
    if journal.thrown_away:
        why = ", as it had other options or its files have changed" if options.resume else ""
        notes.note(f"{journal.thrown_away} weights of an earlier run are thrown away{why}")
    if staging.is_published:
        notes.note("an earlier run has published all of it, and was stopped before it could say so")


def _stage(
    job: Job, staging: Staging, before: States, identity: str, options: ConvertOptions, notes: Notes
) -> None:
    """Write all files of the output."""
    plan, result = job.plan, job.result
    staging.check_space((plan.total_bytes if plan else 0) + job.small_bytes)
    with ThreadPoolExecutor(max_workers=1) as beside:
        small_files = beside.submit(job.write_small_files, staging)
        report = _write_weights(plan, staging, small_files, options, notes) if plan else None
        small_files.result()
    check_unchanged(before)
    if notes.warnings and options.strict:
        raise RefusedError("STRICT_WARNINGS", f"--strict, and there was a warning: {notes.warnings[0]}")
    job.finish(staging)
    if report:
        result.casts = report.casts
        manifest = {
            "tool": f"llama-convert {__version__}",
            "plan": identity,
            "release": result.release,
            "evidence": list(result.evidence),
            "instruct": result.instruct,
            "dtype": result.dtype,
            "sources": [{"name": path.name, "bytes": before[path].st_size} for path in job.read],
            "warnings": len(notes.warnings),
            "casts": {name: asdict(counts) for name, counts in result.casts.items()},
            "files": describe_files(staging.files),
            "tensors": report.digests,
        }
        staging.write(MANIFEST, write_manifest(manifest))


def _write_weights(
    plan: Plan, staging: Staging, beside: Future[object], options: ConvertOptions, notes: Notes
) -> Report:
    """Write the weights, while something else is written beside them; what fails there fails here."""
    assert staging.journal
    observer = notes.observer

    def advance(count: int) -> None:
        observer.advance(count)
        if beside.done():
            beside.result()

    observer.start(plan.payload_bytes)
    try:
        kept = execute(
            plan,
            staging.path,
            staging.journal,
            workers=options.workers,
            block_size=options.block_size,
            fsync=options.fsync,
            progress=advance,
        )
    finally:
        observer.finish()
    for name, content in plan.small_files.items():
        staging.write(name, content)
    report = report_of_run(plan, staging.journal.entries, kept)
    remark_on(report, plan, notes)
    return report


def _say_what_is_kept(error: BaseException, plan: Plan | None, staging: Staging) -> None:
    """Tell whoever catches the error."""
    resumable, kept = staging.keeps(error), None
    if resumable and plan and staging.journal:
        names = staging.journal.entries
        done = format_size(sum(task.nbytes for task in plan.tasks if task.name in names))
        whole = format_size(plan.payload_bytes)
        kept = f"{done} of {whole} are kept in {staging.path}; the same command goes on from there"
    vars(error).update(resumable=resumable, left=staging.state, kept=kept)
