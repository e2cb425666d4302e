"""Lists of names in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable


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
