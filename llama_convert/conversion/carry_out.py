"""Carrying a job out: stage, write, check, publish; by one process or by many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_convert import __version__
from llama_convert.checkpoints.manifest import CARD, MANIFEST, describe_file, write_manifest
from llama_convert.conversion.card import NOTICE, is_somebodys, notice, render
from llama_convert.conversion.execute import Progress, execute
from llama_convert.conversion.job import Job
from llama_convert.conversion.journal import fingerprint, plan_digest
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.output import on_disk
from llama_convert.conversion.overlap import check_apart
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.publish import STAGING, Staging
from llama_convert.conversion.remarks import remark_on
from llama_convert.conversion.report import Report, report_of_run
from llama_convert.conversion.sources import (
    check_unchanged,
    compare_with_checklist,
    said_by_checklist,
    states_of,
)
from llama_convert.conversion.standing import what_stands
from llama_convert.conversion.sync import failure
from llama_convert.conversion.units import Share, adopt, gather, is_complete
from llama_convert.conversion.workers import Order, by_executor, write_all, write_unit
from llama_convert.errors import ConflictError, InputError, RefusedError
from llama_convert.units import format_size

if TYPE_CHECKING:
    from llama_convert.conversion.upload import Store

Write = Callable[[Plan, Staging, Progress], Report]
"""Writes the weights into a staging folder, on disk when it returns."""


class Run:
    """A job, and how it is to be done.

    Whatever is raised while files are staged has attributes more: `resumable`, whether something is kept that
    the same command goes on from; `kept`, that in words; `left`, what has become of the output.
    """

    def __init__(self, job: Job, options: ConvertOptions, notes: Notes, *, private: bool = False) -> None:
        """Look at the source files as they are now.

        Args:
            job: what is to be done.
            options: how.
            notes: is told of what is found.
            private: whether the destination stands for a URL, so that no other run can find it.

        Raises:
            InputError: one of them is gone, or not what ``checklist.chk`` says.
            UsageError: one of them, or the source, is in the output folder.
        """
        self.job = job
        self.options = options
        self.notes = notes
        self.result = job.result
        self._destination = Path(job.result.destination)
        self.result.warnings = notes.warnings
        if options.compare_checklist:
            compare_with_checklist(job.folder, options.workers, notes)
        self._checklist = said_by_checklist(job.folder)
        self._before = states_of({*job.read, *job.carried, *(job.plan.sources if job.plan else ())})
        self._identity = plan_digest(job.plan, job.settings(options))
        self._fingerprint = fingerprint(self._identity, self._before)
        self._stood = False
        self._private = private
        named = [path for path in (options.tokenizer, options.chat_template) if path]
        check_apart(self._destination, [job.source, job.folder], [*self._before, *self._checklist, *named])

    def alone(self) -> ConvertResult:
        """Write everything in this process.

        Raises:
            InputError: a source file is damaged, or not what it was.
            OutputError: the machine could not write it.
            ConflictError: the destination holds something.
            RefusedError: `strict`, and something was warned of.
        """
        return self._unless_it_stands(self._here)

    def by(self, executor: Executor, order: Callable[[str, str], Order]) -> ConvertResult:
        """Let an executor's workers write the weights, a file each; raises as `alone`.

        Args:
            executor: any; its workers see the source, and the destination too.
            order: given the plan's digest and the fingerprint.
        """
        return self._unless_it_stands(by_executor(executor, order(self._identity, self._fingerprint)))

    def to_store(self, store: Store) -> ConvertResult:
        """Write everything to a store elsewhere, for which the destination stands; raises as `alone`."""
        return self._to_store(store, store.writing(self.options, self._fingerprint))

    def send(
        self, store: Store, executor: Executor, order: Callable[[str, str], Order], files: Sequence[str]
    ) -> None:
        """Let an executor's workers write some of the files to a store, for anybody to `finish` it.

        Raises:
            InputError: a source file is damaged, or not what it was.
            OutputError: something cannot be read or written.
            ConflictError: the destination holds something.
        """
        job, observer = self.job, self.notes.observer
        if self._stands():
            return
        with self._staging(shared=True) as staging:
            staging.refuse_other_files()
            staging.resume(self._fingerprint, job.files)
            store.begin(staging)
            observer.start(sum(job.plan.sizes[file] for file in files) if job.plan else 0)
            try:
                write_all(executor, order(self._identity, self._fingerprint), files, observer.advance)
            finally:
                observer.finish()
        self.notes.note(f"{len(files)} of {len(job.files)} files are written")

    def finish_in_store(self, store: Store) -> ConvertResult:
        """As `finish`, of what has been sent to a store."""
        return self._to_store(store, self._gathered)

    def _to_store(self, store: Store, write: Write) -> ConvertResult:
        weights = self.job.plan.sizes if self.job.plan else {}
        try:
            result = self._unless_it_stands(write)
            if self._stood:
                store.remove_traces(weights)
            else:
                store.publish(result.files, weights)
        except (InputError, RefusedError):
            store.clear(weights)
            raise
        return result

    def share(self, share: Share, order: Callable[[str, str], Order]) -> ConvertResult:
        """Write some of the files; whoever writes the last one publishes.  Raises as `alone`."""
        job, files = self.job, share.of(self.job.files)
        if job.plan and self._stands():
            return self._finish_unless_locked()
        with self._staging(shared=True) as staging:
            staging.refuse_other_files()
            staging.resume(self._fingerprint, job.files)
            observer = self.notes.observer
            observer.start(sum(job.plan.sizes[file] for file in files) if job.plan else 0)
            try:
                for file in files:
                    observer.advance(write_unit(order(self._identity, self._fingerprint), file))
            finally:
                observer.finish()
        self.result.files = {file: self.result.files[file] for file in files}
        self.notes.note(f"share {share}: {len(files)} of {len(job.files)} files are written")
        if job.plan and not is_complete(job.plan, staging.path, self._fingerprint):
            self.notes.note("others are to be written yet; whoever writes the last one publishes")
            return self.result
        return self._finish_unless_locked()

    def _finish_unless_locked(self) -> ConvertResult:
        """As `finish`; another run that is at work will do so itself."""
        try:
            return self.finish()
        except ConflictError as conflict:
            if conflict.code != "OUTPUT_LOCKED":
                raise
            self.notes.note("another run is still at work, or publishes already")
            return self.result

    def finish(self) -> ConvertResult:
        """Publish what others have written.

        Raises:
            OutputError: also if not all of it is written.
            ConflictError, RefusedError, InputError: as `alone`.
        """
        return self._unless_it_stands(self._gathered)

    def _gathered(self, plan: Plan, staging: Staging, progress: Progress) -> Report:
        """What others have written."""
        report = gather(plan, staging, self._fingerprint)
        progress(plan.payload_bytes)
        return report

    def _staging(self, *, shared: bool = False) -> Staging:
        return Staging(
            self._destination,
            overwrite=self.options.overwrite,
            fsync=self.options.fsync,
            shared=shared,
            private=self._private,
        )

    def _unless_it_stands(self, write: Write) -> ConvertResult:
        """The result of an earlier run that has done all of it; only who holds the folder clears it up."""
        left = os.path.lexists(self._destination / STAGING)
        return self.result if not left and self._stands() else self._publish(write)

    def _stands(self) -> bool:
        """Whether an earlier run has done all of it."""
        options, destination = self.options, self._destination
        if not self.job.plan or not options.resume or options.overwrite:
            return False
        standing = what_stands(destination, self._identity, self._before, options, self.notes)
        if standing:
            self.result.files, self.result.published = standing, True
            self._stood = True
        return bool(standing)

    def _publish(self, write: Write) -> ConvertResult:
        result, staging = self.result, self._staging()
        try:
            with staging:
                if staging.recover(self._fingerprint, restart=not self.options.resume):
                    self.notes.note("The previous run finished the output, and was interrupted only then.")
                elif not self._stands():
                    staging.refuse_other_files()
                    self._resume(staging)
                    self._stage(staging, write)
                if not self._stood:
                    result.files = staging.publish()
        except OSError as error:
            told = failure("cannot be read or written", error, Path(str(error.filename or staging.path)))
            self._say_what_is_kept(told, staging)
            raise told from error
        except BaseException as error:
            self._say_what_is_kept(error, staging)
            raise
        result.published = True
        self.notes.note(f"{len(result.files)} files, {format_size(sum(result.files.values()))}")
        return result

    def _resume(self, staging: Staging) -> None:
        """See what earlier runs have left, and tell of what cannot be used of it."""
        resume = self.options.resume
        journal = staging.resume(self._fingerprint, self.job.files, restart=not resume)
        if journal.thrown_away:
            why = ", as it had other options or its files have changed" if resume else ""
            self.notes.note(f"{journal.thrown_away} weights of an earlier run are thrown away{why}")

    def _stage(self, staging: Staging, write: Write) -> None:
        """Write all files of the output."""
        job, plan, result, notes = self.job, self.job.plan, self.result, self.notes
        staging.check_space((plan.total_bytes if plan else 0) + job.small_bytes)
        report = Report()
        with ThreadPoolExecutor(max_workers=1) as beside:
            small_files = beside.submit(job.write_small_files, staging)

            def advance(count: int) -> None:
                notes.observer.advance(count)
                if small_files.done():
                    small_files.result()  # what fails beside the weights ends the run at once

            if plan:
                notes.observer.start(plan.payload_bytes)
                try:
                    report = write(plan, staging, advance)
                finally:
                    notes.observer.finish()
                for name, content in plan.small_files.items():
                    staging.write(name, content)
                remark_on(report, plan, notes)
            small_files.result()
        check_unchanged(self._before)
        if notes.warnings and self.options.strict:
            message = f"--strict, and there was a warning: {notes.warnings[0]}"
            raise RefusedError("STRICT_WARNINGS", message)
        job.finish(staging)
        result.casts = report.casts
        if plan:
            self._describe(staging, report)

    def _here(self, plan: Plan, staging: Staging, progress: Progress) -> Report:
        """Write the weights in this process."""
        assert staging.journal
        adopt(plan, staging, self._fingerprint)
        with on_disk(plan, staging.path, fsync=self.options.fsync) as outputs:
            kept = execute(
                plan,
                outputs,
                staging.journal,
                workers=self.options.workers,
                block_size=self.options.block_size,
                progress=progress,
            )
        return report_of_run(plan, staging.journal.entries, kept)

    def _describe(self, staging: Staging, report: Report) -> None:
        """Write the manifest, and what it has to say in words: the model card, and the licence's notice."""
        manifest = self._manifest(report)
        names = {file.name for file in staging.files}
        words = notice(manifest)
        if words and not any(name.lower().startswith("notice") for name in names):
            staging.write(NOTICE, words)
            names.add(NOTICE)
        if is_somebodys(self._destination / CARD):
            self.notes.note(f"{self._destination / CARD}: somebody has written on it, so it stays as it is")
            staging.remove(CARD)
        elif CARD not in names:
            staging.write(CARD, render(manifest, sorted(names)))
        files = {file.name: describe_file(file) for file in staging.files}
        staging.write(MANIFEST, write_manifest(manifest | {"files": files}))

    def _manifest(self, report: Report) -> dict[str, Any]:
        result, job = self.result, self.job
        layout = "meta" if any(name.endswith(".pth") for name in job.files) else "huggingface"
        return {
            "tool": f"llama-convert {__version__}",
            "plan": self._identity,
            "layout": layout,
            "release": result.release,
            "version": result.version,
            "size": result.size,
            "evidence": list(result.evidence),
            "alternatives": list(result.alternatives),
            "instruct": result.instruct,
            "dtype": result.dtype,
            "sources": [self._described(path) for path in job.read],
            "checklist_compared": self.options.compare_checklist,
            "warnings": len(self.notes.warnings),
            "casts": {name: asdict(counts) for name, counts in result.casts.items()},
            "tensors": report.digests,
        }

    def _described(self, source: Path) -> dict[str, Any]:
        """A source file, so that it can be told again; with what its checklist says, be that so or not."""
        md5 = self._checklist.get(source)
        return {"name": source.name, **describe_file(source), **({"md5": md5} if md5 else {})}

    def _say_what_is_kept(self, error: BaseException, staging: Staging) -> None:
        """Tell whoever catches the error."""
        plan, resumable, kept = self.job.plan, staging.keeps(error), None
        if resumable and plan and staging.journal:
            names = staging.journal.entries
            done = format_size(sum(task.nbytes for task in plan.tasks if task.name in names))
            whole = format_size(plan.payload_bytes)
            kept = f"{done} of {whole} are kept in {staging.path}; the same command goes on from there"
        vars(error).update(resumable=resumable, left=staging.state, kept=kept)
