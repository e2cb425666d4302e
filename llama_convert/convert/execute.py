"""Carries a plan out: gather, reorder, cast, scatter, a block of rows at a time.  Knows nothing of Llama.

Memory is one block and its reordered copy for each worker, whatever the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

import numpy as np
import xxhash
from isal import isal_zlib

from llama_convert.checkpoints.gather import Bytes, SourceFiles, read_rows, row_blocks
from llama_convert.checkpoints.stored import matrix_shape
from llama_convert.convert.cast import CastCounts, cast_block, one_core_a_cast
from llama_convert.convert.plan import Place, Plan, Task
from llama_convert.errors import OutputError
from llama_convert.formats.layout import Layout

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
DEFAULT_BLOCK_SIZE = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of bytes of weights just written, from any worker."""


@dataclass(frozen=True)
class Report:
    """What was noticed on the way."""

    casts: dict[str, CastCounts]
    """What changing the dtype did to each tensor that changed it, by name."""
    digests: dict[str, str]
    """XXH3-128 of each tensor's bytes as they were written, by name."""
    rounded: dict[str, str]
    """Weights whose copies on several ranks differ by rounding, and the file of one such copy."""


def execute(
    plan: Plan,
    folder: Path,
    *,
    workers: int = DEFAULT_WORKERS,
    block_size: int = DEFAULT_BLOCK_SIZE,
    progress: Progress = lambda _: None,
) -> Report:
    """Write the plan's files into ``folder``, on disk when this returns.

    Args:
        plan: what to write.
        folder: an empty folder.
        workers: tensors in hand at a time.
        block_size: bytes read at a time by each worker.
        progress: told of every block.

    Raises:
        InputError: a source file is not what it was, or copies in it differ.
        OutputError: the machine could not read or write.
    """
    stop = Event()
    done: dict[str, _Done] = {}
    with ExitStack() as stack:
        files = stack.enter_context(SourceFiles())
        outputs = {
            name: stack.enter_context(_Output(folder / name, layout, plan.places_in(name)))
            for name, layout in plan.layouts.items()
        }

        def work(task: Task) -> None:
            result = _Work(files, outputs, task, block_size, progress, stop).run()
            if result is not None:
                done[task.name] = result

        if plan.casts:
            stack.enter_context(one_core_a_cast())
        with ThreadPoolExecutor(max_workers=workers) as pool:
            try:
                jobs = [pool.submit(work, task) for task in plan.tasks]
                for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                    job.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        files.check_the_rest(block_size)
        rounded = dict(files.rounded)
    return Report(
        casts={task.name: done[task.name].cast for task in plan.tasks if task.is_cast},
        digests={task.name: done[task.name].digest for task in plan.tasks},
        rounded=rounded,
    )


class _Output:
    """A file being written at planned offsets; open only from its first tensor to its last."""

    def __init__(self, path: Path, layout: Layout, n_tensors: int) -> None:
        self.path = path
        self.layout = layout
        self._descriptor = -1
        self._tensors_left = n_tensors
        self._crc32: dict[str, int] = {}
        self._lock = Lock()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def open(self) -> None:
        """Create the file in its full length, unless that is done."""
        with self._lock:
            if self._descriptor >= 0:
                return
            try:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                os.ftruncate(self._descriptor, self.layout.size)
            except OSError as error:
                raise self._failed(f"cannot be made, {self.layout.size:,} bytes long", error) from error

    def tensor_done(self, name: str, crc32: int) -> None:
        """One more tensor is written; after the last, add the rest, wait until all is on disk, and close."""
        with self._lock:
            self._crc32[name] = crc32
            self._tensors_left -= 1
            if self._tensors_left:
                return
        for offset, content in self.layout.parts(self._crc32):
            self.write(np.frombuffer(content, np.uint8), offset)
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed("cannot be brought to disk", error) from error
        self.__exit__()

    def write(self, block: Bytes, offset: int) -> None:
        """All of the contiguous ``block``, at ``offset``."""
        view = block.reshape(-1).data
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._descriptor, view[done:], offset + done)
            except OSError as error:
                raise self._failed(f"cannot be written at byte {offset + done:,}", error) from error

    def _failed(self, what: str, error: OSError) -> OutputError:
        return OutputError("OUTPUT_IO", f"{what}: {error.strerror}", file=self.path)


@dataclass(frozen=True)
class _Done:
    cast: CastCounts
    digest: str


@dataclass
class _Work:
    """One task, a block of rows at a time."""

    files: SourceFiles
    outputs: dict[str, _Output]
    task: Task
    block_size: int
    progress: Progress
    stop: Event

    def run(self) -> _Done | None:
        """Write the weight to all its places; None if told to stop before it was whole."""
        task = self.task
        for place in task.places:
            self.outputs[place.file].open()
        total, digest = CastCounts(), xxhash.xxh3_128()
        checksums = [0] * len(task.places)
        run = task.reorder.run if task.reorder else 1
        for start, end in row_blocks(task.source, self.block_size, multiple_of=run):
            if self.stop.is_set():
                return None
            block, counts = self._gather(start, end)
            total += counts
            digest.update(block.data)
            for number, place in enumerate(task.places):
                checksums[number] = self._scatter(block, start, place, checksums[number])
            self.progress(block.nbytes)
        for place, crc32 in zip(task.places, checksums, strict=True):
            self.outputs[place.file].tensor_done(place.name, crc32)
        return _Done(total, digest.hexdigest())

    def _gather(self, start: int, end: int) -> tuple[Bytes, CastCounts]:
        """Rows as they are written, as bytes [rows, columns * itemsize]."""
        task, source = self.task, self.task.source
        _, columns = matrix_shape(source.shape)
        block = np.empty((end - start, columns * source.dtype.itemsize), np.uint8)
        read_rows(self.files, source, start, end, block)
        if task.reorder:
            block = task.reorder(block)
        if not task.is_cast:
            return block, CastCounts()
        values, counts = cast_block(block, source.dtype, task.dtype)
        return values.reshape(end - start, -1), counts

    def _scatter(self, block: Bytes, start: int, place: Place, crc32: int) -> int:
        """Write what of a block belongs to a place; the CRC-32 of the tensor so far."""
        top, bottom = max(start, place.rows[0]), min(start + len(block), place.rows[1])
        if top >= bottom:
            return crc32
        left, right = (column * self.task.dtype.itemsize for column in place.columns)
        part = np.ascontiguousarray(block[top - start : bottom - start, left:right])
        output = self.outputs[place.file]
        output.write(part, place.offset + (top - place.rows[0]) * (right - left))
        return isal_zlib.crc32(part.data, crc32) if output.layout.has_checksums else crc32
