"""Writes the page: what it says in words and figures, and the template that they are put into."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llama_convert import __version__
from llama_convert.findings import Finding
from llama_convert.units import format_size
from llama_convert.verification.html_report import numbers
from llama_convert.verification.html_report.plots import plots
from llama_convert.verification.report import Check, CheckReport, Status, VerifyReport

Measures = dict[str, Any]

FIGURES = {
    "top1_agreement": "top-1 agreement",
    "max_kl": "largest KL",
    "mean_kl": "mean KL",
    "max_logit_difference": "largest logit difference",
    "max_head_difference": "largest logit difference, LM head alone",
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity",
}
"""The single figures that people ask for, and what they are called."""

LIMITS = {**FIGURES, "probe": "a layer or the LM head alone", "divergence": "the layers together"}
"""What the limits are called, where their names would not do."""

HELD = {"probe": ("local", "probe", "head")}
"""The measures that a limit is for, where it is for more than the one of its name."""


@dataclass(frozen=True)
class Verdict:
    """The answer, in a word and in a sentence."""

    word: str
    sentence: str
    tone: str
    """``good``, ``bad`` or ``warn``."""


@dataclass(frozen=True)
class Threshold:
    """A limit, and how near to it the worst of what was measured came."""

    name: str
    limit: float
    reached: float


@dataclass(frozen=True)
class Thresholds:
    """The limits of one level, and why they are where they are."""

    level: Check
    limits: Sequence[Threshold]
    reason: str | None


MARKER = b'<meta name="generator" content="llama-convert '
"""Every page has it at its start, so that a page is known as one."""
_HEAD_SIZE = 512


def render_page(report: VerifyReport, *, when: datetime | None = None) -> bytes:
    """One HTML page that needs no other file, in UTF-8.

    Args:
        report: what the page shows.
        when: the date on it; now unless given.
    """
    environment = Environment(
        loader=PackageLoader("llama_convert.verification.html_report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": numbers.format_figure, "seconds": numbers.seconds, "size": format_size}
    page: str = environment.get_template("page.html.jinja").render(
        report=report,
        verdict=_verdict(report),
        findings=_findings(report),
        figures=[figure for level in report.checks for figure in _figures(level.measures)],
        plots=plots(report),
        thresholds=[found for level in report.checks if (found := _thresholds(level))],
        when=when or datetime.now().astimezone(),
        version=__version__,
    )
    return page.encode("utf-8", "backslashreplace")


def is_page(file: Path) -> bool:
    """Whether a file may be replaced by a page: it is one, or an empty file; never a link, pipe or device."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return False
        with open(file, "rb", opener=_open_unless_link) as stream:
            head = stream.read(_HEAD_SIZE)
    except OSError:
        return False
    return not head or (head.startswith(b"<!DOCTYPE html>") and MARKER in head)


def _open_unless_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _verdict(report: VerifyReport) -> Verdict:
    """FAIL if a level failed, PASS if none of those that were run did."""
    passed, failed, skipped = (
        [level.check.value for level in report.checks if level.status is status]
        for status in (Status.PASS, Status.FAIL, Status.SKIPPED)
    )
    if not passed and not failed:
        return Verdict("incomplete", "Nothing was looked at.", "warn")
    warnings = sum(finding.is_warning for level in report.checks for finding in level.findings)
    rest = f" Not looked at: {_enumerated(skipped)}." if skipped else ""
    rest += f" {warnings} warning{'s' * (warnings > 1)}." if warnings else ""
    if failed:
        sentence = f"{len(failed)} of {len(report.checks)} levels failed: {_enumerated(failed)}.{rest}"
        return Verdict("FAIL", sentence, "bad")
    return Verdict("PASS", f"Nothing is wrong with {_enumerated(passed)}.{rest}", "good")


def _enumerated(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _findings(report: VerifyReport) -> list[tuple[Check, Finding]]:
    """Errors before warnings; among them the cheapest level first, whose faults explain those of others."""
    findings = [(level.check, finding) for level in report.checks for finding in level.findings]
    return sorted(findings, key=lambda found: found[1].is_warning)


def _figures(measures: Measures) -> Iterator[tuple[str, str]]:
    for key, name in FIGURES.items():
        if key in measures:
            say = numbers.percent if key == "top1_agreement" else numbers.format_figure
            yield name, say(measures[key])


def _thresholds(level: CheckReport) -> Thresholds | None:
    """The limits that a level's measures were held against; None where there are none."""
    given: Measures = dict(level.measures.get("threshold", {}))
    if "limit" in level.measures:
        given["bits_per_byte"] = level.measures["limit"]
    reason = given.pop("reason", None)
    limits = [
        Threshold(LIMITS.get(name, name), limit, max(_held(level.measures, name), key=numbers.badness))
        for name, limit in given.items()
    ]
    return Thresholds(level.check, limits, reason) if limits else None


def _held(measures: Measures, name: str) -> Iterator[float]:
    """What was held against the limit ``name``, of the whole and of every layer."""
    for key in HELD.get(name, (name,)):
        for row in (measures, *measures.get("layers", ())):
            if key in row:
                yield row[key]
