"""Compares merges and their order.

A merge joins two tokens into one.  Pieces of sentencepiece with equal scores compete: sentencepiece joins the
leftmost, but the library `tokenizers` has a strict order, in which no correct one may exist.  A vocabulary
that was extended has thousands of equal scores.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain, groupby
from math import inf
from pathlib import Path
from random import Random

from llama_convert.errors import InputError
from llama_convert.findings import Finding
from llama_convert.verification.tokenizer.grouping import Problem, group
from llama_convert.verification.tokenizer.tokenizer_json import TokenizerJson
from llama_convert.verification.tokenizer.tokenizer_model import SPACE, Original

UNORDERED = re.compile(rf"{SPACE}+|{SPACE}<.*", re.DOTALL)
"""Pieces whose ids do not show when they are merged: runs of spaces, which Llama 2 merges last, and pieces
that Code Llama adds, for example `▁<PRE>`."""


def merges(original: Original, tokenizer: TokenizerJson) -> Iterator[Finding]:
    """Findings on merges that are missing, extra or in the wrong order.

    The order of merges that give the same token is not compared: originals do not define it.
    """
    wanted = dict.fromkeys(_all_merges(original.order))
    # Merges of tied pieces that sentencepiece never makes may be missing; texts detect other missing ones.
    tied = set(chain.from_iterable(tied_pieces(original).values()))
    lost = {pair for pair in wanted.keys() - tokenizer.merges if "".join(pair) not in tied}
    extra = [
        pair
        for pair in tokenizer.merges
        # Special tokens are found before merges apply.
        if pair not in wanted and "".join(pair) not in tokenizer.added
    ]
    all_lost = len(lost) == len(wanted)
    hint = "Without merges every character is a token." if all_lost else "Texts are split into more tokens."
    yield from group(
        "MERGE_MISSING", "merge", "missing", _problems(p for p in wanted if p in lost), hint=hint
    )
    yield from group("MERGE_EXTRA", "merge", "not in the original", _problems(extra))
    yield from _order(original, ("".join(pair) for pair in tokenizer.merges if pair in wanted))


_MAX_MERGES = 32 << 20
"""Max characters of all merges.  Those of Llama 3, the most of any Llama, have a few million."""


def limit_merges(tokens: Collection[str], file: Path) -> None:
    """Count the characters of all merges without storing them.

    Raises:
        InputError: there are too many merges to compare.
    """
    upper_bound = sum((len(token) - 1) * len(token) for token in tokens)
    sizes = (len(left) + len(right) for left, right in _all_merges(tokens))
    if upper_bound > _MAX_MERGES and any(size > _MAX_MERGES for size in accumulate(sizes)):
        message = f"The merges have more than {_MAX_MERGES:,} characters; no Llama has so many."
        raise InputError("TOKENIZER_UNSUPPORTED", message, file=file)


def _problems(pairs: Iterable[tuple[str, str]]) -> Iterator[Problem]:
    return (Problem(repr(" ".join(pair))) for pair in pairs)


def _all_merges(tokens: Collection[str]) -> Iterator[tuple[str, str]]:
    """Every pair of tokens that together give a token."""
    for whole in tokens:
        for middle in range(1, len(whole)):
            left, right = whole[:middle], whole[middle:]
            if left in tokens and right in tokens:
                yield left, right


def _order(original: Original, wholes: Iterable[str]) -> Iterator[Finding]:
    """Findings if merges are not in the original's order.

    Only the tokens that are out of order move when the merges are sorted.
    """
    ranks = ((original.order[whole], whole) for whole, _ in groupby(wholes))
    found = [(rank, whole) for rank, whole in ranks if rank is not None]
    expected = sorted(found, key=lambda pair: pair[0])
    wrong = [(a, b) for (rank, a), (other, b) in zip(found, expected, strict=True) if rank != other]
    hint = "Merges or ids are in another order."
    if len(wrong) == 2:
        first, second = sorted(original.names.index(name) for name, _ in wrong)
        hint = f"Ids {first} and {second}, or their merges, are swapped."
    problems = [Problem(repr(name), f"{instead!r} merged first", repr(name)) for name, instead in wrong]
    yield from group("MERGE_ORDER", "token", "merged in the wrong order", problems, hint=hint)


def order_of_parts(original: Original) -> Iterator[Finding]:
    """Findings on tokens with a lower rank than their parts, which no official `tokenizer.model` has.

    Single characters need no merge.  The place of pieces that match `UNORDERED` is unknown.
    """
    needs_no_merge = re.compile(
        rf".|{UNORDERED.pattern}" if original.kind == "sentencepiece" else ".", re.DOTALL
    )
    tied = set(chain.from_iterable(tied_pieces(original).values()))  # added later, in any order
    order = {
        name: 0 if needs_no_merge.fullmatch(name) else rank or 0 for name, rank in original.order.items()
    }
    ready: dict[str, float] = {}
    for left, right in _all_merges(order):
        ready[left + right] = min(ready.get(left + right, inf), max(order[left], order[right]))
    early = [
        name
        for name, rank in ready.items()
        if rank > order[name] and not needs_no_merge.fullmatch(name) and name not in tied
    ]
    ids = {name: number for number, name in enumerate(original.names)}
    problems = [Problem(f"{name!r} (id {ids[name]})") for name in early]
    hint = "Ids are swapped, or the file is not an official one."
    yield from group("TOKEN_ORDER", "token", "merged before its parts", problems, hint=hint)


_MAX_OVERLAPS = 60_000
_N_MIXED = 6_000
"""Number of texts that combine several tied pieces."""


def tied_pieces(original: Original) -> dict[float, list[str]]:
    """Pieces of more than one character that share their rank with others, by rank."""
    ranks = {name: rank for name, rank in original.order.items() if rank is not None and len(name) > 1}
    shared = Counter(ranks.values())
    groups: defaultdict[float, list[str]] = defaultdict(list)
    for name, rank in ranks.items():
        if shared[rank] > 1:
            groups[rank].append(name)
    return groups


def texts_of_tied_pieces(original: Original) -> Iterator[str]:
    """Texts of all tied pieces: single, overlapping and mixed; the same texts in every run."""
    groups = tied_pieces(original)
    tied = list(chain.from_iterable(groups.values()))
    yield from tied
    yield from _spread([_Overlaps(group, original) for group in groups.values()])
    random = Random(0)
    for _ in range(_N_MIXED if tied else 0):
        yield "".join(random.choices(tied, k=random.randrange(2, 6)))


class _Overlaps:
    """Texts of two pieces that overlap in a symbol: `abc` for `ab` and `bc`."""

    def __init__(self, pieces: Sequence[str], original: Original) -> None:
        self.ends: defaultdict[str, list[str]] = defaultdict(list)
        self.starts: defaultdict[str, list[str]] = defaultdict(list)
        for piece in pieces:
            for middle in range(1, len(piece)):
                left, right = piece[:middle], piece[middle:]
                if all(len(part) == 1 or part in original.order for part in (left, right)):
                    self.ends[right].append(piece)
                    self.starts[left].append(right)

    def __len__(self) -> int:
        return sum(len(self.ends[symbol]) * len(rights) for symbol, rights in self.starts.items())

    def __iter__(self) -> Iterator[str]:
        for symbol, rights in self.starts.items():
            for piece in self.ends[symbol]:
                yield from (piece + right for right in rights)


def _spread(groups: Sequence[_Overlaps]) -> Iterator[str]:
    """All texts, or an evenly spaced selection if there are more than `_MAX_OVERLAPS`."""
    step = 1 + sum(map(len, groups)) // _MAX_OVERLAPS
    return (text for number, text in enumerate(chain.from_iterable(groups)) if number % step == 0)
