"""Texts in which pieces of sentencepiece with equal scores compete for the same characters.

Of equal scores sentencepiece joins the leftmost; the library `tokenizers` has a strict order, in which the
right choice may be impossible.  A vocabulary that was extended has thousands of equal scores.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from random import Random

from llama_convert.verification.tokenizer.original import Original

_MAX_OVERLAPS = 60_000
_N_MIXED = 6_000
"""Texts of several such pieces in a row."""


def tied_pieces(original: Original) -> dict[float, list[str]]:
    """Pieces of more than one character that share their score with others, by what orders them."""
    ranks = {name: rank for name, rank in original.order.items() if rank is not None and len(name) > 1}
    shared = Counter(ranks.values())
    groups: defaultdict[float, list[str]] = defaultdict(list)
    for name, rank in ranks.items():
        if shared[rank] > 1:
            groups[rank].append(name)
    return groups


def competing(original: Original) -> Iterator[str]:
    """Texts for all tied pieces: each alone, overlapping with others, and mixed; the same ones each time."""
    groups = tied_pieces(original)
    tied = list(chain.from_iterable(groups.values()))
    yield from tied
    yield from _spread([_Overlaps(group, original) for group in groups.values()])
    random = Random(0)
    for _ in range(_N_MIXED if tied else 0):
        yield "".join(random.choices(tied, k=random.randrange(2, 6)))


class _Overlaps:
    """Texts of two pieces that overlap in a symbol: `abc` of `ab` and `bc`."""

    def __init__(self, pieces: Sequence[str], original: Original) -> None:
        self.ends: defaultdict[str, list[str]] = defaultdict(list)
        self.starts: defaultdict[str, list[str]] = defaultdict(list)
        for piece in pieces:
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
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
    """All texts; of too many, some from everywhere."""
    step = 1 + sum(map(len, groups)) // _MAX_OVERLAPS
    return (text for number, text in enumerate(chain.from_iterable(groups)) if number % step == 0)
