"""Carries a plan out: gather, reorder, cast, scatter, a block of rows at a time.  Knows nothing of Llama.

Memory is one block and its reordered copy for each worker, whatever the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from threading import Condition, Event

import numpy as np
import xxhash
from isal import isal_zlib

from llama_convert.checkpoints.checksums import Checksums
from llama_convert.checkpoints.row_reader import Bytes, row_blocks, rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.value_scan import ValueScan
from llama_convert.conversion.cast import CastCounts, cast_block, one_core_a_cast
from llama_convert.conversion.journal import Entry, Record
from llama_convert.conversion.output import Output
from llama_convert.conversion.plan import Place, Plan, Task

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
DEFAULT_BLOCK_SIZE = 1 << 20
CHECKPOINT = 64 << 20
"""Bytes of a weight from one line in the journal to the next: the most that each worker loses in a kill."""

Progress = Callable[[int], None]
"""Called with the number of bytes of weights just written, from any worker."""


def execute(
    plan: Plan,
    outputs: Mapping[str, Output],
    journal: Record,
    *,
    workers: int = DEFAULT_WORKERS,
    block_size: int = DEFAULT_BLOCK_SIZE,
    progress: Progress = lambda _: None,
) -> int:
    """Write the plan's files, brought to where they stay when this returns.

    Args:
        plan: what to write.
        outputs: the files by name; they hold nothing but what ``journal`` records.
        journal: what is written of the plan; it is read, and added to.
        workers: tensors in hand at a time.
        block_size: bytes read at a time by each worker.
        progress: told of every block.

    Returns:
        Bytes of weights that an earlier run had written, and whose hashes match.

    Raises:
        InputError: a source file is not what it was, or copies in it differ.
        OutputError: the machine could not read or write.
    """
    stop, busy = Event(), _Busy()
    kept: list[int] = []
    with ExitStack() as stack:
        files = stack.enter_context(SourceFiles())
        for output in outputs.values():
            stack.callback(output.close)
            output.reserve()

        def work(task: Task) -> None:
            with busy:
                if not stop.is_set():
                    carry_out(task)

        def carry_out(task: Task) -> None:
            work = _Work(files, outputs, task, block_size, progress, stop)
            known = journal.entries.get(task.name)
            if known and work.resume(known):
                kept.append(work.nbytes)
                progress(work.nbytes)
            elif not stop.is_set():
                journal.entries.pop(task.name, None)
            for entry in work.write():
                journal.add(entry)
            if work.is_complete and not stop.is_set():
                work.finish()

        if plan.casts:
            stack.enter_context(one_core_a_cast())
        with ThreadPoolExecutor(max_workers=workers) as pool:
            try:
                jobs = [pool.submit(work, task) for task in plan.tasks]
                for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                    job.result()
                for output in outputs.values():
                    output.wait()
            finally:
                stop.set()
                _wind_down(pool, busy)
        files.check_partly_read(block_size)
    return sum(kept)


def _wind_down(pool: ThreadPoolExecutor, busy: _Busy) -> None:
    """Wait for the workers, who write to files that are closed next, however often Ctrl-C is pressed."""
    while True:
        with suppress(KeyboardInterrupt):
            pool.shutdown(cancel_futures=True)
            busy.wait()
            return


class _Busy:
    """Counts the threads that have a task; Ctrl-C in `submit` may start one that the pool does not know."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until no thread has a task."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count)


class _Work:
    """One task, a block of rows at a time."""

    def __init__(
        self,
        files: SourceFiles,
        outputs: Mapping[str, Output],
        task: Task,
        block_size: int,
        progress: Progress,
        stop: Event,
    ) -> None:
        for place in task.places:
            outputs[place.file].open()
        self._all_files = files
        self._outputs = outputs
        self._task = task
        self._block_size = block_size
        self._progress = progress
        self._stop = stop
        self._storages = [slab.storage for slab in task.source.slabs]
        self._start()

    def _start(self) -> None:
        """Begin at the first row."""
        task = self._task
        self._rows = 0
        self._cast, self._oddities = CastCounts(), ValueScan()
        self._rounded: str | None = None
        self._parts = [_Part(place, self._outputs[place.file], task.dtype.itemsize) for place in task.places]
        self._read = Checksums()

    @property
    def is_complete(self) -> bool:
        """Whether all rows are written."""
        return self._rows == self._task.n_rows

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are written, each counted once."""
        return self._task.bytes_of(self._rows)

    def resume(self, entry: Entry) -> bool:
        """Go on after the rows that an earlier run has written, if all its places still hold them."""
        if not fits(entry, self._task):
            return False
        for part, digest, crc32 in zip(self._parts, entry.digests, entry.checksums, strict=True):
            if not part.resume(entry.rows, digest, crc32, self._stop):
                self._start()
                return False
        self._rows, self._rounded = entry.rows, entry.rounded
        self._cast, self._oddities = entry.cast, entry.oddities
        self._read = Checksums.from_ranges(self._storages, entry.read)
        return True

    def write(self) -> Iterator[Entry]:
        """Write the other rows to all their places.

        Yields:
            What is written so far: after every `CHECKPOINT` bytes, and at the end or when interrupted.
        """
        task, files, unrecorded = self._task, self._all_files.with_checksums(self._read), 0
        for start, end in row_blocks(task.source, self._block_size, task.rows_in_a_run, self._rows):
            if self._stop.is_set():
                break
            block = rows_of(files, task.source, start, end)
            self._oddities = self._oddities.with_block(block, task.source.dtype, start)
            block, counts = converted(task, block)
            self._cast += counts
            for part in self._parts:
                part.write(block, start)
            self._rows = end
            self._progress(block.nbytes)
            unrecorded += block.nbytes
            if unrecorded >= CHECKPOINT:
                unrecorded = 0
                yield self._entry()
        if unrecorded:
            yield self._entry()

    def _entry(self) -> Entry:
        return Entry(
            name=self._task.name,
            rows=self._rows,
            digests=tuple(part.digest.hexdigest() for part in self._parts),
            checksums=tuple(part.crc32 for part in self._parts),
            cast=self._cast,
            oddities=self._oddities,
            rounded=self._rounded or self._all_files.rounded.get(self._task.source.name),
            read=tuple(self._read.read_ranges(self._storages)),
        )

    def finish(self) -> None:
        """Count what was read towards the source's checksums, and the weight towards its files.

        Raises:
            InputError: a storage that other weights share is now read whole, and damaged.
        """
        self._all_files.add_checksums(self._read, self._task.source.name)
        for part in self._parts:
            part.output.tensor_done(part.place.name, part.crc32)


def fits(entry: Entry, task: Task) -> bool:
    """Whether the entry can be of this task, whose blocks hold whole runs of rows."""
    return (
        len(entry.digests) == len(entry.checksums) == len(task.places)
        and (entry.rows == task.n_rows or entry.rows in range(0, task.n_rows, task.rows_in_a_run))
        and all(index in range(len([*task.source.slabs])) for index, *_ in entry.read)
    )


def converted(task: Task, block: Bytes) -> tuple[Bytes, CastCounts]:
    """A block of the source's rows as they are written: reordered and cast."""
    if task.reorder:
        block = task.reorder(block)
    if not task.is_cast:
        return block, CastCounts()
    values, counts = cast_block(block, task.source.dtype, task.dtype)
    return values.reshape(len(block), -1), counts


class _Part:
    """What of a weight goes to one place."""

    def __init__(self, place: Place, output: Output, itemsize: int) -> None:
        self.place = place
        self.output = output
        self.columns = slice(place.columns[0] * itemsize, place.columns[1] * itemsize)
        self.row_bytes = self.columns.stop - self.columns.start
        self.digest = xxhash.xxh3_128()
        self.crc32 = 0

    def resume(self, rows: int, digest: str, crc32: int, stop: Event) -> bool:
        """Go on after the weight's first ``rows``, if the file holds the bytes with this digest.

        Not if interrupted before it is known.
        """
        first, last = self.place.rows
        size = (min(max(rows, first), last) - first) * self.row_bytes
        for block in self.output.read(self.place.offset, size):
            if stop.is_set():
                return False
            self.digest.update(block)
        self.crc32 = crc32
        return self.digest.hexdigest() == digest

    def write(self, block: Bytes, start: int) -> None:
        """Write what of a block of rows from ``start`` on belongs here."""
        first, last = self.place.rows
        top, bottom = max(start, first), min(start + len(block), last)
        if top >= bottom:
            return
        part = np.ascontiguousarray(block[top - start : bottom - start, self.columns])
        self.output.write(part, self.place.offset + (top - first) * self.row_bytes)
        self.digest.update(part.data)
        if self.output.layout.has_checksums:
            self.crc32 = isal_zlib.crc32(part.data, self.crc32)
