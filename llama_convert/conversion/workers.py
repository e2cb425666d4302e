"""Lets other processes, here or on other machines, write a plan's files.

Whoever writes one makes the plan anew from the source's headers, takes of it what makes the one file, and
keeps a journal of that file in the staging folder.  Doing it twice does no harm: it is the same bytes.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from llama_convert.conversion.execute import Progress, execute
from llama_convert.conversion.job import Job, Prepare
from llama_convert.conversion.journal import Journal, journal_of, plan_digest
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.output import on_disk
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.sources import check_unchanged, states_of
from llama_convert.conversion.staging import SHARED, STAGING, Staging
from llama_convert.conversion.work_units import gather, is_written
from llama_convert.conversion.write_report import Report
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.observer import Observer
from llama_convert.stores.filesystem import is_url
from llama_convert.stores.location import Location
from llama_convert.stores.mount import mounted

_as_long_as_the_process = ExitStack()
atexit.register(_as_long_as_the_process.close)


@dataclass(frozen=True)
class Order:
    """What a worker is told: enough to think the conversion through once more."""

    prepare: Prepare
    source: str
    """A path, or a URL."""
    destination: str
    options: ConvertOptions
    identity: str
    """The `plan_digest` that must come out."""
    fingerprint: str
    """What the journals of this conversion begin with."""
    folder: str = SHARED
    """Where in the destination's staging folder to write; of no matter for a URL."""

    @property
    def staging(self) -> Path:
        """The folder to write to."""
        return Path(self.destination) / STAGING / self.folder


def write_unit(order: Order, file: str) -> int:
    """Write one of the output's files in the staging folder, unless that is done; on disk when this returns.

    Returns:
        Bytes of the file.

    Raises:
        InputError: a source file is damaged, or is another here than where the order comes from.
        OutputError: the machine could not read or write.
    """
    with _source(order.source).renaming_errors():
        return _write_unit(order, file)


def _write_unit(order: Order, file: str) -> int:
    job = _job(order)
    assert job.plan
    plan = job.plan.only(file)
    if is_url(order.destination):
        _upload(order, plan, file)
    else:
        _write(order, job, plan, file)
    return plan.total_bytes


def _write(order: Order, job: Job, plan: Plan, file: str) -> None:
    folder = order.staging
    journal = Journal(folder / journal_of(file), order.fingerprint, restart=not order.options.resume)
    try:
        if not is_written(plan, journal, folder / file):
            before = states_of({*job.read, *plan.sources})
            options = order.options
            with on_disk(plan, folder, fsync=options.fsync) as outputs:
                execute(plan, outputs, journal, workers=options.workers, block_size=options.block_size)
            check_unchanged(before)
            journal.complete(folder / file)
    finally:
        journal.close()


def _upload(order: Order, plan: Plan, file: str) -> None:
    from llama_convert.conversion.upload import Store

    with mounted(order.destination, may_be_absent=True) as place:
        store = Store(order.destination, place.path)
        (place.path / STAGING).mkdir(exist_ok=True)
        store.upload(plan, file, order.options, order.fingerprint)


@lru_cache(maxsize=1)
def _source(location: str) -> Location:
    """The source, mounted until the process ends."""
    return _as_long_as_the_process.enter_context(mounted(location))


@lru_cache(maxsize=1)
def _job(order: Order) -> Job:
    """Worked out once in each process."""
    source = _source(order.source).path
    job = order.prepare(source, Path(order.destination), order.options, Notes(Observer()))
    if plan_digest(job.plan, job.settings(order.options)) != order.identity:
        message = "is another checkpoint here than where the order came from"
        raise InputError("INPUT_CHANGED", message, file=source)
    return job


def write_all(executor: Executor, order: Order, files: Sequence[str], progress: Progress) -> None:
    """Let an executor's workers write files; ``progress`` is told of each one's bytes.

    Raises:
        InputError, OutputError: one of them could not; the others have ended too.
    """
    units = [executor.submit(write_unit, order, file) for file in files]
    try:
        for unit in as_completed(units):
            progress(unit.result())
    except LlamaConvertError:
        wait([unit for unit in units if not unit.cancel()])  # who still writes, while all is cleared away
        raise
    finally:
        for unit in units:
            unit.cancel()


def by_executor(executor: Executor, order: Order) -> Callable[[Plan, Staging, Progress], Report]:
    """Let an executor's workers write the weights, a file each."""

    def write(plan: Plan, staging: Staging, progress: Progress) -> Report:
        def advance(count: int) -> None:
            progress(plan.payload_bytes * count // plan.total_bytes)

        there = replace(order, folder=staging.path.name)
        write_all(executor, there, list(plan.layouts), advance)
        return gather(plan, staging, order.fingerprint)

    return write
