"""Ctrl-C and SIGTERM while worker threads read weights: the threads end at the next block."""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_convert.checkpoints.checklist import md5_of_all
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight
from llama_convert.formats.safetensors import read_safetensors_file
from llama_convert.inspection.stats import all_stats
from llama_convert.llama.weights import EMBEDDING, Weight
from llama_convert.verification.tensor_pairs import TensorPair, TensorRows, differences_of
from llama_convert.verification.values import scan_all

ROWS, COLUMNS = 1 << 20, 1 << 10
TOTAL = 2 * ROWS * COLUMNS

Progress = Callable[[int], None]


def stored_weight(folder: Path) -> StoredWeight:
    """A matrix of 2 GB in a file that takes no room on the disk."""
    entry = {"dtype": "BF16", "shape": [ROWS, COLUMNS], "data_offsets": [0, TOTAL]}
    header = json.dumps({"a": entry}).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(file, 8 + len(header) + TOTAL)
    tensor = read_safetensors_file(file)["a"]
    return StoredWeight("a", tensor.shape, tensor.dtype, (Piece(0, 0, Slab.of(tensor)),))


def stats(weight: StoredWeight, files: SourceFiles, progress: Progress) -> None:
    all_stats([weight, weight, weight], files, progress)


def values(weight: StoredWeight, files: SourceFiles, progress: Progress) -> None:
    scan_all({Weight(EMBEDDING): weight}, files, progress)


def weights(weight: StoredWeight, files: SourceFiles, progress: Progress) -> None:
    rows = TensorRows(files, weight, weight.dtype)
    differences_of([TensorPair(Weight(EMBEDDING), rows, rows, 0, False)], progress)


def checklist(weight: StoredWeight, files: SourceFiles, progress: Progress) -> None:
    md5_of_all([weight.pieces[0].slab.file], workers=1, progress=progress)


@pytest.fixture(autouse=True)
def python_handles_ctrl_c() -> Iterator[None]:
    """As at the start of a process: commands that other tests ran here have set handlers of their own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("work", [stats, values, weights, checklist])
def test_interrupted(tmp_path: Path, work: Callable[[StoredWeight, SourceFiles, Progress], None]) -> None:
    done = 0
    main = threading.main_thread().ident
    assert main
    interrupted = threading.Event()

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if not interrupted.is_set():
            interrupted.set()
            signal.pthread_kill(main, signal.SIGINT)

    with SourceFiles() as files, pytest.raises(KeyboardInterrupt):
        work(stored_weight(tmp_path), files, progress)
    assert done < TOTAL
