"""Workers: other processes, here or on other machines, that write a plan's files.

A worker redoes the planning from the source's headers, restricts the plan to one file, and keeps a journal of
that file in the staging folder. Writing a file twice is harmless: both writes have the same bytes.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama_convert.conversion.execute import Progress, execute
from llama_convert.conversion.job import Job, JobFactory, plan_hash
from llama_convert.conversion.journal import Journal, journal_name
from llama_convert.conversion.messages import Messages
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.output import on_disk
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.source_checks import check_unchanged, file_states
from llama_convert.conversion.staging import SHARED, STAGING, Staging
from llama_convert.conversion.work_units import collect_report, is_unit_complete
from llama_convert.conversion.write_report import WriteReport
from llama_convert.errors import InputError, LlamaConvertError, OutputError
from llama_convert.extras import require
from llama_convert.observer import Observer
from llama_convert.stores.filesystem import is_url
from llama_convert.stores.location import Location
from llama_convert.stores.mount import mounted

_SCHEDULER_TIMEOUT = 30
"""Seconds to wait for a scheduler's answer."""

_mounts_of_process = ExitStack()
atexit.register(_mounts_of_process.close)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Yield the workers of a Dask scheduler. If one dies, another rewrites its files.

    Args:
        address: for example ``tcp://host:8786``.

    Raises:
        UsageError: the extra ``[dask]`` is not installed.
        OutputError: the scheduler does not answer.
    """
    require("dask", "--scheduler")
    from distributed import Client

    try:
        client: Any = Client(address, timeout=_SCHEDULER_TIMEOUT)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        message = f"The Dask scheduler does not answer ({error})."
        hint = "Check that the scheduler is running and that the address is reachable."
        raise OutputError("SCHEDULER_UNREACHABLE", message, file=address, hint=hint) from error
    with client:
        yield client.get_executor(pure=False)


@dataclass(frozen=True)
class WorkSpec:
    """Everything that a worker needs to redo the planning and write a file."""

    make_job: JobFactory
    source: str
    """A path or a URL."""
    destination: str
    """A path or a URL."""
    options: ConvertOptions
    identity: str
    """The `plan_hash` that the worker's plan must have."""
    fingerprint: str
    """Identifies the journals of this conversion."""
    folder: str = SHARED
    """The folder in the destination's staging folder to write to; unused if the destination is a URL."""

    @property
    def staging(self) -> Path:
        """The folder to write to."""
        return Path(self.destination) / STAGING / self.folder


def write_unit(spec: WorkSpec, file: str) -> int:
    """Write one of the output's files in the staging folder, unless it is complete. It is then on disk.

    Returns:
        Bytes of the file.

    Raises:
        InputError: a source file is damaged, or the source differs from the one that ``spec`` describes.
        OutputError: a file cannot be read or written.
    """
    with _source(spec.source).renaming_errors():
        job = _job(spec)
        assert job.plan
        plan = job.plan.restricted_to(file)
        if is_url(spec.destination):
            _upload_unit(spec, plan, file)
        else:
            _write_unit(spec, job, plan, file)
        return plan.total_bytes


def _write_unit(spec: WorkSpec, job: Job, plan: Plan, file: str) -> None:
    folder = spec.staging
    journal = Journal(folder / journal_name(file), spec.fingerprint, restart=not spec.options.resume)
    try:
        if not is_unit_complete(plan, journal, folder / file):
            before = file_states({*job.source_files, *plan.sources})
            options = spec.options
            with on_disk(plan, folder, fsync=options.fsync) as outputs:
                execute(plan, outputs, journal, workers=options.workers, block_size=options.block_size)
            check_unchanged(before)
            journal.complete(folder / file)
    finally:
        journal.close()


def _upload_unit(spec: WorkSpec, plan: Plan, file: str) -> None:
    from llama_convert.conversion.upload import Store

    with mounted(spec.destination, may_be_absent=True) as output:
        store = Store(spec.destination, output.path)
        (output.path / STAGING).mkdir(exist_ok=True)
        store.upload(plan, file, spec.options, spec.fingerprint)


@lru_cache(maxsize=1)
def _source(path_or_url: str) -> Location:
    """Return the source, mounted until the process ends."""
    return _mounts_of_process.enter_context(mounted(path_or_url))


@lru_cache(maxsize=1)
def _job(spec: WorkSpec) -> Job:
    """Return the job, prepared once per process."""
    source = _source(spec.source).path
    job = spec.make_job(source, Path(spec.destination), spec.options, Messages(Observer()))
    if plan_hash(job.plan, job.settings(spec.options)) != spec.identity:
        message = "Differs from the checkpoint of the process that distributes the work."
        raise InputError("INPUT_CHANGED", message, file=source)
    return job


def write_units(executor: Executor, spec: WorkSpec, files: Sequence[str], progress: Progress) -> None:
    """Let an executor's workers write files.

    Args:
        executor: runs the workers.
        spec: what they need.
        files: names of the files to write.
        progress: called with the bytes of each file.

    Raises:
        InputError, OutputError: a file could not be written; all other workers have ended.
    """
    units = [executor.submit(write_unit, spec, file) for file in files]
    try:
        for unit in as_completed(units):
            progress(unit.result())
    except LlamaConvertError:
        wait([unit for unit in units if not unit.cancel()])  # they still write to the staging folder
        raise
    finally:
        for unit in units:
            unit.cancel()


def executor_writer(executor: Executor, spec: WorkSpec) -> Callable[[Plan, Staging, Progress], WriteReport]:
    """Return a function that lets an executor's workers write the weights, one file per call."""

    def write(plan: Plan, staging: Staging, progress: Progress) -> WriteReport:
        def advance(count: int) -> None:
            progress(plan.payload_bytes * count // plan.total_bytes)

        in_staging = replace(spec, folder=staging.path.name)
        write_units(executor, in_staging, list(plan.layouts), advance)
        return collect_report(plan, staging, spec.fingerprint)

    return write
