"""How things that are wrong alike are said at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from llama_convert.findings import SHOWN, Finding, Severity

_LONGEST = 200
"""Characters of one item of a message: names in files that are not trusted may have millions."""


class Wrong(NamedTuple):
    """One of several things that are wrong in the same way."""

    shown: str
    expected: str | None = None
    found: str | None = None


def group(
    code: str,
    noun: str,
    said: str,
    wrong: Iterable[Wrong],
    *,
    hint: str | None = None,
    severity: Severity = "error",
) -> Iterator[Finding]:
    """One finding for all that is wrong, if anything is: how many, the first ten, and the first in full."""
    each = list(wrong)
    if each:
        nouns = noun if len(each) == 1 else f"{noun}s"
        message = f"{len(each):,} {nouns} {said}: {listed([one.shown for one in each])}"
        expected, found = (text and short(text, _LONGEST) for text in each[0][1:])
        yield Finding(
            code, message, "tokenizer.json", expected=expected, found=found, hint=hint, severity=severity
        )


def listed(items: Sequence[object]) -> str:
    """The first ten, and how many more there are."""
    more = len(items) - SHOWN
    first = ", ".join(short(item, _LONGEST) for item in items[:SHOWN])
    return first + (f" and {more:,} more" if more > 0 else "")


def quoted(text: str) -> str:
    """A text in quotes, its unseen characters escaped, the middle of a long one left out."""
    return short(repr(text), 40)


def short(text: object, limit: int = 60) -> str:
    """The beginning and the end of a long text."""
    line = str(text)
    return line if len(line) <= limit else f"{line[: limit - 14]} … {line[-11:]}"
