"""Contestants on the same bytes, in turn, in one run; a table with all that makes a figure mean something."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

import llama_convert
from tests.peers import ROOT
from tests.run import measured

_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True)
class Contestant:
    """A command that does the task, in a process of its own."""

    name: str
    command: Sequence[str]
    peer: str | None = None
    """The folder of .peers whose packages it sees."""


def race(
    title: str, contestants: Sequence[Contestant], rounds: int, tidy: Callable[[], None] = lambda: None
) -> None:
    """Run everybody in turn, once to warm the page cache and then `rounds` times, and print the table.

    Args:
        title: what was done, to how many bytes.
        contestants: the first is what the ratios are to.
        rounds: how many count.
        tidy: called after each run.
    """
    figures: dict[str, list[tuple[float, float]]] = {contestant.name: [] for contestant in contestants}
    for turn in range(rounds + 1):
        for contestant in contestants:
            path = f"{ROOT / '.peers' / contestant.peer}:{ROOT}" if contestant.peer else str(ROOT)
            figure = measured(list(contestant.command), PYTHONPATH=path, **_QUIET)
            tidy()
            if turn:
                figures[contestant.name].append(figure)
    _print(title, rounds, figures)


def _print(title: str, rounds: int, figures: dict[str, list[tuple[float, float]]]) -> None:
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in figures.items()
    }
    first = next(iter(medians.values()))[0]
    table = Table(title=f"{title}, median of {rounds} rounds, warm page cache")
    for column in ("", "seconds", "min to max", "ratio to the first", "peak MiB"):
        table.add_column(column, justify="left" if not column else "right")
    for name, (seconds, memory) in medians.items():
        every = [row[0] for row in figures[name]]
        spread = f"{min(every):.2f} to {max(every):.2f}"
        table.add_row(name, f"{seconds:.2f}", spread, f"{seconds / first:.2f}", f"{memory / 2**20:.0f}")
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
