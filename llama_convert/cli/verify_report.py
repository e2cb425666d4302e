"""Prints a verification: a row for each check when it ends, then what is wrong and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from llama_convert.cli.progress import ConsoleObserver
from llama_convert.cli.terminal import Part, lines, page, print_page, styled
from llama_convert.findings import Finding
from llama_convert.verification.report import Check, CheckReport, Status, VerifyReport

_SHORT = 20
"""Max characters of an expected and a found value that are printed on one line."""
_STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.SKIPPED: ""}
_FORMATS = {"meta": "Meta format", "huggingface": "Hugging Face format"}


class VerifyDisplay(ConsoleObserver):
    """Prints the row of each check when it ends, and on a terminal a live line while something runs."""

    def __init__(self, console: Console, *, quiet: bool = False, verbose: bool = False) -> None:
        """Create a display.

        Args:
            console: where notes and the live line are printed; rows are printed on stdout.
            quiet: print nothing.
            verbose: print details of each check.
        """
        super().__init__(console, quiet=quiet, verbose=verbose, totals=False)
        self._between_phases = ""
        """The label while no phase is measured."""

    def __enter__(self) -> VerifyDisplay:
        self.show("Reading headers")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hide()

    def show(self, label: str) -> None:
        """Show a live line with a label and the elapsed time, until `hide` or the next label."""
        self._between_phases = label
        super().start(None, label)

    def hide(self) -> None:
        """Remove the live line."""
        super().finish()

    def finish(self) -> None:
        """Replace the progress of a phase by the live line."""
        super().finish()
        self.show(self._between_phases)

    def verification_started(self, report: VerifyReport) -> None:
        """Print what is verified."""
        self._print_parts([_title(report)])

    def check_started(self, check: Check) -> None:
        """Show which check runs."""
        self.show(f"Checking {check.value}")

    def check_finished(self, report: CheckReport) -> None:
        """Print the row of the check."""
        self._print_parts([_row(report, self._verbose)])
        self.show("Reading files")

    def _print_parts(self, parts: Iterable[RenderableType]) -> None:
        self.hide()
        if not self._quiet:
            print_page(page(), parts)


def print_report(report: VerifyReport, *, quiet: bool = False, verbose: bool = False) -> None:
    """Print a whole report on stdout; with ``quiet`` only the verdict."""
    if not quiet:
        print_page(page(), [_title(report), *(_row(each, verbose) for each in report.checks)])
    print_results(report, quiet=quiet, verbose=verbose)


def print_results(report: VerifyReport, *, quiet: bool = False, verbose: bool = False) -> None:
    """Print what follows the rows of the checks: files, completions, findings and the verdict."""
    print_page(page(), [_verdict(report)] if quiet else [*_results(report, verbose), _verdict(report)])


def _results(report: VerifyReport, verbose: bool) -> Iterator[RenderableType]:
    for identity in report.files:
        yield styled(f"{identity.file} {identity.message}.")
        if verbose and identity.provenance:
            yield styled(f"  {identity.provenance}.")
    yield from (styled(f"{name} completes the prompt: {text!r}") for name, text in report.completions.items())
    every = [(each.check, finding) for each in report.checks for finding in each.findings]
    shown = [(check, finding) for check, finding in every if verbose or not finding.explained_by]
    if shown:
        yield _findings(sorted(shown, key=lambda pair: pair[1].is_warning))
    hints = dict.fromkeys(each.hint for each in report.checks if each.hint)
    yield from (styled(f"To run the skipped checks: {hint.removeprefix('Run: ')}") for hint in hints)
    if hidden := len(every) - len(shown):
        are = "finding has the same cause" if hidden == 1 else "findings have the same causes"
        yield styled(f"{hidden} more {are} and can be shown with --verbose.")


def _title(report: VerifyReport) -> Text:
    text = f"Verifying {report.path} ({_FORMATS.get(report.format, report.format)})"
    if report.source:
        source_format = report.source_format or ""
        text += f" against {report.source} ({_FORMATS.get(source_format, source_format)})"
    if report.release:
        text += f": {report.release}"
    return styled(text, style="bold")


def _row(report: CheckReport, verbose: bool) -> Table:
    """Name, status, time and summary of a check, aligned with the rows of other checks."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=max(len(check.value) for check in Check), no_wrap=True)
    table.add_column(width=max(len(status.value) for status in Status), no_wrap=True)
    table.add_column(width=7, justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    skipped = report.status is Status.SKIPPED
    seconds = "" if skipped else f"{report.seconds:.1f} s"
    texts = [report.explanation or report.summary]
    if verbose:
        texts += [report.summary] if report.explanation else []
        texts += [report.details] if report.details else []
    status = styled(report.status.value, style=_STYLES[report.status])
    table.add_row(report.check.value, status, seconds, lines(texts))
    return table


def _findings(findings: Iterable[tuple[Check, Finding]]) -> Table:
    table = Table(box=box.HORIZONTALS, show_header=False, show_lines=True, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for check, finding in findings:
        style = "yellow" if finding.is_warning else "red"
        label = [check.value, "warning"] if finding.is_warning else [check.value]
        table.add_row(lines(label, style), _finding(finding))
    return table


def _finding(finding: Finding) -> Text:
    """Tensor and file, message, expected and found value, hint: one line each if known."""
    place = " in ".join(part for part in (finding.tensor, finding.file) if part)
    parts: list[Part] = [(place, "bold")] if place else []
    parts.append(finding.message)
    if (finding.expected or finding.found) and not _states_values(finding):
        expected, found = finding.expected or "none", finding.found or "none"
        short = len(expected) <= _SHORT and len(found) <= _SHORT
        both = [f"expected {expected}", f"     got {found}"]
        parts += [f"expected {expected}, got {found}"] if short else both
    if finding.hint:
        parts.append((f"hint: {finding.hint}", "italic"))
    if cause := finding.explained_by:
        parts.append((f"explained by {cause}", "italic"))
    return lines(parts)


def _states_values(finding: Finding) -> bool:
    """Whether the message contains both values."""
    expected = (finding.expected or "").removeprefix("at most ")
    return (
        bool(finding.found) and f" {finding.found}," in finding.message and f" {expected}." in finding.message
    )


def _verdict(report: VerifyReport) -> Text:
    failed = [each for each in report.checks if each.status is Status.FAIL]
    if failed:
        return styled(f"FAIL: {', '.join(map(_count, failed))}", style="bold red")
    skipped = [each.check.value for each in report.checks if each.status is Status.SKIPPED]
    n_passed = len(report.checks) - len(skipped)
    n_warnings = sum(finding.is_warning for each in report.checks for finding in each.findings)
    time_ = f"{report.seconds:.0f} s" if report.seconds >= 1 else f"{report.seconds:.1f} s"
    text = f"PASS {n_passed}/{len(report.checks)} checks in {time_}"
    text += f", {n_warnings} warning{'s' * (n_warnings > 1)}" if n_warnings else ""
    text += f" (skipped: {', '.join(skipped)})" if skipped else ""
    return styled(text, style="bold green")


def _count(report: CheckReport) -> str:
    """A failed check with the number of its errors, not counting those that other findings explain."""
    if report.n_errors:
        return f"{report.check.value} ({report.n_errors:,} error{'s' * (report.n_errors > 1)})"
    causes = {finding.explained_by.check for finding in report.errors if finding.explained_by}
    others = [check.value for check in Check if check.value in causes]
    return f"{report.check.value} (explained by {', '.join(others)})" if others else report.check.value
