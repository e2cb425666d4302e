"""What a person sees while weights move: bytes, speed, time left, and the memory in use."""

from __future__ import annotations

import resource
import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from llama_convert.cli.terminal import Part, styled
from llama_convert.observer import Observer
from llama_convert.units import format_size

_ROOMY = 80  # columns in which the bar has place for words
_PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal


class ConsoleObserver(Observer):
    """Prints decisions and warnings, and draws a bar on a terminal or plain lines elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._total = self._done = 0
        self._verb = ""
        self._began = self._last_line = 0.0

    def note(self, text: str) -> None:
        """Print what was decided."""
        if not self._quiet:
            self._print(text)

    def warning(self, text: str) -> None:
        """Print what should be looked at."""
        self._print(("warning: ", "bold yellow"), text)

    def _print(self, *parts: Part) -> None:
        """One line; between words a terminal may break it, a log may not."""
        text = styled(*parts)
        self._console.print(text, soft_wrap=not self._console.file.isatty())

    def start(self, total: int | None, verb: str = "written") -> None:
        """Begin to count bytes."""
        self._total, self._done, self._verb, self._began = total or 0, 0, verb, time.monotonic()
        self._last_line = self._began
        if self._quiet or not (self._console.is_interactive and self._console.file.isatty()):
            return
        roomy = self._console.width >= _ROOMY
        beside = 64 if roomy else 36  # columns for the rest, and for the ^C that a terminal echoes
        columns: list[ProgressColumn] = [
            BarColumn(max(4, min(40, self._console.width - beside))),
            DownloadColumn(),
            *([TextColumn(verb, markup=False)] if roomy else []),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            *([TextColumn("left, {task.fields[memory]}")] if roomy else []),
        ]
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task("weights", total=total, memory="")

    def advance(self, count: int) -> None:
        """Count bytes, and show where they stand."""
        self._done += count
        if self._bar:
            self._bar.update(self._task, advance=count, memory=f"{_peak_memory()} memory")
        elif not self._quiet and (now := time.monotonic()) - self._last_line > _PLAIN_INTERVAL:
            self._last_line = now
            self.note(self._line(going_on=True))

    def finish(self) -> None:
        """Say how much was done, and how fast."""
        if self._bar:
            self._bar.stop()
            self._bar = None
        self.note(self._line())

    def _line(self, *, going_on: bool = False) -> str:
        seconds = max(time.monotonic() - self._began, 1e-6)
        speed = self._done / seconds
        left = (self._total - self._done) / speed if speed else 0.0
        eta = f", {left:.0f} s left" if going_on and left >= 1 else ""
        took = f"{seconds:.{1 if seconds >= 1 else 2}f} s"
        return (
            f"{format_size(self._done)} of {format_size(self._total)} {self._verb} in {took}, "
            f"{format_size(speed)}/s{eta}, {_peak_memory()} peak memory"
        )


def _peak_memory() -> str:
    scale = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB
    return format_size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
