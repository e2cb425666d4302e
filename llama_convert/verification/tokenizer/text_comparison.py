"""Runs two tokenizers on the same texts and compares ids and decoded texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, islice

from llama_convert.findings import Finding, severity_of
from llama_convert.verification.tokenizer.corpus import CORPUS
from llama_convert.verification.tokenizer.grouping import Problem, group, quoted, short
from llama_convert.verification.tokenizer.merges import texts_of_tied_pieces
from llama_convert.verification.tokenizer.tokenizer_json import TokenizerJson, attempt
from llama_convert.verification.tokenizer.tokenizer_model import (
    BYTE_PIECES,
    SPACE,
    Ids,
    Original,
    RunnableOriginal,
)

_BATCH_SIZE = 200
_MAX_PROBLEMS = 100


class TextComparison:
    """Compares how an original and a tokenizer.json normalize, split, encode and decode texts."""

    def __init__(self, original: Original, tokenizer: TokenizerJson) -> None:
        """Load tokenizer.json with the library `tokenizers`.

        Raises:
            InputError: the library rejects it.
        """
        self.original, self.tokenizer, self.library = original, tokenizer, tokenizer.load()
        self.n_texts = 0
        """Number of texts whose ids or decoded text were compared."""
        self.names = {number: name for name, number in tokenizer.ids.items()}
        self._lengths: defaultdict[str, set[int]] = defaultdict(set)
        for name in filter(None, tokenizer.added):
            self._lengths[name[0]].add(len(name))

    def findings(self, *, guard: bool) -> Iterator[Finding]:
        """All differences; with `guard` the chat template adds the BOS, so that its absence is a warning."""
        yield from self._encoded()
        yield from self._tied()
        yield from self._bos(guard)
        yield from self._decoded()

    def _encoded(self) -> Iterator[Finding]:
        """Texts with different ids; one finding for each likely cause."""
        special = [self.names[number] for number in sorted(self.original.special) if number in self.names]
        causes: defaultdict[str, list[Problem]] = defaultdict(list)
        for text in (*CORPUS, *special, *self.original.texts):
            expected = self._expected(text)
            if expected is None:
                continue
            self.n_texts += 1
            found = self._encode(text)
            if found != expected:
                cause = self._cause(expected, found)
                causes[cause].append(_different_ids(text, expected, found))
        what = f"of {self.n_texts:,} encoded to different ids"
        for cause, problems in causes.items():
            yield from group("TOKENIZER_IDS", "text", what, problems, hint=cause)

    def _tied(self) -> Iterator[Finding]:
        """Texts in which pieces with equal scores compete, in batches separated by an unknown character."""
        if self.original.kind != "sentencepiece" or not isinstance(self.original, RunnableOriginal):
            return
        known = set(chain.from_iterable(self.original.names))
        border = next(chr(code) for code in range(ord("\n"), 0x110000) if chr(code) not in known)
        texts = texts_of_tied_pieces(self.original)
        problems: list[Problem] = []
        while len(problems) < _MAX_PROBLEMS and (batch := list(islice(texts, _BATCH_SIZE))):
            batch = [border + text.replace(SPACE, " ") for text in batch]
            self.n_texts += len(batch)
            if self._difference("".join(batch)):
                problems += filter(None, map(self._difference, batch))
        what = f"of {self.n_texts:,} encoded to different ids because pieces share a score"
        hint = "sentencepiece joins the leftmost of equal scores. LlamaTokenizer of transformers 4 does, too."
        yield from group("TOKENIZER_IDS", "text", what, problems, hint=hint)

    def _difference(self, text: str) -> Problem | None:
        """The difference in the ids of a text; None if there is none or the correct ids are unknown."""
        expected, found = self._expected(text), self._encode(text)
        return None if expected in (None, found) else _different_ids(text, expected or [], found)

    def _expected(self, text: str) -> Ids | None:
        """The original's ids, and those of the special tokens that transformers finds in the text.

        None if they are undefined: versions of transformers differ in whether a space is added after a
        special token of the sentencepiece kind.
        """
        ids = self.tokenizer.ids
        marks = self._marks(text)
        if marks and self.original.kind == "sentencepiece":
            return [ids[text]] if marks[0][1] == text else None
        if not isinstance(self.original, RunnableOriginal):
            return None
        expected: Ids = []
        position = 0
        for start, name in marks:
            expected += [*self.original.encode(text[position:start]), ids[name]]
            position = start + len(name)
        return expected + self.original.encode(text[position:])

    def _marks(self, text: str) -> list[tuple[int, str]]:
        """Positions and names of the added tokens in a text; the longest one at each position.

        The time does not depend on the number of added tokens, unlike that of a regular expression of all.
        """
        marks, end = [], 0
        for start, letter in enumerate(text):
            if start < end or letter not in self._lengths:
                continue
            candidates = (text[start : start + n] for n in sorted(self._lengths[letter], reverse=True))
            if name := next((each for each in candidates if each in self.tokenizer.added), None):
                marks.append((start, name))
                end = start + len(name)
        return marks

    def _encode(self, text: str, *, add_bos: bool = False) -> Ids:
        return attempt(lambda: self.library.encode(text, add_special_tokens=add_bos).ids) or []

    def _decode(self, ids: Ids) -> str:
        return attempt(lambda: self.library.decode(ids, skip_special_tokens=False)) or ""

    def _cause(self, expected: Ids, found: Ids) -> str:
        """The likely reason for different ids, derived from the texts that both lists of ids spell."""
        names = self.original.names
        want = [names[number] if number < len(names) else self.names[number] for number in expected]
        got = [self.names.get(number, "") for number in found]
        spelled, instead = "".join(want), "".join(got)
        causes = (
            (want == got, "Tokens have different ids."),
            (not self.tokenizer.ids.keys() >= set(want), "Tokens are missing or have different names."),
            (not got, "The library `tokenizers` returns no tokens."),
            (not set(BYTE_PIECES).isdisjoint(want), "The byte fallback is missing."),
            (SPACE + instead == spelled, "The dummy prefix space is missing."),
            (spelled != instead, "The normalizer changes the text."),
            (len(want) == 1, "A single token is split: merges are wrong, or ignore_merges is missing."),
        )
        other = "The pre-tokenizer splits the text at other places, or merges are wrong."
        return next((cause for holds, cause in causes if holds), other)

    def _bos(self, guard: bool) -> Iterator[Finding]:
        """A finding if tokenizer.json adds anything but one BOS before a text."""
        bos = self.original.bos
        encoded = [(text, self._encode(text), self._encode(text, add_bos=True)) for text in CORPUS]
        problems = [
            _different_ids(text, [bos, *ids], with_bos)
            for text, ids, with_bos in encoded
            if with_bos != [bos, *ids]
        ]
        absent = all(ids == with_bos for _, ids, with_bos in encoded)
        hint = f"The post-processor adds {'no BOS' if absent else 'other tokens'}."
        if absent and guard:
            hint = "Official tokenizers of Llama Guard have no BOS; the chat template adds it."
        what = f"of {len(CORPUS)} encoded without exactly one BOS (id {bos})"
        severity = severity_of(warning=absent and guard)
        yield from group("TOKENIZER_BOS", "text", what, problems, hint=hint, severity=severity)

    def _decoded(self) -> Iterator[Finding]:
        """Texts that are decoded wrongly from the original's ids, or from tokenizer.json's if unknown."""
        problems = []
        for text in CORPUS:
            if isinstance(self.original, RunnableOriginal):
                ids = self.original.encode(text)
            elif self._marks(text):
                continue
            else:
                ids = self._encode(text)
                self.n_texts += 1
            expected, found = self.original.after_round_trip(text), self._decode(ids)
            if expected != found:
                problems.append(
                    Problem(quoted(expected), f"{short(ids)} as {quoted(expected)}", quoted(found))
                )
        what = f"of {len(CORPUS)} decoded to a different text"
        yield from group("TOKENIZER_DECODE", "text", what, problems)


def _different_ids(text: str, expected: Ids, found: Ids) -> Problem:
    return Problem(quoted(text), f"{quoted(text)} as {short(expected)}", short(found))
