"""Execution of a plan: gather, permute, cast and scatter blocks of rows. Knows nothing about Llama.

Memory is one block and its permuted copy per worker, whatever the size of the model.
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
from llama_convert.conversion.cast import CastCounts, cast_block
from llama_convert.conversion.journal import Entry, Record
from llama_convert.conversion.output import Output
from llama_convert.conversion.plan import Place, Plan, Task

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
DEFAULT_BLOCK_SIZE = 1 << 20
JOURNAL_INTERVAL = 64 << 20
"""Bytes of a weight between two journal entries: the most that each worker loses if the process is killed."""

Progress = Callable[[int], None]
"""Called with the number of bytes of weights just written, from any worker thread."""


def execute(
    plan: Plan,
    outputs: Mapping[str, Output],
    journal: Record,
    *,
    workers: int = DEFAULT_WORKERS,
    block_size: int = DEFAULT_BLOCK_SIZE,
    progress: Progress = lambda _: None,
) -> int:
    """Write the plan's files. They are stored durably when this returns.

    Args:
        plan: what to write.
        outputs: the files by name; existing content counts only if ``journal`` records it.
        journal: what is already written of the plan; read and added to.
        workers: number of tensors written in parallel.
        block_size: bytes that each worker reads at a time.
        progress: called with the number of bytes of every block.

    Returns:
        Bytes of weights that an earlier run had written and whose hashes match.

    Raises:
        InputError: a source file is damaged, or copies of a weight in it differ.
        OutputError: a file cannot be read or written.
    """
    stop, active_threads = Event(), _ActiveThreads()
    reused: list[int] = []
    with ExitStack() as stack:
        files = stack.enter_context(SourceFiles())
        for output in outputs.values():
            stack.callback(output.close)
            output.reserve()

        def run(task: Task) -> None:
            with active_threads:
                if not stop.is_set():
                    write_task(task)

        def write_task(task: Task) -> None:
            writer = _TaskWriter(files, outputs, task, block_size, progress, stop)
            entry = journal.entries.get(task.name)
            if entry and writer.resume(entry):
                reused.append(writer.nbytes)
                progress(writer.nbytes)
            elif not stop.is_set():
                journal.entries.pop(task.name, None)
            for entry in writer.write():
                journal.add(entry)
            if writer.is_complete and not stop.is_set():
                writer.finish()

        with ThreadPoolExecutor(max_workers=workers) as pool:
            try:
                futures = [pool.submit(run, task) for task in plan.tasks]
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
                for output in outputs.values():
                    output.wait()
            finally:
                stop.set()
                _shut_down(pool, active_threads)
        files.check_partly_read(block_size)
    return sum(reused)


def _shut_down(pool: ThreadPoolExecutor, active_threads: _ActiveThreads) -> None:
    """Wait for the workers, which write to files that are closed next, however often Ctrl-C is pressed."""
    while True:
        with suppress(KeyboardInterrupt):
            pool.shutdown(cancel_futures=True)
            active_threads.wait()
            return


class _ActiveThreads:
    """Counts the threads that run a task. Ctrl-C in `submit` may start one that the pool does not know."""

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
        """Wait until no thread runs a task."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count)


class _TaskWriter:
    """Writes one task, a block of rows at a time.

    Args:
        files: open source files, shared by all tasks.
        outputs: the output files by name.
        task: the weight to write.
        block_size: bytes to read at a time.
        progress: called with the number of bytes of every block.
        stop: set when the run ends early.
    """

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
        self._files = files
        self._outputs = outputs
        self._task = task
        self._block_size = block_size
        self._progress = progress
        self._stop = stop
        self._storages = [slab.storage for slab in task.source.slabs]
        self._reset()

    def _reset(self) -> None:
        """Start at the first row."""
        task = self._task
        self._rows = 0
        self._cast, self._value_scan = CastCounts(), ValueScan()
        self._rounded: str | None = None
        self._places = [
            _PlaceWriter(place, self._outputs[place.file], task.dtype.itemsize) for place in task.places
        ]
        self._read = Checksums()

    @property
    def is_complete(self) -> bool:
        """Whether all rows are written."""
        return self._rows == self._task.n_rows

    @property
    def nbytes(self) -> int:
        """Bytes of the written rows; copies count once."""
        return self._task.bytes_of(self._rows)

    def resume(self, entry: Entry) -> bool:
        """Resume after the rows that an earlier run has written.

        Returns:
            False if the entry does not fit or a file no longer holds these rows.
        """
        if not fits(entry, self._task):
            return False
        for place, expected_hash, crc32 in zip(self._places, entry.hashes, entry.crc32s, strict=True):
            if not place.resume(entry.rows, expected_hash, crc32, self._stop):
                self._reset()
                return False
        self._rows, self._rounded = entry.rows, entry.rounded
        self._cast, self._value_scan = entry.cast, entry.value_scan
        self._read = Checksums.from_ranges(self._storages, entry.read)
        return True

    def write(self) -> Iterator[Entry]:
        """Write the remaining rows to all their places.

        Yields:
            A journal entry after every `JOURNAL_INTERVAL` bytes, and at the end or when interrupted.
        """
        task, files, unrecorded = self._task, self._files.with_checksums(self._read), 0
        for start, end in row_blocks(task.source, self._block_size, task.permuted_rows, self._rows):
            if self._stop.is_set():
                break
            block = rows_of(files, task.source, start, end)
            self._value_scan = self._value_scan.with_block(block, task.source.dtype, start)
            block, counts = _permuted_and_cast(task, block)
            self._cast += counts
            for place in self._places:
                place.write(block, start)
            self._rows = end
            self._progress(block.nbytes)
            unrecorded += block.nbytes
            if unrecorded >= JOURNAL_INTERVAL:
                unrecorded = 0
                yield self._entry()
        if unrecorded:
            yield self._entry()

    def _entry(self) -> Entry:
        return Entry(
            name=self._task.name,
            rows=self._rows,
            hashes=tuple(place.hash.hexdigest() for place in self._places),
            crc32s=tuple(place.crc32 for place in self._places),
            cast=self._cast,
            value_scan=self._value_scan,
            rounded=self._rounded or self._files.rounded.get(self._task.source.name),
            read=tuple(self._read.read_ranges(self._storages)),
        )

    def finish(self) -> None:
        """Add what was read to the source's checksums, and the weight to its output files.

        Raises:
            InputError: a storage that several weights share is now read completely, and is damaged.
        """
        self._files.add_checksums(self._read, self._task.source.name)
        for place in self._places:
            place.output.tensor_done(place.place.name, place.crc32)


def fits(entry: Entry, task: Task) -> bool:
    """Return whether an entry can be of this task: blocks never split rows that are permuted together."""
    return (
        len(entry.hashes) == len(entry.crc32s) == len(task.places)
        and (entry.rows == task.n_rows or entry.rows in range(0, task.n_rows, task.permuted_rows))
        and all(index in range(len([*task.source.slabs])) for index, *_ in entry.read)
    )


def _permuted_and_cast(task: Task, block: Bytes) -> tuple[Bytes, CastCounts]:
    """Return a block of source rows as it is written, and the counts of its cast."""
    if task.permutation:
        block = task.permutation(block)
    if not task.is_cast:
        return block, CastCounts()
    values, counts = cast_block(block, task.source.dtype, task.dtype)
    return values.reshape(len(block), -1), counts


class _PlaceWriter:
    """Writes one place of a weight, and hashes it.

    Args:
        place: the rectangle of the weight.
        output: its output file.
        itemsize: bytes per element.
    """

    def __init__(self, place: Place, output: Output, itemsize: int) -> None:
        self.place = place
        self.output = output
        self._columns = slice(place.columns[0] * itemsize, place.columns[1] * itemsize)
        self._row_size = self._columns.stop - self._columns.start
        self.hash = xxhash.xxh3_128()
        self.crc32 = 0

    def resume(self, rows: int, expected_hash: str, crc32: int, stop: Event) -> bool:
        """Resume after the weight's first ``rows`` rows.

        Returns:
            False if the hash of the file's bytes is not ``expected_hash``, or if the run ends meanwhile.
        """
        first, last = self.place.rows
        size = (min(max(rows, first), last) - first) * self._row_size
        for block in self.output.read(self.place.offset, size):
            if stop.is_set():
                return False
            self.hash.update(block)
        self.crc32 = crc32
        return self.hash.hexdigest() == expected_hash

    def write(self, block: Bytes, start: int) -> None:
        """Write the part of a block that belongs to this place; ``start`` is the block's first row."""
        first, last = self.place.rows
        top, bottom = max(start, first), min(start + len(block), last)
        if top >= bottom:
            return
        part = np.ascontiguousarray(block[top - start : bottom - start, self._columns])
        self.output.write(part, self.place.offset + (top - first) * self._row_size)
        self.hash.update(part.data)
        if self.output.layout.has_checksums:
            self.crc32 = isal_zlib.crc32(part.data, self.crc32)
