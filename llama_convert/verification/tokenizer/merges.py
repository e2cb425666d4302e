"""Merges: every way to join two words into one, the earliest made first."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate, chain, groupby
from math import inf
from pathlib import Path

from llama_convert.errors import InputError
from llama_convert.findings import Finding
from llama_convert.verification.tokenizer.original import SPACE, Original
from llama_convert.verification.tokenizer.ties import tied_pieces
from llama_convert.verification.tokenizer.wording import Wrong, group
from llama_convert.verification.tokenizer.written import Written

UNORDERED = re.compile(rf"{SPACE}+|{SPACE}<.*", re.DOTALL)
"""Pieces that are merged earlier or later than their ids say: Llama 2's runs of spaces, which come last, and
what Code Llama adds, such as `▁<PRE>`."""


def merges(original: Original, written: Written) -> Iterator[Finding]:
    """Merges that are missing, too many or out of turn.

    For one word, the order among its merges is not compared: none of the originals knows one.
    """
    words = original.order
    wanted = dict.fromkeys(_ways(words))
    # Of tied pieces, the merges that sentencepiece never makes may be left out; texts show if others are.
    tied = set(chain.from_iterable(tied_pieces(original).values()))
    lost = {pair for pair in wanted.keys() - written.merges if "".join(pair) not in tied}
    surplus = [
        pair
        for pair in written.merges
        # A special token is cut out of the text before it could be made.
        if pair not in wanted and "".join(pair) not in written.added
    ]
    hint = "Words are left in pieces." if len(lost) < len(wanted) else "No word is made of its letters."
    yield from group("MERGE_MISSING", "merge", "missing", _named(p for p in wanted if p in lost), hint=hint)
    yield from group("MERGE_EXTRA", "merge", "that the original has not", _named(surplus))
    yield from _turns(original, ("".join(pair) for pair in written.merges if pair in wanted))


_MAX_MERGES = 32 << 20
"""Characters of all merges together; Llama 3's, the most of any Llama, have a few million."""


def check_number(words: Collection[str], file: Path) -> None:
    """Count the merges before any are kept.

    Raises:
        InputError: there are too many to compare.
    """
    most = sum((len(word) - 1) * len(word) for word in words)
    sizes = (len(left) + len(right) for left, right in _ways(words))
    if most > _MAX_MERGES and any(size > _MAX_MERGES for size in accumulate(sizes)):
        message = f"has merges of more than {_MAX_MERGES:,} characters; no Llama has so many"
        raise InputError("TOKENIZER_FORM", message, file=file)


def _named(pairs: Iterable[tuple[str, str]]) -> Iterator[Wrong]:
    return (Wrong(repr(" ".join(pair))) for pair in pairs)


def _ways(words: Collection[str]) -> Iterator[tuple[str, str]]:
    """Every way to join two of the words into one."""
    for whole in words:
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in words and right in words:
                yield left, right


def _turns(original: Original, wholes: Iterable[str]) -> Iterator[Finding]:
    """Whether merges make the words in the original's order.

    Sorted, only the words that are out of place change places.
    """
    ranks = ((original.order[whole], whole) for whole, _ in groupby(wholes))
    found = [(rank, whole) for rank, whole in ranks if rank is not None]
    right = sorted(found, key=lambda pair: pair[0])
    wrong = [(a, b) for (rank, a), (other, b) in zip(found, right, strict=True) if rank != other]
    hint = "Merges are in another order, or ids are."
    if len(wrong) == 2:
        first, second = sorted(original.names.index(name) for name, _ in wrong)
        hint = f"the ids {first} and {second}, or their merges, are swapped"
    each = [Wrong(repr(name), f"{instead!r} made first", repr(name)) for name, instead in wrong]
    yield from group("MERGE_ORDER", "word", "made out of turn", each, hint=hint)


def order_of_parts(original: Original) -> Iterator[Finding]:
    """A word is made of words made before it, in every published `tokenizer.model`.

    Single characters are there from the start, and where sentencepiece is not in order no place is known.
    """
    at_hand = re.compile(rf".|{UNORDERED.pattern}" if original.kind == "sentencepiece" else ".", re.DOTALL)
    tied = set(chain.from_iterable(tied_pieces(original).values()))  # added later, their order says nothing
    order = {name: 0 if at_hand.fullmatch(name) else rank or 0 for name, rank in original.order.items()}
    ready: dict[str, float] = {}
    for left, right in _ways(order):
        ready[left + right] = min(ready.get(left + right, inf), max(order[left], order[right]))
    early = [
        name
        for name, rank in ready.items()
        if rank > order[name] and not at_hand.fullmatch(name) and name not in tied
    ]
    ids = {name: number for number, name in enumerate(original.names)}
    wrong = [Wrong(f"{name!r} (id {ids[name]})") for name in early]
    hint = "Ids are swapped, or the file is not Meta's."
    yield from group("TOKEN_ORDER", "token", "made before its parts", wrong, hint=hint)
