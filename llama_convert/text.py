"""Names in messages: which can be printed, how they are quoted and listed."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MAX_NAME = 500
_MAX_QUOTED = 60


def is_printable_name(name: str) -> bool:
    """Whether a name from a file is printable on one line: no control characters, 1 to 500 characters."""
    return name.isprintable() and 0 < len(name) <= _MAX_NAME


def quoted(name: str) -> str:
    """A name from a file in quotes: at most 60 characters, other than printable ones escaped."""
    return f"{name[:_MAX_QUOTED]!r}{'...' * (len(name) > _MAX_QUOTED)}"


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that compares digits by value: ``layers.2`` comes before ``layers.10``."""
    parts = re.split(r"([0-9]+)", name)
    parts[1::2] = [digits.lstrip("0") for digits in parts[1::2]]
    return [(len(part) if place % 2 else 0, part) for place, part in enumerate(parts)]


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Names in natural order, separated by commas; after ``limit`` of them only how many more there are."""
    ordered = sorted(names, key=natural_key)
    more = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {more:,} more" if more > 0 else "")
