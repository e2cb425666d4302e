"""Byte pair encoding: merges adjacent symbols of a text, one pair at a time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from llama_convert.units import format_size

Text = TypeVar("Text", str, bytes)
Pair = tuple[str, str]
Priority = Callable[[str, str], Any]
"""Order in which two adjacent symbols are merged, ascending; None: never."""


MAX_MERGES = 16 << 20
"""Characters of all merges in a tokenizer.json; Llama 3 has 6 million, more than other releases."""
_OVERHEAD = 12
"""Characters of quotes, comma and indentation of a merge."""


def splits(pieces: Mapping[Text, Any], whole: Text) -> Iterator[tuple[Text, Text]]:
    """All ways to split a piece into two pieces."""
    for place in range(1, len(whole)):
        left, right = whole[:place], whole[place:]
        if left in pieces and right in pieces:
            yield left, right


def too_many_merges(pieces: Mapping[Text, Any]) -> str | None:
    """A sentence if the merges of all pieces exceed `MAX_MERGES`, else None.  Keeps no merges in memory."""
    size = sum((len(whole) - 1) * (len(whole) + _OVERHEAD) for whole in pieces)
    if size <= MAX_MERGES:
        return None
    size = 0
    for whole in pieces:
        size += sum(1 for _ in splits(pieces, whole)) * (len(whole) + _OVERHEAD)
        if size > MAX_MERGES:
            return f"The merges would need more than {format_size(MAX_MERGES)} in tokenizer.json."
    return None


def merge(text: str, priority: Priority) -> tuple[list[Pair], list[str]]:
    """The pairs that are merged in a text, in order, and the resulting symbols.

    Merges the pair with the lowest priority first; of equal ones, the leftmost.
    """
    symbols, end = list(text), len(text)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    queue: list[tuple[Any, int, str, str]] = []
    merged = []

    def consider(place: int) -> None:
        if place >= 0 and after[place] < end:
            left, right = symbols[place], symbols[after[place]]
            order = priority(left, right)
            if order is not None:
                heapq.heappush(queue, (order, place, left, right))

    for place in range(end):
        consider(place)
    while queue:
        _, place, left, right = heapq.heappop(queue)
        other = after[place]
        if symbols[place] != left or other == end or symbols[other] != right:
            continue  # one of the two was merged with another symbol
        merged.append((left, right))
        symbols[place], symbols[other] = left + right, ""
        after[place] = after[other]
        if after[place] < end:
            before[after[place]] = place
        consider(before[place])
        consider(place)
    return merged, [symbol for symbol in symbols if symbol]
