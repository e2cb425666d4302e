"""Compares files with what a plan writes into them, byte for byte."""

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
    digests: Mapping[str, Sequence[str]],
    *,
    workers: int,
    block_size: int,
    progress: Progress,
) -> tuple[str, str] | None:
    """The first file that does not hold what the plan writes, and what of it differs; None if all do.

    Args:
        folder: where the plan's files are.
        plan: what they should hold.
        digests: XXH3-128 of each weight's bytes at each of its places, by the weight's name.
        workers: tensors read at a time.
        block_size: bytes read at a time by each worker.
        progress: called with the bytes of every block.

    Raises:
        OutputError: the machine cannot read them.
    """
    for file, layout in plan.layouts.items():
        if not (folder / file).is_file() or (folder / file).stat().st_size != layout.size:
            return file, "the file's size"
    places = [
        (place, place.n_elements * task.dtype.itemsize, digest)
        for task in plan.tasks
        for place, digest in zip(task.places, digests[task.name], strict=True)
    ]
    crc32s: dict[str, dict[str, int]] = {file: {} for file in plan.layouts}
    stop = Event()

    def matches(expected: tuple[Place, int, str]) -> bool:
        place, size, digest = expected
        found, crc32, block = xxhash.xxh3_128(), 0, memoryview(bytearray(min(size, block_size)))
        for start in range(0, size, block_size):
            if stop.is_set():
                return False
            part = block[: min(block_size, size - start)]
            files.read_into(folder / place.file, place.offset + start, part)
            found.update(part)
            if plan.layouts[place.file].has_checksums:
                crc32 = isal_zlib.crc32(part, crc32)
            progress(len(part))
        crc32s[place.file][place.name] = crc32
        return found.hexdigest() == digest

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
        except InputError as error:  # the file cannot be read to its end
            return error.file_name or "", error.message
        finally:
            stop.set()
    return None
