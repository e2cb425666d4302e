"""The run of a job on a local folder: stage, write, check, finalize; by one process or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llama_convert.conversion.auxiliary_files import write_checklist
from llama_convert.conversion.disk import output_error
from llama_convert.conversion.execute import Progress, execute
from llama_convert.conversion.existing_output import find_existing_output
from llama_convert.conversion.job import Job, JobFactory, OutputIdentity, fingerprint
from llama_convert.conversion.messages import Messages, saved_sentence
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.output import on_disk
from llama_convert.conversion.output_manifest import OutputManifest
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.source_checks import (
    check_separate,
    check_unchanged,
    checklist_md5s,
    compare_source_hashes,
    compare_with_checklist,
    file_states,
)
from llama_convert.conversion.staging import PERMANENT_ERRORS, STAGING, Staging
from llama_convert.conversion.work_units import (
    ArrayTask,
    adopt_unit_entries,
    adoptable_entries,
    are_units_complete,
    collect_report,
    local_units,
    saved_bytes,
    saved_bytes_in_units,
    verify_units,
)
from llama_convert.conversion.workers import WorkSpec, executor_writer, write_unit
from llama_convert.conversion.write_report import WriteReport, report_findings, report_of_run
from llama_convert.errors import ConflictError
from llama_convert.stores.location import Location

WeightWriter = Callable[[Plan, Staging, Progress], WriteReport]
"""Writes the weights into a staging folder. They are on disk when it returns."""
SavedBytes = Callable[[Plan, Staging], tuple[int, int]]
"""Returns the bytes of weights that the next run can reuse, and the bytes that this run was to write."""


class Run:
    """A job and the state of its output folder.

    An error raised while files are staged has two additional attributes: ``resumable``, whether the same
    command can resume from saved weights, and ``kept``, a sentence with the amount saved (None if nothing).
    """

    def __init__(
        self,
        job: Job,
        options: ConvertOptions,
        messages: Messages,
        source: Location,
        *,
        private: bool = False,
    ) -> None:
        """Check the source files and record their current state.

        Args:
            job: what to convert.
            options: how.
            messages: receives the findings.
            source: the location of the checkpoint.
            private: whether no other run can find the output folder, because it mirrors a URL.

        Raises:
            InputError: a source file is gone or does not match ``checklist.chk``.
            UsageError: a source file or the source is in the output folder.
        """
        self.job = job
        self.options = options
        self.messages = messages
        self.result = job.result
        self.result.warnings = messages.warnings
        self._destination = Path(job.result.destination)
        if options.compare_checklist:
            compare_with_checklist(job.folder, options.workers, messages)
        md5s = checklist_md5s(job.folder)
        self._sources = file_states(
            {*job.source_files, *job.auxiliary_files, *(job.plan.sources if job.plan else ())}
        )
        self._identity = OutputIdentity.of(job.plan, job.settings(options))
        self._fingerprint = fingerprint(self._identity.plan, self._sources, source)
        self.manifest = OutputManifest(
            job, self._identity, messages, md5s, checklist_compared=options.compare_checklist
        )
        self._may_replace = options.overwrite
        self._private = private
        named = [path for path in (options.tokenizer, options.chat_template) if path]
        check_separate(self._destination, [job.source, job.folder], [*self._sources, *md5s, *named])

    def work_spec(self, make_job: JobFactory, source: str, destination: str) -> WorkSpec:
        """Return what a worker needs to write files of this run.

        Args:
            make_job: prepares the job again.
            source: absolute path or URL of the source.
            destination: absolute path or URL of the output folder.
        """
        named = ("tokenizer", "chat_template", "config_from")
        paths = {name: path.absolute() for name in named if (path := getattr(self.options, name))}
        options = replace(self.options, **paths)  # workers may have another current folder
        return WorkSpec(make_job, source, destination, options, self._identity.plan, self._fingerprint)

    def convert(self) -> ConvertResult:
        """Write the output in this process.

        Raises:
            InputError: a source file is damaged.
            OutputError: a file cannot be read or written.
            ConflictError: the output folder holds something else.
            RefusedError: `strict` is set and there was a warning.
        """
        return self._finalize_unless_up_to_date(self._write_weights, self._saved_in_process)

    def convert_with(self, executor: Executor, spec: WorkSpec) -> ConvertResult:
        """Let an executor's workers write the weights, one file per call; raises as `convert`.

        Args:
            executor: its workers see the source and the output folder.
            spec: what the workers need.
        """
        write_weights = executor_writer(executor, spec)

        def write(plan: Plan, staging: Staging, progress: Progress) -> WriteReport:
            with self._progress(plan.payload_bytes):
                report = write_weights(plan, staging, progress)
            self._verify_units(plan, staging)
            return report

        return self._finalize_unless_up_to_date(write, self._saved_in_units(self.job.weight_files))

    def run_array_task(self, task: ArrayTask, spec: WorkSpec) -> ConvertResult:
        """Write this task's files; the last task finalizes the output. Raises as `convert`."""
        job, files = self.job, task.select(self.job.weight_files)
        if job.plan and self._is_up_to_date(only=files):
            return self._finish_unless_locked()
        total = sum(job.plan.sizes[file] for file in files) if job.plan else 0
        with self._shared_staging(self._saved_in_units(files)) as staging, self._progress(total):
            for file in files:
                self.messages.observer.advance(write_unit(spec, file))
        self.result.files = {file: self.result.files[file] for file in files}
        self.messages.note(f"Array task {task}: wrote {len(files)} of {len(job.weight_files)} files.")
        if job.plan and not are_units_complete(job.plan, staging.path, self._fingerprint):
            self.messages.note("Other files are not written yet. The last task finalizes the output.")
            return self.result
        return self._finish_unless_locked()

    def _finish_unless_locked(self) -> ConvertResult:
        """Finalize as `finish` does, unless another run is at work, which will do so."""
        try:
            return self._finish(only=())
        except ConflictError as conflict:
            if conflict.code != "OUTPUT_LOCKED":
                raise
            self.messages.note("Another run is writing or finalizing the output.")
            return self.result

    def finish(self) -> ConvertResult:
        """Finalize what array tasks have written.

        Raises:
            OutputError: not all files are written, or a file cannot be read or written.
            ConflictError, RefusedError, InputError: as `convert`.
        """
        return self._finish()

    def _finish(self, only: Sequence[str] | None = None) -> ConvertResult:
        saved = self._saved_in_units(self.job.weight_files)
        return self._finalize_unless_up_to_date(self._collect_units, saved, only)

    def _collect_units(self, plan: Plan, staging: Staging, _: Progress) -> WriteReport:
        """Return the report of what other processes have written, after verifying it."""
        report = collect_report(plan, staging, self._fingerprint)
        self._verify_units(plan, staging)
        return report

    def _verify_units(self, plan: Plan, staging: Staging) -> None:
        """Compare what other processes have written with their journals, for files that can be read back."""
        folder = staging.path
        total = sum(plan.restricted_to(file).payload_bytes for file in local_units(plan, folder))
        with self._progress(total, "Checking"):
            verify_units(plan, folder, self._fingerprint, self.options, self.messages.observer.advance)

    @contextmanager
    def _progress(self, total: int, label: str = "Converting") -> Iterator[None]:
        """Report the progress of ``total`` bytes."""
        self.messages.observer.start(total, label)
        try:
            yield
        finally:
            self.messages.observer.finish()

    def _staging(self, *, shared: bool = False) -> Staging:
        return Staging(
            self._destination,
            overwrite=self._may_replace,
            fsync=self.options.fsync,
            shared=shared,
            private=self._private,
        )

    @contextmanager
    def _shared_staging(self, saved: SavedBytes) -> Iterator[Staging]:
        """Yield the staging folder that other processes write to as well."""
        staging = self._staging(shared=True)
        with self._reporting_saved(staging, saved), staging:
            staging.check_destination()
            staging.open_journal(self._fingerprint, self.job.weight_files)
            yield staging

    def _finalize_unless_up_to_date(
        self, write: WeightWriter, saved: SavedBytes, only: Sequence[str] | None = None
    ) -> ConvertResult:
        """Return the result of an earlier run if it is up to date and left nothing staged; else finalize."""
        is_staging_left = os.path.lexists(self._destination / STAGING)
        if not is_staging_left and self._is_up_to_date(only=only):
            return self.result
        return self._finalize(write, saved, only)

    def _is_up_to_date(self, *, only: Sequence[str] | None = None) -> bool:
        """Return whether an earlier run has written this output; ``only`` limits the weights compared."""
        options, destination, plan = self.options, self._destination, self.job.plan
        if not plan or not options.resume or options.overwrite:
            return False
        sources = self.manifest.sources()
        existing = find_existing_output(
            destination, plan, self._identity, sources, options, self.messages, only=only
        )
        if existing and existing.is_current:
            self.result.files = existing.files
            self.result.finalized = self.result.is_up_to_date = True
        elif existing and only is None and not self._may_replace:
            self._may_replace = True
            self.messages.note(f"{destination}: Replacing files. The weights match, but other files differ.")
        return self.result.is_up_to_date

    def _finalize(self, write: WeightWriter, saved: SavedBytes, only: Sequence[str] | None) -> ConvertResult:
        """Stage all files and finalize them, reusing what earlier runs have staged or finalized."""
        result, staging = self.result, self._staging()
        with self._reporting_saved(staging, saved), staging:
            if staging.is_already_finalized(self._fingerprint, restart=not self.options.resume):
                self.messages.note("The previous run had already finalized the output.")
            elif not self._is_up_to_date(only=only):
                staging.may_replace = self._may_replace
                staging.check_destination()
                self._open_journal(staging)
                self._stage(staging, write)
            if not result.is_up_to_date:
                with self.messages.observer.phase("Finalizing"):
                    result.files = staging.finalize()
        result.finalized = True
        return result

    def _open_journal(self, staging: Staging) -> None:
        """Open the journal of an interrupted run; note weights that cannot be reused."""
        resume = self.options.resume
        journal = staging.open_journal(self._fingerprint, self.job.weight_files, restart=not resume)
        if journal.n_discarded:
            reason = "its options or source files differ" if resume else "--no-resume"
            weights = f"{journal.n_discarded} weight{'s' * (journal.n_discarded > 1)}"
            self.messages.note(f"Discarded {weights} of the previous run ({reason}).")

    def _stage(self, staging: Staging, write: WeightWriter) -> None:
        """Stage all files of the output."""
        job, plan, messages = self.job, self.job.plan, self.messages
        staging.check_space((plan.total_bytes if plan else 0) + job.small_files_size)
        report = WriteReport()
        with ThreadPoolExecutor(max_workers=1) as pool:
            small_files = pool.submit(job.write_small_files, staging)

            def advance(count: int) -> None:
                messages.observer.advance(count)
                if small_files.done():
                    small_files.result()  # an error in them ends the run at once

            if plan:
                report = write(plan, staging, advance)
                for name, content in plan.small_files.items():
                    staging.write(name, content)
                report_findings(report, plan, messages)
                compare_source_hashes(job, report, messages)
            small_files.result()
        check_unchanged(self._sources)
        messages.check_strict(self.options.strict)
        if job.writes_checklist:
            write_checklist(staging, self.options, messages)
        self.result.casts = report.casts
        if plan:
            self.manifest.stage(staging, report)

    def _write_weights(self, plan: Plan, staging: Staging, progress: Progress) -> WriteReport:
        """Write the weights in this process."""
        assert staging.journal
        adopt_unit_entries(plan, staging, self._fingerprint)
        with (
            self._progress(plan.payload_bytes),
            on_disk(plan, staging.path, fsync=self.options.fsync) as outputs,
        ):
            reused_bytes = execute(
                plan,
                outputs,
                staging.journal,
                workers=self.options.workers,
                block_size=self.options.block_size,
                progress=progress,
            )
        return report_of_run(plan, staging.journal.entries, reused_bytes)

    @contextmanager
    def _reporting_saved(self, staging: Staging, saved: SavedBytes) -> Iterator[None]:
        """Add ``resumable`` and ``kept`` to an error. Staging must be entered within this context."""
        try:
            yield
        except OSError as error:
            failed = output_error("Cannot read or write", error, Path(str(error.filename or staging.path)))
            self._add_saved(failed, staging, saved)
            raise failed from error
        except BaseException as error:
            self._add_saved(error, staging, saved)
            raise

    def _add_saved(self, error: BaseException, staging: Staging, saved: SavedBytes) -> None:
        plan = self.job.plan
        if staging.is_finalized:
            vars(error).update(resumable=True, kept="The output is complete.")
        elif staging.journal and not isinstance(error, PERMANENT_ERRORS):
            is_resumable = plan and staging.is_resumable_after(error)
            add_saved(error, *(saved(plan, staging) if plan and is_resumable else (0, 0)))

    def _saved_in_process(self, plan: Plan, staging: Staging) -> tuple[int, int]:
        """Return the bytes that a run in one process has saved, and all bytes."""
        entries = {entry.name: entry for entry in adoptable_entries(plan, staging.path, self._fingerprint)}
        if staging.journal:
            entries |= staging.journal.entries
        return saved_bytes(plan, entries), plan.payload_bytes

    def _saved_in_units(self, files: Sequence[str], *, only_complete: bool = False) -> SavedBytes:
        """Return a function for the bytes saved in files with separate journals."""

        def saved(plan: Plan, staging: Staging) -> tuple[int, int]:
            return saved_bytes_in_units(
                plan, staging.path, self._fingerprint, files, only_complete=only_complete
            )

        return saved


def add_saved(error: BaseException, done: int, total: int) -> None:
    """Add ``resumable`` and ``kept`` to an error, from bytes of weights."""
    vars(error).update(resumable=done > 0, kept=saved_sentence(done, total))
