"""The run of a job whose output goes to a remote store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

from llama_convert.conversion.execute import Progress
from llama_convert.conversion.job import Job
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.runner import Run, WeightWriter, add_saved
from llama_convert.conversion.staging import Staging
from llama_convert.conversion.upload import Store
from llama_convert.conversion.workers import WorkSpec, write_units
from llama_convert.conversion.write_report import WriteReport
from llama_convert.errors import InputError, RefusedError
from llama_convert.stores.location import Location


class StoreRun(Run):
    """A job and the remote store that receives its output.

    The job's destination is the local folder that mirrors the store.
    """

    def __init__(
        self, job: Job, options: ConvertOptions, messages: Messages, source: Location, store: Store
    ) -> None:
        super().__init__(job, options, messages, source, private=True)
        self._store = store

    def convert(self) -> ConvertResult:
        """Upload the output from this process; raises as `Run.convert`."""
        upload = self._store.writer(self.options, self._fingerprint)

        def write(plan: Plan, staging: Staging, progress: Progress) -> WriteReport:
            with self._progress(plan.payload_bytes):
                return upload(plan, staging, progress)

        return self._upload(write)

    def upload_files(self, executor: Executor, spec: WorkSpec, files: Sequence[str]) -> None:
        """Let an executor's workers upload some of the weight files; any run can `finish` the output.

        Raises:
            InputError: a source file is damaged.
            OutputError: a file cannot be read or written.
            ConflictError: the destination holds something else.
        """
        job, observer = self.job, self.messages.observer
        if self._is_up_to_date(only=files):
            return
        total = sum(job.plan.sizes[file] for file in files) if job.plan else 0
        sent: list[int] = []

        def advance(count: int) -> None:
            sent.append(count)
            observer.advance(count)

        with self._shared_staging(lambda *_: (sum(sent), total)) as staging:
            self._store.start(staging)
            with self._progress(total):
                write_units(executor, spec, files, advance)
        self.messages.note(f"Wrote {len(files)} of {len(job.weight_files)} files.")

    def finish(self) -> ConvertResult:
        """Finalize what has been uploaded; raises as `Run.finish`."""
        return self._upload(self._collect_units)

    def _upload(self, write: WeightWriter) -> ConvertResult:
        weights = self.job.plan.sizes if self.job.plan else {}
        try:
            saved = self._saved_in_units(self.job.weight_files, only_complete=True)
            result = self._finalize_unless_up_to_date(write, saved)
            if result.is_up_to_date:
                self._store.remove_journals(weights)
            elif result.finalized:
                self._finalize_store()
        except (InputError, RefusedError):
            self._store.clear(weights)
            raise
        return result

    def _finalize_store(self) -> None:
        """Upload the small files after the weights."""
        plan = self.job.plan
        try:
            self._store.finalize(self.result.files, plan.sizes if plan else {})
        except BaseException as error:
            total = plan.payload_bytes if plan else 0
            add_saved(error, total, total)
            raise
