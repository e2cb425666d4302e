"""Findings that summarize many problems of the same kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from llama_convert.findings import SHOWN, Finding, Severity

_MAX_ITEM = 200
"""Max characters of one item of a message: names in untrusted files may have millions."""


class Problem(NamedTuple):
    """One of several problems of the same kind."""

    shown: str
    expected: str | None = None
    found: str | None = None


def group(
    code: str,
    noun: str,
    what: str,
    problems: Iterable[Problem],
    *,
    hint: str | None = None,
    severity: Severity = "error",
) -> Iterator[Finding]:
    """One finding for all problems, or none if there are no problems.

    The message is "COUNT NOUNS WHAT: the first ten."; expected and found are those of the first problem.
    """
    every = list(problems)
    if every:
        nouns = noun if len(every) == 1 else f"{noun}s"
        message = f"{len(every):,} {nouns} {what}: {listed([problem.shown for problem in every])}."
        expected, found = (text and short(text, _MAX_ITEM) for text in every[0][1:])
        yield Finding(
            code, message, "tokenizer.json", expected=expected, found=found, hint=hint, severity=severity
        )


def listed(items: Sequence[object]) -> str:
    """The first ten items and the number of the others."""
    more = len(items) - SHOWN
    first = ", ".join(short(item, _MAX_ITEM) for item in items[:SHOWN])
    return first + (f" and {more:,} more" if more > 0 else "")


def quoted(text: str) -> str:
    """A text in quotes, with escapes for invisible characters and without the middle of a long one."""
    return short(repr(text), 40)


def short(text: object, limit: int = 60) -> str:
    """The beginning and the end of a long text."""
    line = str(text)
    return line if len(line) <= limit else f"{line[: limit - 14]} … {line[-11:]}"
