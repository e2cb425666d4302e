"""Carries a plan out: gather, reorder, cast, scatter, a block of rows at a time.  Knows nothing of Llama.

Memory is one block and its reordered copy for each worker, whatever the model.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

import numpy as np
import xxhash
from isal import isal_zlib

from llama_convert.checkpoints.gather import Bytes, row_blocks, rows_of
from llama_convert.checkpoints.magnitudes import Oddities
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored import StoredWeight
from llama_convert.conversion.cast import CastCounts, cast_block, one_core_a_cast
from llama_convert.conversion.journal import Entry, Journal
from llama_convert.conversion.plan import Place, Plan, Task
from llama_convert.conversion.sync import WriteBack, discard, failure
from llama_convert.formats.layout import Layout

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
DEFAULT_BLOCK_SIZE = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of bytes of weights just written, from any worker."""


def execute(
    plan: Plan,
    folder: Path,
    journal: Journal,
    *,
    workers: int = DEFAULT_WORKERS,
    block_size: int = DEFAULT_BLOCK_SIZE,
    fsync: bool = True,
    progress: Progress = lambda _: None,
) -> int:
    """Write the plan's files into ``folder``, on disk when this returns.

    Args:
        plan: what to write.
        folder: a folder that holds nothing else under these names but what ``journal`` tells of.
        journal: what is finished of the plan; it is read, and added to.
        workers: tensors in hand at a time.
        block_size: bytes read at a time by each worker.
        fsync: whether to wait for the disk.
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
        disk = stack.enter_context(WriteBack(enabled=fsync))
        outputs = {
            name: stack.enter_context(_Output(folder / name, layout, plan.places_in(name), disk))
            for name, layout in plan.layouts.items()
        }
        for output in outputs.values():
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


class _Output:
    """A file being written at planned offsets; open only from its first tensor to its last."""

    def __init__(self, path: Path, layout: Layout, n_tensors: int, disk: WriteBack) -> None:
        self.path = path
        self.layout = layout
        self._disk = disk
        self._descriptor = -1
        self._finished: Future[None] | None = None
        self._tensors_left = n_tensors
        self._crc32: dict[str, int] = {}
        self._lock = Lock()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def reserve(self) -> None:
        """Make the file in its full length, so that a full disk shows now; bytes that are there stay."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                os.ftruncate(descriptor, self.layout.size)
                _allocate(descriptor, self.layout.size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise failure(f"cannot be made, {self.layout.size:,} bytes long", error, self.path) from error

    def open(self) -> None:
        """Open the file, unless that is done."""
        with self._lock:
            if self._descriptor < 0:
                try:
                    self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
                except OSError as error:
                    raise failure("cannot be opened", error, self.path) from error

    def digest(self, offset: int, size: int, stop: Event) -> str:
        """XXH3-128 of bytes that stand in the file, or of fewer if told to stop."""
        digest = xxhash.xxh3_128()
        end = offset + size
        while offset < end and not stop.is_set():
            try:
                block = os.pread(self._descriptor, min(DEFAULT_BLOCK_SIZE, end - offset), offset)
            except OSError as error:
                raise failure(f"cannot be read at byte {offset:,}", error, self.path) from error
            if not block:
                break
            digest.update(block)
            offset += len(block)
        return digest.hexdigest()

    def tensor_done(self, name: str, crc32: int) -> None:
        """One more tensor is written; after the last, add the rest, wait until all is on disk, and close."""
        with self._lock:
            self._crc32[name] = crc32
            self._tensors_left -= 1
            if self._tensors_left:
                return
        for offset, content in self.layout.parts(self._crc32):
            self.write(np.frombuffer(content, np.uint8), offset)
        self._finished, self._descriptor = self._disk.finish(self._descriptor), -1

    def wait(self) -> None:
        """Wait until all of a finished file is on disk."""
        try:
            if self._finished:
                self._finished.result()
        except OSError as error:
            discard(self.path)  # the kernel may have dropped any of it
            raise failure("cannot be brought to disk", error, self.path) from error

    def write(self, block: Bytes, offset: int) -> None:
        """All of the contiguous ``block``, at ``offset``."""
        view = block.reshape(-1).data
        done = 0
        while done < len(view):
            try:
                count = os.pwrite(self._descriptor, view[done:], offset + done)
                if not count:
                    raise OSError(errno.EIO, "nothing is taken")
            except OSError as error:
                raise failure(f"cannot be written at byte {offset + done:,}", error, self.path) from error
            done += count
        self._disk.wrote(self._descriptor, done)


def _allocate(descriptor: int, size: int) -> None:
    """Reserve space on disk, where the file system can."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


@dataclass
class _Work:
    """One task, a block of rows at a time."""

    files: SourceFiles
    outputs: dict[str, _Output]
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
        return _has_own_checksums(self.task.source) and all(
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

    def __init__(self, place: Place, output: _Output, itemsize: int) -> None:
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
