"""A verification as a person reads it: what was looked at, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama_convert.verification.report import Finding, LevelReport, Status, VerifyReport

_STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.NOT_RUN: "dim"}


def print_report(report: VerifyReport, *, quiet: bool = False) -> None:
    """The report on stdout; quietly only what is wrong, and the verdict."""
    console = Console(highlight=False)
    if not quiet:
        console.print(_title(report))
        console.print(_levels(report))
        for identity in report.files:
            console.print(Text(f"{identity.file}: {identity.message}", style="dim"))
        for side, text in report.continuations.items():
            console.print(Text(f"{side} goes on: {text!r}"))
    if any(level.findings for level in report.levels):
        console.print(_findings(report))
    console.print(_verdict(report))


def _title(report: VerifyReport) -> Text:
    text = f"{report.path} ({report.layout} layout)"
    if report.source:
        text += f" against {report.source} ({report.source_layout} layout)"
    if report.release:
        text += f": {report.release}"
    return Text(text)


def _levels(report: VerifyReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("level", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("what was looked at", overflow="fold")
    table.add_column("seconds", justify="right", no_wrap=True)
    for level in report.levels:
        seconds = f"{level.seconds:.1f}" if level.status is not Status.NOT_RUN else ""
        status = Text(level.status.value, style=_STYLES[level.status])
        table.add_row(level.level.value, status, Text(level.summary), seconds)
    return table


def _findings(report: VerifyReport) -> Table:
    table = Table(box=box.HORIZONTALS, show_header=False, show_lines=True)
    table.add_column("level", no_wrap=True)
    table.add_column("what is wrong", overflow="fold", ratio=1)
    for level, finding in _in_order(report):
        style = "yellow" if finding.warning else "red"
        table.add_row(Text(level.level.value, style=style), _finding(finding))
    return table


def _finding(finding: Finding) -> Text:
    """Where, what, expected and found, likely cause: a line each, as far as they are known."""
    place = " in ".join(part for part in (finding.tensor, finding.file) if part)
    text = Text(f"{place}\n" if place else "", style="bold")
    text.append(finding.message, style="not bold")
    if finding.expected or finding.found:
        text.append(f"\nexpected {finding.expected or 'none'}, found {finding.found or 'none'}", "not bold")
    if finding.hint:
        text.append(f"\nhint: {finding.hint}", "not bold italic")
    return text


def _in_order(report: VerifyReport) -> Iterator[tuple[LevelReport, Finding]]:
    """What is wrong first, then what should be looked at."""
    for warning in (False, True):
        for level in report.levels:
            yield from ((level, finding) for finding in level.findings if finding.warning == warning)


def _verdict(report: VerifyReport) -> Text:
    if not report.ok:
        failed = ", ".join(level.level.value for level in report.levels if level.status is Status.FAIL)
        return Text(f"FAIL: {failed}", style="bold red")
    missing = [level.level.value for level in report.levels if level.status is Status.NOT_RUN]
    text = f"pass (not run: {', '.join(missing)})" if missing else "pass"
    return Text(text, style="bold green")
