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
from tests.run import Measured, measured

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
    figures: dict[str, list[Measured]] = {contestant.name: [] for contestant in contestants}
    for turn in range(rounds + 1):
        for contestant in contestants:
            path = f"{ROOT / '.peers' / contestant.peer}:{ROOT}" if contestant.peer else str(ROOT)
            figure = measured(list(contestant.command), PYTHONPATH=path, **_QUIET)
            tidy()
            if turn:
                figures[contestant.name].append(figure)
    _print(title, rounds, figures)


def _print(title: str, rounds: int, figures: dict[str, list[Measured]]) -> None:
    medians = {name: statistics.median(one.seconds for one in every) for name, every in figures.items()}
    first = next(iter(medians.values()))
    table = Table(title=f"{title}, median of {rounds} rounds, warm page cache")
    for column in ("", "seconds", "min to max", "ratio", "peak MiB", "anonymous", "GB read", "GB written"):
        table.add_column(column, justify="left" if not column else "right")
    for name, every in figures.items():
        seconds = [one.seconds for one in every]
        table.add_row(
            name,
            f"{medians[name]:.2f}",
            f"{min(seconds):.2f} to {max(seconds):.2f}",
            f"{medians[name] / first:.2f}",
            f"{statistics.median(one.peak for one in every) / 2**20:.0f}",
            f"{statistics.median(one.anonymous for one in every) / 2**20:.0f}",
            f"{every[0].read / 1e9:.1f}",
            f"{every[0].written / 1e9:.1f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{date.today()}, llama-convert {llama_convert.__version__}, Python {platform.python_version()}, "
        f"{_processor()}, {os.cpu_count()} cores, {_memory()}, {platform.system()} {platform.release()}"
    )


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
