"""Prints notes, warnings and progress on stderr: a live line on a terminal, plain lines otherwise."""

from __future__ import annotations

import resource
import sys
import time
from threading import Lock, Timer

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llama_convert.cli.terminal import Part, print_message, styled
from llama_convert.observer import Observer
from llama_convert.units import format_part, format_size

_QUIET_SECONDS = 1.0
"""Shorter phases print no line where stderr is not a terminal."""
_MAX_BAR = 40
"""Columns of the bar, where the terminal is wide enough."""
_MARGIN = 2
"""Columns left for the ``^C`` that a terminal echoes."""


class ConsoleObserver(Observer):
    """Prints notes, warnings and progress.

    On a terminal, a phase shows one live line: label, percentage, bytes, rate and time left, or label and
    elapsed time if its length is unknown. Otherwise, a phase of over a second prints a line when it starts
    and one when it ends.

    Args:
        console: where to print.
        quiet: print warnings only.
        verbose: print details and the process's memory too.
        totals: print the lines of phases where ``console`` is not a terminal.
    """

    def __init__(
        self, console: Console, *, quiet: bool = False, verbose: bool = False, totals: bool = True
    ) -> None:
        self._console = console
        self._quiet = quiet
        self._verbose = verbose
        self._totals = totals
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._label = ""
        self._total: int | None = None
        self._done = 0
        self._start = 0.0
        self._lock = Lock()
        self._timer: Timer | None = None
        self._start_line_printed = False

    def note(self, text: str) -> None:
        """Print a note."""
        if not self._quiet:
            self._print(text)

    def detail(self, text: str) -> None:
        """Print a note, with ``verbose``."""
        if self._verbose:
            self.note(text)

    def warning(self, text: str) -> None:
        """Print a warning."""
        self._print(("warning: ", "bold yellow"), text)

    def _print(self, *parts: Part) -> None:
        print_message(self._console, *parts)

    def start(self, total: int | None, label: str = "Converting") -> None:
        """Begin a phase."""
        self._stop()
        self._total, self._done, self._label, self._start = total, 0, label, time.monotonic()
        self._start_line_printed = False
        if self._quiet:
            return
        if self._console.is_interactive and self._console.file.isatty():
            column = _PhaseColumn(self._console, memory=self._verbose)
            self._live = Progress(column, console=self._console, transient=True)
            self._live.start()
            self._task = self._live.add_task(label, total=total)
        elif self._totals:
            self._timer = Timer(_QUIET_SECONDS, self._print_start)
            self._timer.daemon = True
            self._timer.start()

    def _print_start(self) -> None:
        with self._lock:
            if self._timer:
                self._start_line_printed = True
                self._print(f"{self._label} {format_size(self._total)}" if self._total else self._label)

    def advance(self, count: int) -> None:
        """Count bytes."""
        self._done += count
        if self._live:
            self._live.update(self._task, advance=count)

    def finish(self) -> None:
        """End the phase."""
        self._stop()
        if self._start_line_printed or (self._verbose and self._total):
            self._start_line_printed = False
            self.note(self._end_line())

    def _stop(self) -> None:
        """Remove the live line, or cancel the line that is printed later."""
        if self._live:
            self._live.stop()
            self._live = None
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None

    def _end_line(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-6)
        words = [self._label, *_amounts(self._done, self._total, self._done / seconds)]
        memory = f", {peak_memory()} peak memory" if self._verbose else ""
        return f"{' '.join(words)} in {format_seconds(seconds)}{memory}"


class _PhaseColumn(ProgressColumn):
    """The live line of a phase; on a narrow terminal without its last parts, on a wide one with a bar."""

    def __init__(self, console: Console, *, memory: bool) -> None:
        self._console = console
        self._memory = memory
        super().__init__()

    def render(self, task: Task) -> Table | Text:
        words = [task.description]
        if task.total is None:
            words.append(format_clock(task.elapsed or 0))
        else:
            words += _amounts(int(task.completed), int(task.total), task.speed)
            words += [format_clock(task.time_remaining)] if task.time_remaining is not None else []
        words += [f"{peak_memory()} memory"] if self._memory else []
        width = self._console.width - _MARGIN
        while len(words) > 1 and len(" ".join(words)) > width:
            words.pop()
        text = styled(" ".join(words)[:width])
        bar = min(_MAX_BAR, width - len(text) - 1)
        if task.total is None or bar < 10:
            return text
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(text, ProgressBar(task.total, task.completed, width=bar))
        return row


def _amounts(done: int, total: int | None, speed: float | None) -> list[str]:
    """Percentage, bytes and rate, as far as they are known."""
    rate = [f"{format_size(speed)}/s"] if speed else []
    if total is None:
        return [format_size(done), *rate] if done else []
    percentage = f"{100 * done // total}%" if total else "100%"
    return [percentage, format_part(done, total).replace(" of ", "/"), *rate]


def format_clock(seconds: float) -> str:
    """``83`` as ``1:23``, ``3723`` as ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def format_seconds(seconds: float) -> str:
    """``0.123`` as ``0.12 s``, ``12.3`` as ``12 s``, ``83`` as ``1:23``."""
    if seconds >= 60:
        return format_clock(seconds)
    return f"{seconds:.{0 if seconds >= 10 else 1 if seconds >= 1 else 2}f} s"


def peak_memory() -> str:
    """Peak resident memory of this process."""
    scale = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20:.0f} MiB"
