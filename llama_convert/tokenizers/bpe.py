"""Byte pair encoding: adjacent symbols of a text are joined, one pair at a time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from llama_convert.units import format_size

Text = TypeVar("Text", str, bytes)
Pair = tuple[str, str]
Priority = Callable[[str, str], Any]
"""The order in which two adjacent symbols are joined, the lowest first; None: never."""


MAX_MERGES = 16 << 20
"""Characters of all merges in a tokenizer.json.  Llama 3's, the most of any Llama, have 6 million."""
_QUOTED = 12
"""Characters that a merge takes besides its own."""


def splits(pieces: Mapping[Text, Any], whole: Text) -> Iterator[tuple[Text, Text]]:
    """Every way to split a piece into two others."""
    for cut in range(1, len(whole)):
        left, right = whole[:cut], whole[cut:]
        if left in pieces and right in pieces:
            yield left, right


def too_many_merges(pieces: Mapping[Text, Any]) -> str | None:
    """What is wrong if the merges of all pieces would make tokenizer.json too large; they are not kept."""
    size = sum((len(whole) - 1) * (len(whole) + _QUOTED) for whole in pieces)
    if size <= MAX_MERGES:
        return None
    size = 0
    for whole in pieces:
        size += sum(1 for _ in splits(pieces, whole)) * (len(whole) + _QUOTED)
        if size > MAX_MERGES:
            return f"its merges would take more than {format_size(MAX_MERGES)} in tokenizer.json"
    return None


def join(text: str, priority: Priority) -> tuple[list[Pair], list[str]]:
    """The pairs that are joined in a text, in turn, and the symbols that remain.

    The pair with the lowest priority is joined first; of equal ones, the leftmost.
    """
    symbols, end = list(text), len(text)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    queue: list[tuple[Any, int, str, str]] = []
    joined = []

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
            continue  # one of the two has been joined with another symbol
        joined.append((left, right))
        symbols[place], symbols[other] = left + right, ""
        after[place] = after[other]
        if after[place] < end:
            before[after[place]] = place
        consider(before[place])
        consider(place)
    return joined, [symbol for symbol in symbols if symbol]
