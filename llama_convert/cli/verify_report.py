"""A verification as a person reads it: what was looked at, and what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llama_convert.cli.messages import FORMAT_NAMES as LAYOUTS
from llama_convert.cli.terminal import Part, Terminal, lines, styled
from llama_convert.findings import Finding
from llama_convert.verification.report import LevelReport, Status, VerifyReport

_PIPE_WIDTH = 160
"""Columns where nobody looks, so that lines stay whole for other programs."""
_SHORT = 20
"""Characters up to which what was expected and what was found stand on one line."""
_STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.SKIPPED: ""}


def page() -> Terminal:
    """Stdout as a page: as wide as the terminal."""
    watched = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Terminal(width=None if watched else _PIPE_WIDTH)


def print_page(console: Terminal, parts: Iterable[RenderableType]) -> None:
    """Print one below the other; without the blanks at the ends of lines where it is no terminal."""
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as text:
        console.print(*parts, sep="\n")
    console.print(lines(line.rstrip() for line in text.get().split("\n")[:-1]), soft_wrap=True)


def print_report(report: VerifyReport, *, quiet: bool = False) -> None:
    """The report on stdout; quietly only what is wrong, and the verdict."""
    print_page(page(), _parts(report, quiet))


def _parts(report: VerifyReport, quiet: bool) -> Iterator[RenderableType]:
    if not quiet:
        yield _title(report)
        yield _levels(report)
        yield from (styled(f"{identity.file}: {identity.message}") for identity in report.files)
        yield from (styled(f"{side} goes on: {text!r}") for side, text in report.completions.items())
    if any(level.findings for level in report.levels):
        yield _findings(report)
    yield _verdict(report)


def _title(report: VerifyReport) -> Text:
    text = f"{report.path} ({LAYOUTS.get(report.layout, report.layout)} layout)"
    if report.source:
        layout = report.source_layout or ""
        text += f" against {report.source} ({LAYOUTS.get(layout, layout)} layout)"
    if report.release:
        text += f": {report.release}"
    return styled(text, style="bold")


def _levels(report: VerifyReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("level", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("what was looked at", overflow="fold")
    table.add_column("seconds", justify="right", no_wrap=True)
    for level in report.levels:
        seconds = f"{level.seconds:.1f}" if level.status is not Status.SKIPPED else ""
        status = styled(level.status.value, style=_STYLES[level.status])
        table.add_row(level.level.value, status, level.summary, seconds)
    return table


def _findings(report: VerifyReport) -> Table:
    table = Table(box=box.HORIZONTALS, show_header=False, show_lines=True, pad_edge=False)
    table.add_column("level", no_wrap=True)
    table.add_column("what is wrong", overflow="fold", ratio=1)
    for level, finding in _in_order(report):
        name, style = level.level.value, "yellow" if finding.is_warning else "red"
        table.add_row(lines([name, "warning"] if finding.is_warning else [name], style), _finding(finding))
    return table


def _finding(finding: Finding) -> Text:
    """Where, what, expected and found, likely cause: a line each, as far as they are known."""
    place = " in ".join(part for part in (finding.tensor, finding.file) if part)
    parts: list[Part] = [(place, "bold")] if place else []
    parts.append(finding.message)
    if finding.expected or finding.found:
        expected, found = finding.expected or "none", finding.found or "none"
        short = len(expected) <= _SHORT and len(found) <= _SHORT
        both = [f"expected {expected}", f"   found {found}"]
        parts += [f"expected {expected}, found {found}"] if short else both
    if finding.hint:
        parts.append((f"hint: {finding.hint}", "italic"))
    return lines(parts)


def _in_order(report: VerifyReport) -> Iterator[tuple[LevelReport, Finding]]:
    """What is wrong first, then what should be looked at."""
    for warning in (False, True):
        for level in report.levels:
            yield from ((level, finding) for finding in level.findings if finding.is_warning == warning)


def _verdict(report: VerifyReport) -> Text:
    if not report.ok:
        failed = ", ".join(level.level.value for level in report.levels if level.status is Status.FAIL)
        return styled(f"FAIL: {failed}", style="bold red")
    missing = [level.level.value for level in report.levels if level.status is Status.SKIPPED]
    text = f"pass (not run: {', '.join(missing)})" if missing else "pass"
    return styled(text, style="bold green")
