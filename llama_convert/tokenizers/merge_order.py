"""The order of merges with which the library `tokenizers` gives the ids of sentencepiece.

Both libraries join one pair of adjacent symbols at a time.  sentencepiece joins the pair whose whole has the
highest score; of equal scores, the leftmost.  `tokenizers` joins the pair that comes first in its list of
merges, and the leftmost only among occurrences of the same pair.  Where all scores are distinct, a list by
falling score gives the same ids.  Where pieces share a score, sentencepiece works from left to right: a merge
must come before another one if it would take away or change what is on the left of the other.  A list that
meets all these constraints gives the same ids for every text.  Where they form a cycle, there may be none.

What sentencepiece joins within a piece does not depend on the text around it.  So of the ways to split a
piece in two, sentencepiece only ever uses one; the others can be left out.
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

from llama_convert.tokenizers.bpe import Pair, Priority, join, splits

SPACE = "▁"
"""U+2581, which stands for a space within pieces."""

_MAX_TEXTS = 5000
"""Texts on which an order of merges is tried."""
_MAX_LONGER = 3
"""Symbols that are put at either end of each such text."""
_MAX_RUN = 100
"""Characters of a run of spaces."""
_MAX_CONSTRAINTS = 5_000_000
"""Constraints on the order of pieces with one score; the largest known vocabulary has 200,000."""

Symbols = tuple[str, ...]

_TINY = 5e-324
"""Less than any positive float32.  The first merge of a trained model has the score -0.0, which sentencepiece
(0.2.3, `bpe_model.cc: SymbolPairComparator`) sorts below 0.0."""

Ways = Mapping[str, Sequence[Pair]]
"""The merges that make each piece; pieces and merges in the order of making."""


@dataclass(frozen=True)
class MergeOrder:
    """The merges of a tokenizer.json."""

    merges: list[Pair]
    """The pairs to join, best first."""
    differing: str | None
    """A text to which `tokenizers` gives other ids than sentencepiece; None: no such text was found."""


def order_merges(scores: Mapping[str, float], user_defined: Sequence[str] = ()) -> MergeOrder:
    """Order the merges of a sentencepiece BPE model.

    The default order is that of the published files: by falling score, then by the ids of the whole, the left
    part and the right part.  Pieces that share a score are only reordered where that order is wrong.

    Args:
        scores: of the normal pieces, in the order of their ids.
        user_defined: the pieces that are never split or joined.
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
        ways = ties.order()
        if any(True for _ in ties.violated(ways)):
            # No order is right.  After a wrong merge, other ways to make a piece help.
            ways = {
                whole: list(dict.fromkeys([*pairs, *model.splits[whole]])) for whole, pairs in ways.items()
            }
            suspects.append(text for symbols in ties.violated(ways) for text in model.longer(symbols))
        model.set_merges(score, ways)
    texts = chain.from_iterable(islice(each, _MAX_TEXTS) for each in suspects)
    differing = model.first_difference(texts)
    merges = list(chain.from_iterable(model.merges.values()))
    return MergeOrder(merges, None if differing is None else model.typed(differing))


class _Model:
    """A vocabulary, and the pieces that either library splits a text into."""

    def __init__(self, scores: Mapping[str, float], user_defined: Sequence[str]) -> None:
        ids = {piece: number for number, piece in enumerate(scores)}
        self.scores = scores
        self.splits: Ways = {
            whole: sorted(splits(scores, whole), key=lambda pair: (ids[pair[0]], ids[pair[1]]))
            for whole in scores
        }
        self.merges: dict[float, dict[Pair, int]] = {}
        """Of the pieces with each score: the merges and their ranks."""
        self.last: dict[str, Pair] = {}
        """The merge that makes each piece in sentencepiece; no piece that it never makes."""
        self.tied: dict[str, tuple[Pair, ...]] = {}
        """All merges that lead to a piece in sentencepiece and have the score of another."""
        self.unlike: list[str] = []
        """Pieces that sentencepiece never makes, or makes of symbols that are no pieces."""
        self._survey()
        self._user_defined = sorted(user_defined, key=len, reverse=True)
        self._cut = re.compile(
            f"({'|'.join(map(re.escape, self._user_defined))})" if user_defined else r"(?!)"
        )

    @cached_property
    def left_of(self) -> dict[str, list[str]]:
        """The left parts of pieces, by the right part."""
        return self._parts(1)

    @cached_property
    def right_of(self) -> dict[str, list[str]]:
        """The right parts of pieces, by the left part."""
        return self._parts(0)

    def _parts(self, known: int) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for pair in chain.from_iterable(self.splits.values()):
            found.setdefault(pair[known], []).append(pair[1 - known])
        return found

    def set_merges(self, score: float, ways: Ways) -> None:
        """Rank the merges of all pieces with this score."""
        pairs = chain.from_iterable(ways.values())
        self.merges[score] = {pair: rank for rank, pair in enumerate(pairs)}

    def _survey(self) -> None:
        """Find out what sentencepiece joins to make each piece."""
        scores = Counter(self.scores[whole] for whole in self.splits if len(whole) > 1)
        for whole in self.scores:
            pairs, symbols = join(whole, self._by_score)
            if len(symbols) > 1 or any(pair not in self.splits["".join(pair)] for pair in pairs):
                self.unlike.append(whole)
            if len(symbols) == 1 and pairs:
                self.last[whole] = pairs[-1]
                tied = tuple(pair for pair in pairs if scores[self.score_of(pair)] > 1)
                if tied:
                    self.tied[whole] = tied

    @cached_property
    def late(self) -> dict[float, list[tuple[str, str, Pair]]]:
        """Merges whose right part needs a tied merge with a lower score: left, right, and that merge."""
        found: dict[float, list[tuple[str, str, Pair]]] = {}
        for left, right in chain.from_iterable(self.splits.values()):
            for pair in self.tied.get(right, ()):
                if self.score_of(pair) < self.scores[left + right]:
                    found.setdefault(self.score_of(pair), []).append((left, right, pair))
        return found

    def score_of(self, pair: Pair) -> float:
        """The score of the piece that a merge makes."""
        return self.scores[pair[0] + pair[1]]

    def sentencepiece(self, text: str) -> list[str]:
        """The pieces that sentencepiece splits a text into, in which U+2581 stands for a space."""
        return self._pieces(text, self._by_score, ())

    def tokenizers(self, text: str) -> list[str]:
        """The pieces that `tokenizers` splits a text into; user-defined pieces bring `ignore_merges`."""
        return self._pieces(text, self._by_rank, self.scores if self._user_defined else ())

    def _pieces(self, text: str, priority: Priority, kept: Collection[str]) -> list[str]:
        pieces: list[str] = []
        for number, part in enumerate(self._cut.split(text)):  # every other part is user-defined
            pieces += [part] if number % 2 or part in kept else join(part, priority)[1]
        return pieces

    def _by_score(self, left: str, right: str) -> float | None:
        score = self.scores.get(left + right)
        return None if score is None else -score

    def _by_rank(self, left: str, right: str) -> tuple[float, int] | None:
        score = self.scores.get(left + right)
        rank = None if score is None else self.merges[score].get((left, right))
        return None if score is None or rank is None else (-score, rank)

    def first_difference(self, texts: Iterable[str]) -> str | None:
        """The first text that the libraries split differently."""
        return next((text for text in texts if self.sentencepiece(text) != self.tokenizers(text)), None)

    def longer(self, symbols: Sequence[str]) -> Iterator[str]:
        """The text of some symbols, with and without others that can join those at its ends."""
        text = "".join(symbols)
        yield text
        for end in (symbols[-1], "".join(symbols[-2:])):
            yield from (text + right for right in self.right_of.get(end, ())[:_MAX_LONGER])
        for end in (symbols[0], "".join(symbols[:2])):
            yield from (left + text for left in self.left_of.get(end, ())[:_MAX_LONGER])

    def suspects(self) -> Iterator[str]:
        """Texts of the pieces that perhaps only one of the libraries makes."""
        border = next(iter(self._user_defined), "")
        return (border + piece + border for piece in self.unlike)

    def typed(self, symbols: str) -> str:
        """A text with these symbols that still differs after the space that is put in front of every text."""
        known = set(chain.from_iterable([*self.scores, *self._user_defined]))
        border = next(chr(code) for code in range(ord("\n"), 0x110000) if chr(code) not in known)
        texts = (symbols.removeprefix(SPACE), symbols, border + symbols)
        return next(
            (text.replace(SPACE, " ") for text in texts if self.first_difference([SPACE + text])), symbols
        )


class _Ties:
    """Pieces that share a score, and the constraints on the order of their merges."""

    def __init__(self, model: _Model, score: float, wholes: Sequence[str]) -> None:
        self.model, self.score, self.wholes = model, score, wholes

    def order(self) -> Ways:
        """For each piece the one merge that sentencepiece makes, in the best order."""
        model = self.model
        made = {
            whole: [pair for pair in model.splits[whole] if model.last.get(whole) == pair]
            for whole in self.wholes
        }
        ways = {whole: pairs for whole, pairs in made.items() if pairs}
        after: dict[str, set[str]] = {whole: set() for whole in ways}
        for first, second, _ in self._constraints(ways):
            if "".join(first) in after:
                after["".join(first)].add("".join(second))
        return {whole: ways[whole] for whole in arrange(after)}

    def violated(self, ways: Ways) -> Iterator[Symbols]:
        """Symbols that show each constraint that an order does not meet."""
        rank = {whole: number for number, whole in enumerate(ways)}
        return (
            symbols
            for first, second, symbols in self._constraints(ways)
            if rank.get("".join(first), -1) >= rank["".join(second)]
        )

    def is_right(self, splits: Ways) -> bool:
        """Whether the default order meets all constraints, or is right all the same.

        The latter is only known of runs of one character, such as the runs of spaces of Llama 2.
        """
        violated = self.violated({whole: splits[whole] for whole in self.wholes})
        runs = ["".join(symbols) for symbols in islice(violated, _MAX_TEXTS + 1)]
        if len(runs) > _MAX_TEXTS or any(len({*text}) > 1 or len(text) > _MAX_RUN for text in runs):
            return False
        longest = 2 * max(map(len, runs), default=0)
        characters = {text[0] for text in runs}
        texts = (character * length for character in characters for length in range(1, longest))
        return self.model.first_difference(texts) is None

    def _constraints(self, ways: Ways) -> Iterator[tuple[Pair, Pair, Symbols]]:
        """The merge to make first, the merge to make later, adjacent symbols with which that matters."""
        return islice(chain(self._left_symbols(ways), self._left_neighbors(ways)), _MAX_CONSTRAINTS)

    def _left_symbols(self, ways: Ways) -> Iterator[tuple[Pair, Pair, Symbols]]:
        """A merge that leads to one that takes the left symbol of another comes before the other."""
        seconds: dict[str, list[Pair]] = {}
        for second in chain.from_iterable(ways.values()):
            seconds.setdefault(second[0], []).append(second)
        for symbol, merges in seconds.items():
            for first, left in self._taking(symbol).items():
                for second in merges:
                    if first != second:
                        yield first, second, (left, *second)

    def _left_neighbors(self, ways: Ways) -> Iterator[tuple[Pair, Pair, Symbols]]:
        """A merge that changes a symbol comes before one that makes what can join the symbol on its right."""
        for left, right, second in self.model.late.get(self.score, ()):
            for first, symbols in self._changing(left).items():
                if first != second and "".join(second) in ways:
                    yield first, second, (*symbols, right)

    def _taking(self, symbol: str) -> dict[Pair, str]:
        """The merges that lead to one that joins a symbol with the symbol on its left, which is the value."""
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
        """The merges that lead to a symbol, or to its joining with the one on its left."""
        own = [pair for pair in self.model.tied.get(symbol, ()) if self.model.score_of(pair) == self.score]
        taking = {first: (left, symbol) for first, left in self._taking(symbol).items()}
        return taking | dict.fromkeys(own, (symbol,))


def arrange(after: Mapping[str, Collection[str]]) -> list[str]:
    """The keys in an order in which each comes before those in its value, as far as there is one.

    In a cycle, the next key is the one with the most keys still after it, less those still before it (Eades,
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
