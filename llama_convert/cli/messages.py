"""How inspections and comparisons word what they have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.text import Text

from llama_convert.cli.terminal import styled
from llama_convert.findings import Finding
from llama_convert.inspection.records import Inspection

LAYOUTS = {"meta": "Meta's", "huggingface": "Hugging Face's"}


def title(it: Inspection) -> str:
    """What it is, in a few words."""
    if it.release:
        return it.release.title
    return "one file of a checkpoint" if it.single_file else "a checkpoint that does not fit together"


def settings(config: dict[str, object]) -> str:
    """Names and values."""
    return ", ".join(f"{name} {shown(value)}" for name, value in config.items())


def shown(value: object) -> str:
    """A hyper-parameter, shape or the like."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, dict):
        return f"({settings(value)})"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def finding_lines(findings: Iterable[Finding]) -> Iterator[Text]:
    """A line for each, what is wrong first."""
    for warning, word, style in ((False, "wrong", "bold red"), (True, "odd", "yellow")):
        for finding in (one for one in findings if one.is_warning is warning):
            place = ": ".join(part for part in (finding.file, finding.tensor) if part)
            message = f"{place}: {finding.message}" if place else finding.message
            yield styled((f"{word}: ", style), message + (f" ({finding.hint})" if finding.hint else ""))
