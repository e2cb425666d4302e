"""Wording and findings that the screens of several commands share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.text import Text

from llama_convert.cli.terminal import styled
from llama_convert.dtypes import BY_NAME
from llama_convert.findings import Finding

FORMAT_NAMES = {"meta": "Meta", "huggingface": "Hugging Face"}
_MORE = re.compile(r"and ([\d,]+) more")
"""Message of a finding that summarizes others of its code, see `at_most`."""


def counted(number: int, noun: str) -> str:
    """``1 error``, ``2 errors``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def dtype_name(name: str) -> str:
    """``bf16`` for ``bfloat16``: the name that ``--dtype`` accepts, or torch's name where it accepts none."""
    return (BY_NAME[name].short if name in BY_NAME else "") or name


def format_value(value: object) -> str:
    """A hyper-parameter, shape or other value from a file."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, dict):
        return f"({format_settings(value)})"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_settings(config: dict[str, object]) -> str:
    """Names and values, separated by commas."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in config.items())


def finding_lines(findings: Iterable[Finding]) -> Iterator[Text]:
    """Severity, place and message on a line; expected and actual values and the hint on lines below it.

    Errors come before warnings.
    """
    styles = {"error": "bold red", "warning": "yellow"}
    for finding in sorted(findings, key=lambda finding: finding.is_warning):
        place = [part for part in (finding.file, finding.tensor) if part]
        yield styled(
            (f"{finding.severity}: ", styles[finding.severity]), ": ".join([*place, finding.message])
        )
        values = (("expected", finding.expected), ("got", finding.found))
        if known := [f"{label} {value}" for label, value in values if value is not None]:
            yield styled(f"  {', '.join(known)}")
        if finding.hint:
            yield styled(f"  hint: {finding.hint}")


def verdict(findings: Iterable[Finding], *, passed: str = "no problems found") -> Text:
    """``OK: no problems found``, ``OK: 1 warning`` or ``2 errors, 1 warning``."""
    numbers = {"error": 0, "warning": 0}
    for finding in findings:
        more = _MORE.fullmatch(finding.message)
        numbers[finding.severity] += int(more[1].replace(",", "")) if more else 1
    counts = ", ".join(counted(number, severity) for severity, number in numbers.items() if number)
    if numbers["error"]:
        return styled(counts, style="bold red")
    return styled(f"OK: {counts or passed}", style="bold green")
