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

from llama_convert.checkpoints.gather import Bytes, SourceFiles, read_rows, row_blocks
from llama_convert.checkpoints.stored import matrix_shape
from llama_convert.convert.cast import CastCounts, cast_block, one_core_a_cast
from llama_convert.convert.plan import OutputFile, Plan, Target
from llama_convert.errors import OutputError

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
DEFAULT_BLOCK_SIZE = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of bytes just written, from any worker."""


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
    counts: dict[str, CastCounts] = {}
    digests: dict[str, str] = {}
    with ExitStack() as stack:
        files = stack.enter_context(SourceFiles())
        outputs = [stack.enter_context(_Output(folder, file)) for file in plan.files]

        def work(output: _Output, target: Target) -> None:
            output.open()
            written = _write_tensor(files, output, target, block_size, progress, stop)
            if written is None:
                return
            digests[target.name] = written.digest
            if target.dtype != target.source.dtype:
                counts[target.name] = written.cast
            output.tensor_done()

        if any(target.dtype != target.source.dtype for file in plan.files for target in file.targets):
            stack.enter_context(one_core_a_cast())
        with ThreadPoolExecutor(max_workers=workers) as pool:
            try:
                jobs = [
                    pool.submit(work, output, target) for output in outputs for target in output.file.targets
                ]
                for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                    job.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        files.check_the_rest(block_size)
        rounded = dict(files.rounded)
    names = [target.name for file in plan.files for target in file.targets]
    return Report(
        casts={name: counts[name] for name in names if name in counts},
        digests={name: digests[name] for name in names},
        rounded=rounded,
    )


class _Output:
    """A file being written at planned offsets; open only from its first tensor to its last."""

    def __init__(self, folder: Path, file: OutputFile) -> None:
        self.file = file
        self.path = folder / file.name
        self._descriptor = -1
        self._tensors_left = len(file.targets)
        self._lock = Lock()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def open(self) -> None:
        """Create the file in its full length, with its header, unless that is done."""
        with self._lock:
            if self._descriptor >= 0:
                return
            try:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                os.ftruncate(self._descriptor, self.file.size)
            except OSError as error:
                raise self._failed(f"cannot be made, {self.file.size:,} bytes long", error) from error
            self.write(np.frombuffer(self.file.header, np.uint8), 0)

    def tensor_done(self) -> None:
        """One more tensor is written; after the last, wait until the file is on disk, and close it."""
        with self._lock:
            self._tensors_left -= 1
            if self._tensors_left:
                return
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
class _Written:
    cast: CastCounts
    digest: str


def _write_tensor(
    files: SourceFiles, output: _Output, target: Target, block_size: int, progress: Progress, stop: Event
) -> _Written | None:
    """Write all of one tensor; None if told to stop before it was whole."""
    source = target.source
    _, columns = matrix_shape(source.shape)
    row_bytes = columns * source.dtype.itemsize
    written = target.offset
    total = CastCounts()
    digest = xxhash.xxh3_128()
    run = target.reorder.run if target.reorder else 1
    for start, end in row_blocks(source, block_size, multiple_of=run):
        if stop.is_set():
            return None
        block = np.empty((end - start, row_bytes), np.uint8)
        read_rows(files, source, start, end, block)
        if target.reorder:
            block = target.reorder(block)
        if source.dtype != target.dtype:
            block, counts = cast_block(block, source.dtype, target.dtype)
            total += counts
        digest.update(block.data)
        output.write(block, written)
        written += block.nbytes
        progress(block.nbytes)
    return _Written(total, digest.hexdigest())
