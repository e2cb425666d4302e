"""A plan's files are independent units: each can be written by another process, on another machine.

Whoever writes a unit makes the plan anew from the source's headers, takes of it what makes the one file, and
keeps a journal of that file in the staging folder.  Doing a unit twice does no harm: it is the same bytes.
"""

from __future__ import annotations

import atexit
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llama_convert.conversion.execute import Progress, execute
from llama_convert.conversion.job import Job, Prepare
from llama_convert.conversion.journal import Entry, Journal, journal_of, plan_digest
from llama_convert.conversion.notes import Notes
from llama_convert.conversion.options import ConvertOptions
from llama_convert.conversion.output import on_disk
from llama_convert.conversion.plan import Plan
from llama_convert.conversion.publish import STAGING, Staging
from llama_convert.conversion.report import Report, report_of_units
from llama_convert.conversion.sources import check_unchanged, states_of
from llama_convert.errors import InputError, LlamaConvertError, OutputError, UsageError
from llama_convert.observer import Observer
from llama_convert.stores.filesystem import is_url
from llama_convert.stores.mount import standing_for

_as_long_as_the_process = ExitStack()
atexit.register(_as_long_as_the_process.close)


@dataclass(frozen=True)
class Share:
    """The ``number``th of ``count`` shares of a plan's files, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """What ``3/16`` means.

        Raises:
            UsageError: it means none.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            hint = "I is from 1 to N, as in 3/16"
            raise UsageError("BAD_USAGE", f"--array-task {text}: expected I/N", hint=hint)
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, files: Sequence[str]) -> Sequence[str]:
        """Every ``count``th file."""
        return files[self.number - 1 :: self.count]


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


def write_unit(order: Order, file: str) -> int:
    """Write one of the output's files in the staging folder, unless that is done; on disk when this returns.

    Returns:
        Bytes of the file.

    Raises:
        InputError: a source file is damaged, or is another here than where the order comes from.
        OutputError: the machine could not read or write.
    """
    job = _job(order)
    assert job.plan
    if is_url(order.destination):
        from llama_convert.stores.upload import upload_unit

        return upload_unit(order, job, file)
    plan, folder = job.plan.only(file), Path(order.destination) / STAGING
    journal = Journal(folder / journal_of(file), order.fingerprint, restart=not order.options.resume)
    try:
        if not journal.is_complete(folder / file):
            before = states_of({*job.read, *plan.sources})
            options = order.options
            with on_disk(plan, folder, fsync=options.fsync) as outputs:
                execute(plan, outputs, journal, workers=options.workers, block_size=options.block_size)
            check_unchanged(before)
            journal.complete(folder / file)
    finally:
        journal.close()
    return plan.total_bytes


@lru_cache(maxsize=1)
def _job(order: Order) -> Job:
    """Worked out once in each process."""
    source = _as_long_as_the_process.enter_context(standing_for(order.source))
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

        write_all(executor, order, list(plan.layouts), advance)
        return gather(plan, staging, order.fingerprint)

    return write


def gather(plan: Plan, staging: Staging, fingerprint: str) -> Report:
    """What the units' journals tell.

    Raises:
        OutputError: not all of them are complete.
    """
    units = {file: _entries(staging.path, file, fingerprint) for file in plan.layouts}
    missing = [file for file, entries in units.items() if entries is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        message = f"{missing[0]}{more} of {len(units)} files are not written yet"
        raise OutputError("UNITS_MISSING", message, file=staging.destination)
    return report_of_units(plan, {file: entries for file, entries in units.items() if entries is not None})


def is_complete(plan: Plan, folder: Path, fingerprint: str) -> bool:
    """Whether every unit is."""
    return all(_entries(folder, file, fingerprint) is not None for file in plan.layouts)


def _entries(folder: Path, file: str, fingerprint: str) -> dict[str, Entry] | None:
    """What a unit's journal tells; None if there is none, or it is not complete."""
    path = folder / journal_of(file)
    if not path.is_file():
        return None
    journal = Journal(path, fingerprint)
    journal.close()
    return journal.entries if journal.is_complete(folder / file) else None


def adopt(plan: Plan, staging: Staging, fingerprint: str) -> None:
    """Let a run of its own go on from units, as far as they hold whole weights."""
    assert staging.journal
    places = {task.name: task.places for task in plan.tasks}
    for file in plan.layouts:
        for name, entry in (_entries(staging.path, file, fingerprint) or {}).items():
            if len(places[name]) == 1 and name not in staging.journal.entries:
                staging.journal.add(entry)
