"""Contestants on the same bytes, in turn, in one run: ``python -m tests.bench [--size 3.2-1B] [--rounds 5]``.

Prints medians and ratios with all that a figure needs to mean something.  Never part of the tests.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

import llama_convert
from tests import large
from tests.peers import ROOT
from tests.run import measured

_HF_SCRIPT = (
    "import sys; from transformers.models.llama.convert_llama_weights_to_hf import write_model; "
    "write_model(sys.argv[2], sys.argv[1], num_shards=int(sys.argv[3]), llama_version='3', vocab_size=128256)"
)

Command = Callable[[Path, Path, int], list[str]]

CONTESTANTS: dict[str, Command] = {
    "cp -r, sync": lambda source, out, _: ["sh", "-c", f"cp -r '{source}' '{out}' && sync '{out}'/*"],
    "llama-convert": lambda source, out, _: [
        sys.executable, "-m", "llama_convert", "convert", str(source), str(out), "--quiet",
    ],
    "transformers 4.45.2's script": lambda source, out, ranks: [
        sys.executable, "-c", _HF_SCRIPT, str(source), str(out), str(ranks),
    ],
}  # fmt: skip


def main() -> None:
    """Make a checkpoint, let everybody convert it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(large.SHAPES), default="3.2-1B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="run only the contestants whose name holds this")
    arguments = parser.parse_args()
    shape = large.SHAPES[arguments.size]
    chosen = [
        name for name in CONTESTANTS if not arguments.only or any(word in name for word in arguments.only)
    ]
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        source = large.make(Path(place) / "meta", shape)
        size = sum(file.stat().st_size for file in source.iterdir())
        for turn in range(arguments.rounds + 1):  # the first round warms the page cache and is not counted
            for name in chosen:
                command = CONTESTANTS[name](source, Path(place) / "out", shape.ranks)
                figure = measured(command, PYTHONPATH=f"{ROOT / '.peers/transformers-4.45'}:{ROOT}")
                shutil.rmtree(Path(place) / "out")
                if turn:
                    figures[name].append(figure)
    _print(arguments.size, size, arguments.rounds, figures)


def _print(name: str, size: int, rounds: int, figures: dict[str, list[tuple[float, float]]]) -> None:
    medians = {
        contestant: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for contestant, rows in figures.items()
    }
    first = next(iter(medians.values()))[0]
    table = Table(title=f"{name}: {size / 1e9:.1f} GB, median of {rounds} rounds, warm page cache")
    for column in ("", "seconds", "min to max", "ratio to the first", "peak MiB"):
        table.add_column(column, justify="left" if not column else "right")
    for contestant, (seconds, memory) in medians.items():
        every = [row[0] for row in figures[contestant]]
        spread = f"{min(every):.2f} to {max(every):.2f}"
        table.add_row(contestant, f"{seconds:.2f}", spread, f"{seconds / first:.2f}", f"{memory / 2**20:.0f}")
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{date.today()}, llama-convert {llama_convert.__version__}, Python {platform.python_version()}, "
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
