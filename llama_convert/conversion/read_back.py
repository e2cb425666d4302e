"""Comparison of output files with what a plan writes, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import xxhash
from isal import isal_zlib

from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.conversion.execute import Progress
from llama_convert.conversion.plan import Place, Plan
from llama_convert.errors import InputError


def first_difference(
    folder: Path,
    plan: Plan,
    hashes: Mapping[str, Sequence[str]],
    *,
    workers: int,
    block_size: int,
    progress: Progress,
) -> tuple[str, str] | None:
    """Return the first file that differs from the plan and what in it differs; None if all files match.

    Args:
        folder: folder of the plan's files.
        plan: what the files should hold.
        hashes: XXH3-128 of each weight's bytes at each of its places, by weight name.
        workers: number of tensors read in parallel.
        block_size: bytes that each worker reads at a time.
        progress: called with the number of bytes of every block.

    Raises:
        OutputError: a file cannot be read.
    """
    for file, layout in plan.layouts.items():
        if not (folder / file).is_file() or (folder / file).stat().st_size != layout.size:
            return file, "file size"
    places = [
        (place, place.n_elements * task.dtype.itemsize, expected_hash)
        for task in plan.tasks
        for place, expected_hash in zip(task.places, hashes[task.name], strict=True)
    ]
    crc32s: dict[str, dict[str, int]] = {file: {} for file in plan.layouts}
    stop = Event()

    def matches(expected: tuple[Place, int, str]) -> bool:
        place, size, expected_hash = expected
        state, crc32, block = xxhash.xxh3_128(), 0, memoryview(bytearray(min(size, block_size)))
        for start in range(0, size, block_size):
            if stop.is_set():
                return False
            part = block[: min(block_size, size - start)]
            files.read_into(folder / place.file, place.offset + start, part)
            state.update(part)
            if plan.layouts[place.file].has_checksums:
                crc32 = isal_zlib.crc32(part, crc32)
            progress(len(part))
        crc32s[place.file][place.name] = crc32
        return state.hexdigest() == expected_hash

    with SourceFiles() as files, ThreadPoolExecutor(workers) as pool:
        try:
            for (place, _, _), is_same in zip(places, pool.map(matches, places), strict=True):
                if not is_same:
                    return place.file, place.name
            for file, layout in plan.layouts.items():
                for offset, content in layout.parts(crc32s[file]):
                    part = bytearray(len(content))
                    files.read_into(folder / file, offset, memoryview(part))
                    if part != content:
                        return file, f"bytes {offset:,} to {offset + len(content):,}"
        except InputError as error:  # the file ends too early
            return error.file_name or "", error.message
        finally:
            stop.set()
    return None
