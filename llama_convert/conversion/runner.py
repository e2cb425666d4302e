"""Carrying a job out: stage, write, check, publish; by one process or by many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llama_convert import __version__
from llama_convert.checkpoints.checklist import CHECKLIST
from llama_convert.checkpoints.manifest import CARD, MANIFEST, describe_file, write_manifest
from llama_convert.conversion.auxiliary_files import checklist_size, write_checklist
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.execute import Progress, execute
from llama_convert.conversion.existing_output import existing_output
from llama_convert.conversion.job import Job
from llama_convert.conversion.journal import Identity, fingerprint
from llama_convert.conversion.model_card import NOTICE, is_user_edited, notice, render
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.output import on_disk
from llama_convert.conversion.overlap import check_apart
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.source_manifest import compare_digests
from llama_convert.conversion.sources import (
    check_unchanged,
    compare_with_checklist,
    listed_in_checklist,
    states_of,
)
from llama_convert.conversion.staging import FOR_GOOD, STAGING, Staging
from llama_convert.conversion.sync import failure
from llama_convert.conversion.warnings import warn_about_output
from llama_convert.conversion.work_units import (
    Share,
    adopt,
    adoptable,
    check_units,
    gather,
    is_complete,
    saved_bytes,
    saved_in_units,
    units_here,
)
from llama_convert.conversion.workers import Order, by_executor, write_all, write_unit
from llama_convert.conversion.write_report import Report, report_of_run
from llama_convert.errors import ConflictError, InputError, RefusedError
from llama_convert.stores.location import Location
from llama_convert.units import format_part, format_size

if TYPE_CHECKING:
    from llama_convert.conversion.upload import Store

Write = Callable[[Plan, Staging, Progress], Report]
"""Writes the weights into a staging folder, on disk when it returns."""
Saved = Callable[[Plan, Staging], tuple[int, int]]
"""Bytes of weights that the next run need not write, and of all that this one was to write."""


class Run:
    """A job, and how it is to be done.

    What is raised while files are staged has two more attributes: `resumable`, whether weights are saved that
    the same command resumes from, and `kept`, a sentence that says how much (None: nothing).
    """

    def __init__(
        self, job: Job, options: ConvertOptions, notes: Notes, source: Location, *, private: bool = False
    ) -> None:
        """Look at the source files as they are now.

        Args:
            job: what is to be done.
            options: how.
            notes: receives what is found.
            source: the checkpoint that is read.
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
        self._checklist = listed_in_checklist(job.folder)
        self._before = states_of({*job.read, *job.carried, *(job.plan.sources if job.plan else ())})
        self._identity = Identity.of(job.plan, job.settings(options))
        self._fingerprint = fingerprint(self._identity.plan, self._before, source)
        self._stood = False
        self._may_replace = options.overwrite
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
        return self._unless_it_stands(self._here, self._saved_here)

    def dry(self) -> ConvertResult:
        """List the files of the output with their sizes, and write none of it.

        Small files are made in a temporary folder. The sizes of model card and manifest are estimates: those
        hold counts that are known once the weights are read.

        Raises:
            InputError, RefusedError: as `alone`, as far as it shows before weights are read.
        """
        job, result = self.job, self.result
        if self.options.array_task:
            share = Share.parse(self.options.array_task).of(job.files)
            result.files = {file: result.files[file] for file in share}
            return result
        with (
            TemporaryDirectory(prefix="llama-convert-") as folder,
            Staging(Path(folder, "out"), overwrite=False, fsync=False, private=True) as staging,
        ):
            job.write_small_files(staging)
            result.files |= {file.name: file.stat().st_size for file in staging.files}
        self._refuse_warnings()
        if job.plan:
            result.files |= {name: len(content) for name, content in job.plan.small_files.items()}
            if job.checklist:
                result.files[CHECKLIST] = checklist_size(result.files)
            result.files |= self._estimate(job.plan)
        return result

    def _estimate(self, plan: Plan) -> dict[str, int]:
        """Bytes of the files that `_describe` writes, of a run without overflows."""
        digest, known = "0" * 32, self.result.files
        casts = {
            task.name: CastCounts(task.nbytes // task.dtype.itemsize) for task in plan.tasks if task.is_cast
        }
        digests = {task.name: digest for task in plan.tasks if len(task.places) == 1}
        manifest = self._manifest(Report(casts, digests))
        words = {name: len(content) for name, content in self._words(manifest, list(known)).items()}
        files = {name: {"bytes": size, "xxh3_128": digest} for name, size in {**known, **words}.items()}
        return words | {MANIFEST: len(write_manifest(manifest | {"files": files}))}

    def by(self, executor: Executor, order: Callable[[str, str], Order]) -> ConvertResult:
        """Let an executor's workers write the weights, a file each; raises as `alone`.

        Args:
            executor: any; its workers see the source, and the destination too.
            order: given the plan's digest and the fingerprint.
        """
        write_units = by_executor(executor, order(self._identity.plan, self._fingerprint))

        def write(plan: Plan, staging: Staging, progress: Progress) -> Report:
            with self._counting(plan.payload_bytes):
                report = write_units(plan, staging, progress)
            self._check_units(plan, staging)
            return report

        return self._unless_it_stands(write, self._saved_in(self.job.files))

    def to_store(self, store: Store) -> ConvertResult:
        """Write everything to a store elsewhere, for which the destination stands; raises as `alone`."""
        upload = store.writing(self.options, self._fingerprint)

        def write(plan: Plan, staging: Staging, progress: Progress) -> Report:
            with self._counting(plan.payload_bytes):
                report: Report = upload(plan, staging, progress)
            return report

        return self._to_store(store, write)

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
        if self._stands(only=files):
            return
        total = sum(job.plan.sizes[file] for file in files) if job.plan else 0
        sent: list[int] = []

        def advance(count: int) -> None:
            sent.append(count)
            observer.advance(count)

        with self._shared(lambda *_: (sum(sent), total)) as staging:
            store.begin(staging)
            with self._counting(total):
                write_all(executor, order(self._identity.plan, self._fingerprint), files, advance)
        self.notes.note(f"{len(files)} of {len(job.files)} files are written")

    def finish_in_store(self, store: Store) -> ConvertResult:
        """As `finish`, of what has been sent to a store."""
        return self._to_store(store, self._gathered)

    def _to_store(self, store: Store, write: Write) -> ConvertResult:
        weights = self.job.plan.sizes if self.job.plan else {}
        try:
            result = self._unless_it_stands(write, self._saved_in(self.job.files, uploaded=True))
            if self._stood:
                store.remove_traces(weights)
            elif result.published:
                self._publish_in(store)
        except (InputError, RefusedError):
            store.clear(weights)
            raise
        return result

    def _publish_in(self, store: Store) -> None:
        """Send the small files after the weights."""
        plan = self.job.plan
        try:
            with self.notes.observer.phase("Finalizing"):
                store.publish(self.result.files, plan.sizes if plan else {})
        except BaseException as error:
            total = plan.payload_bytes if plan else 0
            _add_saved(error, total, total)
            raise

    def share(self, share: Share, order: Callable[[str, str], Order]) -> ConvertResult:
        """Write some of the files; the last task finalizes the output.  Raises as `alone`."""
        job, files = self.job, share.of(self.job.files)
        if job.plan and self._stands(only=files):
            return self._finish_unless_locked()
        total = sum(job.plan.sizes[file] for file in files) if job.plan else 0
        with self._shared(self._saved_in(files)) as staging, self._counting(total):
            for file in files:
                written = write_unit(order(self._identity.plan, self._fingerprint), file)
                self.notes.observer.advance(written)
        self.result.files = {file: self.result.files[file] for file in files}
        self.notes.note(f"share {share}: {len(files)} of {len(job.files)} files are written")
        if job.plan and not is_complete(job.plan, staging.path, self._fingerprint):
            self.notes.note("others are to be written yet; the last task finalizes the output")
            return self.result
        return self._finish_unless_locked()

    def _finish_unless_locked(self) -> ConvertResult:
        """As `finish`; another run that is at work will do so itself."""
        try:
            return self._finish(only=())
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
        return self._finish()

    def _finish(self, only: Sequence[str] | None = None) -> ConvertResult:
        return self._unless_it_stands(self._gathered, self._saved_in(self.job.files), only)

    def _gathered(self, plan: Plan, staging: Staging, _: Progress) -> Report:
        """What others have written."""
        report = gather(plan, staging, self._fingerprint)
        self._check_units(plan, staging)
        return report

    def _check_units(self, plan: Plan, staging: Staging) -> None:
        """Compare what others have written with their journals, wherever it can be read back."""
        folder = staging.path
        total = sum(plan.only(file).payload_bytes for file in units_here(plan, folder))
        with self._counting(total, "Checking"):
            check_units(plan, folder, self._fingerprint, self.options, self.notes.observer.advance)

    @contextmanager
    def _counting(self, total: int, label: str = "Converting") -> Iterator[None]:
        """Show the progress of so many bytes."""
        self.notes.observer.start(total, label)
        try:
            yield
        finally:
            self.notes.observer.finish()

    def _staging(self, *, shared: bool = False) -> Staging:
        return Staging(
            self._destination,
            overwrite=self._may_replace,
            fsync=self.options.fsync,
            shared=shared,
            private=self._private,
        )

    @contextmanager
    def _shared(self, saved: Saved) -> Iterator[Staging]:
        """The staging folder, where others write too."""
        staging = self._staging(shared=True)
        with self._saying_what_is_kept(staging, saved), staging:
            staging.refuse_other_files()
            staging.resume(self._fingerprint, self.job.files)
            yield staging

    def _unless_it_stands(
        self, write: Write, saved: Saved, only: Sequence[str] | None = None
    ) -> ConvertResult:
        """The result of an earlier run that has done all of it; `_publish` clears what it has left."""
        left = os.path.lexists(self._destination / STAGING)
        return self.result if not left and self._stands(only=only) else self._publish(write, saved, only)

    def _stands(self, *, only: Sequence[str] | None = None) -> bool:
        """Whether an earlier run has done all of it; the weights of some files alone are compared."""
        options, destination, plan = self.options, self._destination, self.job.plan
        if not plan or not options.resume or options.overwrite:
            return False
        sources = [self._described(path) for path in self.job.read]
        found = existing_output(destination, plan, self._identity, sources, options, self.notes, only=only)
        if found and found.is_current:
            self.result.files, self.result.published = found.files, True
            self._stood = self.result.up_to_date = True
        elif found and only is None and not self._may_replace:
            self._may_replace = True
            self.notes.note(f"{destination}: Replacing it: the weights are the same, other files differ.")
        return self._stood

    def _publish(self, write: Write, saved: Saved, only: Sequence[str] | None) -> ConvertResult:
        result, staging = self.result, self._staging()
        with self._saying_what_is_kept(staging, saved), staging:
            if staging.recover(self._fingerprint, restart=not self.options.resume):
                self.notes.note("The previous run finished the output, and was interrupted only then.")
            elif not self._stands(only=only):
                staging.may_replace = self._may_replace
                staging.refuse_other_files()
                self._resume(staging)
                self._stage(staging, write)
            if not self._stood:
                with self.notes.observer.phase("Finalizing"):
                    result.files = staging.publish()
        result.published = True
        self.notes.note(f"{len(result.files)} files, {format_size(sum(result.files.values()))}")
        return result

    def _resume(self, staging: Staging) -> None:
        """See what earlier runs have left, and tell of what cannot be used of it."""
        resume = self.options.resume
        journal = staging.resume(self._fingerprint, self.job.files, restart=not resume)
        if journal.thrown_away:
            why = ": its options or source files differ" if resume else " (--no-resume)"
            self.notes.note(f"Discarded {journal.thrown_away} weights of the previous run{why}.")

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
                report = write(plan, staging, advance)
                for name, content in plan.small_files.items():
                    staging.write(name, content)
                warn_about_output(report, plan, notes)
                compare_digests(job, report, notes)
            small_files.result()
        check_unchanged(self._before)
        self._refuse_warnings()
        if job.checklist:
            write_checklist(staging, self.options, notes)
        result.casts = report.casts
        if plan:
            self._describe(staging, report)

    def _refuse_warnings(self) -> None:
        if self.notes.warnings and self.options.strict:
            message = f"--strict, and there was a warning: {self.notes.warnings[0]}"
            raise RefusedError("STRICT_WARNINGS", message)

    def _here(self, plan: Plan, staging: Staging, progress: Progress) -> Report:
        """Write the weights in this process."""
        assert staging.journal
        adopt(plan, staging, self._fingerprint)
        with (
            self._counting(plan.payload_bytes),
            on_disk(plan, staging.path, fsync=self.options.fsync) as outputs,
        ):
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
        for name, content in self._words(manifest, [file.name for file in staging.files]).items():
            staging.write(name, content)
        if is_user_edited(self._destination / CARD):
            self.notes.note(f"{self._destination / CARD}: somebody has written on it, so it stays as it is")
            staging.remove(CARD)
        files = {file.name: describe_file(file) for file in staging.files}
        staging.write(MANIFEST, write_manifest(manifest | {"files": files}))

    def _words(self, manifest: dict[str, Any], names: Sequence[str]) -> dict[str, bytes]:
        """The model card and the license's notice, as far as the output has none."""
        words, text = {}, notice(manifest)
        if text and not any(name.lower().startswith("notice") for name in names):
            words[NOTICE] = text
        if CARD not in names and not is_user_edited(self._destination / CARD):
            words[CARD] = render(manifest, sorted([*names, *words]))
        return words

    def _manifest(self, report: Report) -> dict[str, Any]:
        result, job = self.result, self.job
        layout = "meta" if any(name.endswith(".pth") for name in job.files) else "huggingface"
        return {
            "tool": f"llama-convert {__version__}",
            "plan": self._identity.plan,
            "weights_plan": self._identity.weights,
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
            "casts": {name: asdict(counts) for name, counts in report.casts.items()},
            "tensors": report.digests,
        }

    def _described(self, source: Path) -> dict[str, Any]:
        """A source file, so that it can be told again; with what its checklist says, be that so or not."""
        md5 = self._checklist.get(source)
        return {"name": source.name, **describe_file(source), **({"md5": md5} if md5 else {})}

    @contextmanager
    def _saying_what_is_kept(self, staging: Staging, saved: Saved) -> Iterator[None]:
        """Add to an error what is saved; the folder is entered in this context, so it is left by then."""
        try:
            yield
        except OSError as error:
            failed = failure("cannot be read or written", error, Path(str(error.filename or staging.path)))
            self._say_what_is_kept(failed, staging, saved)
            raise failed from error
        except BaseException as error:
            self._say_what_is_kept(error, staging, saved)
            raise

    def _say_what_is_kept(self, error: BaseException, staging: Staging, saved: Saved) -> None:
        plan = self.job.plan
        if staging.is_published:
            vars(error).update(resumable=True, kept="The output is complete.")
        elif staging.journal and not isinstance(error, FOR_GOOD):
            _add_saved(error, *(saved(plan, staging) if plan and staging.keeps(error) else (0, 0)))

    def _saved_here(self, plan: Plan, staging: Staging) -> tuple[int, int]:
        """What one process has saved."""
        entries = {entry.name: entry for entry in adoptable(plan, staging.path, self._fingerprint)}
        if staging.journal:
            entries |= staging.journal.entries
        return saved_bytes(plan, entries), plan.payload_bytes

    def _saved_in(self, files: Sequence[str], *, uploaded: bool = False) -> Saved:
        """What is saved of files that have journals of their own; of uploads only what is complete."""

        def saved(plan: Plan, staging: Staging) -> tuple[int, int]:
            return saved_in_units(plan, staging.path, self._fingerprint, files, only_complete=uploaded)

        return saved


def _add_saved(error: BaseException, done: int, total: int) -> None:
    kept = f"Saved {format_part(done, total)}. Run the same command to resume." if done else None
    vars(error).update(resumable=done > 0, kept=kept)
