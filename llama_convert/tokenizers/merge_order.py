"""Order of merges for which the library `tokenizers` produces the same ids as sentencepiece.

Both libraries merge one pair of adjacent symbols at a time.  sentencepiece merges the pair whose result has
the highest score; of equal scores, the leftmost.  `tokenizers` merges the pair that is first in its list of
merges, and the leftmost only among occurrences of the same pair.  If all scores are distinct, merges sorted
by descending score produce the same ids.  Among pieces with equal scores, sentencepiece proceeds from left to
right: a merge must precede another one if it would remove or change the symbol on the left of the other.  A
list that satisfies all these constraints produces the same ids for every text.  If they form a cycle, there
may be no such list.

The merges of sentencepiece within a piece do not depend on the text around it.  So of the ways to split a
piece in two, sentencepiece uses only one; the others can be omitted.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from math import copysign

from llama_convert.tokenizers.bpe import Pair, Priority, merge, splits

SPACE = "▁"
"""U+2581, which represents a space in pieces."""

_MAX_TEXTS = 5000
"""Texts to compare the libraries with."""
_MAX_EXTENSIONS = 3
"""Symbols to add at each end of such a text."""
_MAX_RUN = 100
"""Characters of a run of spaces."""
_MAX_CONSTRAINTS = 5_000_000
"""Constraints on the order of pieces with equal scores; no known vocabulary has more than 200,000."""

Symbols = tuple[str, ...]

_TINY = 5e-324
"""Less than any positive float32.  The first merge of a trained model has the score -0.0, which sentencepiece
(0.2.3, `bpe_model.cc: SymbolPairComparator`) sorts below 0.0."""

MergesOfPieces = Mapping[str, Sequence[Pair]]
"""The merges that result in each piece; pieces and merges in order."""


@dataclass(frozen=True)
class MergeOrder:
    """The merges of a tokenizer.json."""

    merges: list[Pair]
    """In descending priority."""
    differing_text: str | None
    """A text for which `tokenizers` has other ids than sentencepiece; None if none was found."""


def order_merges(scores: Mapping[str, float], user_defined: Sequence[str] = ()) -> MergeOrder:
    """Order the merges of a sentencepiece BPE model.

    The default order is that of the published files: by descending score, then by the ids of the result, the
    left and the right part.  The order of pieces with equal scores is changed only if the default is wrong.

    Args:
        scores: scores of the normal pieces, in the order of their ids.
        user_defined: pieces that are never split or merged.
    """
    scores = {piece: score or copysign(_TINY, score) for piece, score in scores.items()}
    model = _Model(scores, user_defined)
    groups: defaultdict[float, list[str]] = defaultdict(list)
    for whole in sorted(scores, key=lambda piece: -scores[piece]):
        if len(whole) > 1:
            groups[scores[whole]].append(whole)
    for score, wholes in groups.items():
        model.set_merges(score, {whole: model.splits[whole] for whole in wholes})
    suspects = [model.suspects()]
    for score, wholes in groups.items():
        if len(wholes) == 1:
            continue
        ties = _Ties(model, score, wholes)
        if ties.is_right(model.splits):
            continue
        merges_of = ties.order()
        if any(True for _ in ties.violated(merges_of)):
            # No order is right.  After a wrong merge, other merges that result in a piece help.
            merges_of = {
                whole: list(dict.fromkeys([*pairs, *model.splits[whole]]))
                for whole, pairs in merges_of.items()
            }
            suspects.append(text for symbols in ties.violated(merges_of) for text in model.extended(symbols))
        model.set_merges(score, merges_of)
    texts = chain.from_iterable(islice(each, _MAX_TEXTS) for each in suspects)
    differing = model.first_difference(texts)
    merges = list(chain.from_iterable(model.merges.values()))
    return MergeOrder(merges, None if differing is None else model.as_input(differing))


class _Model:
    """A vocabulary, and the pieces of a text in both libraries."""

    def __init__(self, scores: Mapping[str, float], user_defined: Sequence[str]) -> None:
        ids = {piece: number for number, piece in enumerate(scores)}
        self.scores = scores
        self.splits: MergesOfPieces = {
            whole: sorted(splits(scores, whole), key=lambda pair: (ids[pair[0]], ids[pair[1]]))
            for whole in scores
        }
        self.merges: dict[float, dict[Pair, int]] = {}
        """Merges and their ranks, by the score of their results."""
        self.last: dict[str, Pair] = {}
        """The merge of sentencepiece that results in each piece, for pieces that it can produce."""
        self.tied: dict[str, tuple[Pair, ...]] = {}
        """Merges of sentencepiece within each piece whose score is not unique."""
        self.irregular: list[str] = []
        """Pieces that sentencepiece cannot produce, or produces from symbols that are not pieces."""
        self._find_merges()
        self._user_defined = sorted(user_defined, key=len, reverse=True)
        self._user_defined_pattern = re.compile(
            f"({'|'.join(map(re.escape, self._user_defined))})" if user_defined else r"(?!)"
        )

    @cached_property
    def left_of(self) -> dict[str, list[str]]:
        """Left parts of pieces by their right part."""
        return self._parts(1)

    @cached_property
    def right_of(self) -> dict[str, list[str]]:
        """Right parts of pieces by their left part."""
        return self._parts(0)

    def _parts(self, known: int) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for pair in chain.from_iterable(self.splits.values()):
            found.setdefault(pair[known], []).append(pair[1 - known])
        return found

    def set_merges(self, score: float, merges_of: MergesOfPieces) -> None:
        """Rank the merges of all pieces with this score."""
        pairs = chain.from_iterable(merges_of.values())
        self.merges[score] = {pair: rank for rank, pair in enumerate(pairs)}

    def _find_merges(self) -> None:
        """Compute the merges of sentencepiece within each piece."""
        scores = Counter(self.scores[whole] for whole in self.splits if len(whole) > 1)
        for whole in self.scores:
            pairs, symbols = merge(whole, self._by_score)
            if len(symbols) > 1 or any(pair not in self.splits["".join(pair)] for pair in pairs):
                self.irregular.append(whole)
            if len(symbols) == 1 and pairs:
                self.last[whole] = pairs[-1]
                tied = tuple(pair for pair in pairs if scores[self.score_of(pair)] > 1)
                if tied:
                    self.tied[whole] = tied

    @cached_property
    def late(self) -> dict[float, list[tuple[str, str, Pair]]]:
        """Merges whose right part has a tied merge with a lower score, by it: left, right, tied merge."""
        found: dict[float, list[tuple[str, str, Pair]]] = {}
        for left, right in chain.from_iterable(self.splits.values()):
            for pair in self.tied.get(right, ()):
                if self.score_of(pair) < self.scores[left + right]:
                    found.setdefault(self.score_of(pair), []).append((left, right, pair))
        return found

    def score_of(self, pair: Pair) -> float:
        """Score of the result of a merge."""
        return self.scores[pair[0] + pair[1]]

    def sentencepiece(self, text: str) -> list[str]:
        """Pieces of a text in sentencepiece; spaces are written as U+2581."""
        return self._pieces(text, self._by_score, ())

    def tokenizers(self, text: str) -> list[str]:
        """Pieces of a text in `tokenizers`; with user-defined pieces, `ignore_merges` is set."""
        return self._pieces(text, self._by_rank, self.scores if self._user_defined else ())

    def _pieces(self, text: str, priority: Priority, kept: Collection[str]) -> list[str]:
        pieces: list[str] = []
        for number, part in enumerate(self._user_defined_pattern.split(text)):  # odd: user-defined
            pieces += [part] if number % 2 or part in kept else merge(part, priority)[1]
        return pieces

    def _by_score(self, left: str, right: str) -> float | None:
        score = self.scores.get(left + right)
        return None if score is None else -score

    def _by_rank(self, left: str, right: str) -> tuple[float, int] | None:
        score = self.scores.get(left + right)
        rank = None if score is None else self.merges[score].get((left, right))
        return None if score is None or rank is None else (-score, rank)

    def first_difference(self, texts: Iterable[str]) -> str | None:
        """The first text with different pieces in the two libraries."""
        return next((text for text in texts if self.sentencepiece(text) != self.tokenizers(text)), None)

    def extended(self, symbols: Sequence[str]) -> Iterator[str]:
        """The text of some symbols, alone and with symbols that can be merged with those at its ends."""
        text = "".join(symbols)
        yield text
        for end in (symbols[-1], "".join(symbols[-2:])):
            yield from (text + right for right in self.right_of.get(end, ())[:_MAX_EXTENSIONS])
        for end in (symbols[0], "".join(symbols[:2])):
            yield from (left + text for left in self.left_of.get(end, ())[:_MAX_EXTENSIONS])

    def suspects(self) -> Iterator[str]:
        """Texts of pieces that perhaps only one of the libraries can produce."""
        border = next(iter(self._user_defined), "")
        return (border + piece + border for piece in self.irregular)

    def as_input(self, symbols: str) -> str:
        """An input text with these symbols whose pieces also differ with the initial space."""
        known = set(chain.from_iterable([*self.scores, *self._user_defined]))
        border = next(chr(code) for code in range(ord("\n"), 0x110000) if chr(code) not in known)
        texts = (symbols.removeprefix(SPACE), symbols, border + symbols)
        return next(
            (text.replace(SPACE, " ") for text in texts if self.first_difference([SPACE + text])), symbols
        )


class _Ties:
    """Pieces with equal scores, and constraints on the order of their merges."""

    def __init__(self, model: _Model, score: float, wholes: Sequence[str]) -> None:
        self.model, self.score, self.wholes = model, score, wholes

    def order(self) -> MergesOfPieces:
        """The merge of sentencepiece for each piece, in the order that satisfies the most constraints."""
        model = self.model
        used = {
            whole: [pair for pair in model.splits[whole] if model.last.get(whole) == pair]
            for whole in self.wholes
        }
        merges_of = {whole: pairs for whole, pairs in used.items() if pairs}
        after: dict[str, set[str]] = {whole: set() for whole in merges_of}
        for first, second, _ in self._constraints(merges_of):
            if "".join(first) in after:
                after["".join(first)].add("".join(second))
        return {whole: merges_of[whole] for whole in topological_order(after)}

    def violated(self, merges_of: MergesOfPieces) -> Iterator[Symbols]:
        """Adjacent symbols for each constraint that an order violates."""
        rank = {whole: number for number, whole in enumerate(merges_of)}
        return (
            symbols
            for first, second, symbols in self._constraints(merges_of)
            if rank.get("".join(first), -1) >= rank["".join(second)]
        )

    def is_right(self, splits: MergesOfPieces) -> bool:
        """Whether the default order produces the same ids.

        It does if it satisfies all constraints, or if those that it violates are of runs of one character
        (the runs of spaces of Llama 2) and such runs have the same pieces in both libraries.
        """
        violated = self.violated({whole: splits[whole] for whole in self.wholes})
        runs = ["".join(symbols) for symbols in islice(violated, _MAX_TEXTS + 1)]
        if len(runs) > _MAX_TEXTS or any(len({*text}) > 1 or len(text) > _MAX_RUN for text in runs):
            return False
        longest = 2 * max(map(len, runs), default=0)
        characters = {text[0] for text in runs}
        texts = (character * length for character in characters for length in range(1, longest))
        return self.model.first_difference(texts) is None

    def _constraints(self, merges_of: MergesOfPieces) -> Iterator[tuple[Pair, Pair, Symbols]]:
        """Constraints: the first merge, the merge after it, and adjacent symbols for which this matters."""
        return islice(chain(self._left_symbols(merges_of), self._left_neighbors(merges_of)), _MAX_CONSTRAINTS)

    def _left_symbols(self, merges_of: MergesOfPieces) -> Iterator[tuple[Pair, Pair, Symbols]]:
        """Constraints for merges that lead to a merge of the left symbol of another merge."""
        seconds: dict[str, list[Pair]] = {}
        for second in chain.from_iterable(merges_of.values()):
            seconds.setdefault(second[0], []).append(second)
        for symbol, merges in seconds.items():
            for first, left in self._taking(symbol).items():
                for second in merges:
                    if first != second:
                        yield first, second, (left, *second)

    def _left_neighbors(self, merges_of: MergesOfPieces) -> Iterator[tuple[Pair, Pair, Symbols]]:
        """Constraints for merges that change a symbol, before merges of what can be merged with it."""
        for left, right, second in self.model.late.get(self.score, ()):
            for first, symbols in self._changing(left).items():
                if first != second and "".join(second) in merges_of:
                    yield first, second, (*symbols, right)

    def _taking(self, symbol: str) -> dict[Pair, str]:
        """Merges that lead to a merge of a symbol with the symbol on its left, which is the value."""
        model = self.model
        found: dict[Pair, str] = {}
        for left in model.left_of.get(symbol, ()):
            pair = (left, symbol)
            if model.score_of(pair) >= self.score and model.last.get(left + symbol) == pair:
                for first in (pair, *model.tied.get(left, ())):
                    if model.score_of(first) == self.score:
                        found.setdefault(first, left)
        return found

    def _changing(self, symbol: str) -> dict[Pair, Symbols]:
        """Merges that lead to a symbol, or to its merge with the symbol on its left."""
        own = [pair for pair in self.model.tied.get(symbol, ()) if self.model.score_of(pair) == self.score]
        taking = {first: (left, symbol) for first, left in self._taking(symbol).items()}
        return taking | dict.fromkeys(own, (symbol,))


def topological_order(after: Mapping[str, Collection[str]]) -> list[str]:
    """Keys in an order in which each precedes those in its value, if there is one.

    In a cycle, the next key is the one with the maximum number of keys after it minus keys before it (Eades,
    Lin and Smyth, "A fast and effective heuristic for the feedback arc set problem", 1993).
    """
    before: dict[str, list[str]] = {key: [] for key in after}
    for key, others in after.items():
        for other in others:
            before[other].append(key)
    incoming = {key: len(others) for key, others in before.items()}
    balance = {key: len(before[key]) - len(after[key]) for key in after}
    number = {key: position for position, key in enumerate(after)}

    def urgency(key: str) -> tuple[bool, int, int]:
        return (incoming[key] > 0, balance[key] if incoming[key] else 0, number[key])

    queue = [(urgency(key), key) for key in after]
    heapq.heapify(queue)
    order: dict[str, None] = {}
    while queue:
        seen, key = heapq.heappop(queue)
        if key in order or seen != urgency(key):
            continue
        order[key] = None
        for others, change in ((after[key], -1), (before[key], 1)):
            for other in others:
                if other not in order:
                    balance[other] += change
                    incoming[other] -= change < 0
                    heapq.heappush(queue, (urgency(other), other))
    return list(order)
