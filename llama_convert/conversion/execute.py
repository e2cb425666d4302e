"""Carries a plan out: gather, reorder, cast, scatter, a block of rows at a time.  Knows nothing of Llama.

Memory is one block and its reordered copy for each worker, whatever the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import Event

import numpy as np
import xxhash
from isal import isal_zlib

from llama_convert.checkpoints.gather import Bytes, row_blocks, rows_of
from llama_convert.checkpoints.magnitudes import Oddities
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored import StoredWeight
from llama_convert.conversion.cast import CastCounts, cast_block, one_core_a_cast
from llama_convert.conversion.journal import Entry, Journal
from llama_convert.conversion.output import Output
from llama_convert.conversion.plan import Place, Plan, Task

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
DEFAULT_BLOCK_SIZE = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of bytes of weights just written, from any worker."""


def execute(
    plan: Plan,
    outputs: Mapping[str, Output],
    journal: Journal,
    *,
    workers: int = DEFAULT_WORKERS,
    block_size: int = DEFAULT_BLOCK_SIZE,
    progress: Progress = lambda _: None,
) -> int:
    """Write the plan's files, brought to where they stay when this returns.

    Args:
        plan: what to write.
        outputs: the files by name; they hold nothing but what ``journal`` tells of.
        journal: what is finished of the plan; it is read, and added to.
        workers: tensors in hand at a time.
        block_size: bytes read at a time by each worker.
        progress: told of every block.

    Returns:
        Bytes of weights that an earlier run had written, and were found good.

    Raises:
        InputError: a source file is not what it was, or copies in it differ.
        OutputError: the machine could not read or write.
    """
    stop = Event()
    kept: list[int] = []
    with ExitStack() as stack:
        files = stack.enter_context(SourceFiles())
        for output in outputs.values():
            stack.callback(output.close)
            output.reserve()

        def work(task: Task) -> None:
            work = _Work(files, outputs, task, block_size, progress, stop)
            entry = journal.entries.get(task.name)
            if entry and work.stands(entry):
                kept.append(task.nbytes)
                progress(task.nbytes)
            else:
                entry = work.write()
                if entry is None:
                    return
                journal.add(entry)
            if not stop.is_set():
                work.finish(entry)

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
                _wind_down(pool)
        files.check_the_rest(block_size)
    return sum(kept)


def _wind_down(pool: ThreadPoolExecutor) -> None:
    """Wait for the workers, who write to files that are closed next, however often Ctrl-C is pressed."""
    while True:
        with suppress(KeyboardInterrupt):
            pool.shutdown(cancel_futures=True)
            return


@dataclass
class _Work:
    """One task, a block of rows at a time."""

    files: SourceFiles
    outputs: Mapping[str, Output]
    task: Task
    block_size: int
    progress: Progress
    stop: Event

    def __post_init__(self) -> None:
        for place in self.task.places:
            self.outputs[place.file].open()

    def stands(self, entry: Entry) -> bool:
        """Whether the weight stands at all its places as an earlier run has written it.

        Not if its source's checksum is of other bytes too: they may not have been read.
        """
        itemsize = self.task.dtype.itemsize
        if not (entry.is_of(len(self.task.places)) and _has_own_checksums(self.task.source)):
            return False
        return all(
            self.outputs[place.file].digest(place.offset, place.n_elements * itemsize, self.stop) == digest
            for place, digest in zip(self.task.places, entry.digests, strict=True)
        )

    def write(self) -> Entry | None:
        """Write the weight to all its places; None if told to stop before it was whole."""
        task = self.task
        total, oddities = CastCounts(), Oddities()
        parts = [_Part(place, self.outputs[place.file], task.dtype.itemsize) for place in task.places]
        run = task.reorder.run if task.reorder else 1
        for start, end in row_blocks(task.source, self.block_size, multiple_of=run):
            if self.stop.is_set():
                return None
            block = rows_of(self.files, task.source, start, end)
            oddities = oddities.and_of(block, task.source.dtype, start)
            block, counts = self._changed(block)
            total += counts
            for part in parts:
                part.write(block, start)
            self.progress(block.nbytes)
        return Entry(
            oddities=oddities,
            name=task.name,
            digests=tuple(part.digest.hexdigest() for part in parts),
            checksums=tuple(part.crc32 for part in parts),
            cast=total,
            rounded=self.files.rounded.get(task.source.name),
        )

    def finish(self, entry: Entry) -> None:
        """Tell the files that they have one weight more."""
        for place, crc32 in zip(self.task.places, entry.checksums, strict=True):
            self.outputs[place.file].tensor_done(place.name, crc32)

    def _changed(self, block: Bytes) -> tuple[Bytes, CastCounts]:
        """The same rows as they are written: reordered and cast."""
        task = self.task
        if task.reorder:
            block = task.reorder(block)
        if not task.is_cast:
            return block, CastCounts()
        values, counts = cast_block(block, task.source.dtype, task.dtype)
        return values.reshape(len(block), -1), counts


def _has_own_checksums(weight: StoredWeight) -> bool:
    """Whether each of a weight's checksums, where there are any, is of its bytes and no others."""
    return all(
        slab.storage.crc32 is None or slab.rows * slab.columns * weight.dtype.itemsize == slab.storage.size
        for slab in weight.slabs
    )


class _Part:
    """What of a weight goes to one place."""

    def __init__(self, place: Place, output: Output, itemsize: int) -> None:
        self.place = place
        self.output = output
        self.columns = slice(place.columns[0] * itemsize, place.columns[1] * itemsize)
        self.row_bytes = self.columns.stop - self.columns.start
        self.digest = xxhash.xxh3_128()
        self.crc32 = 0

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
