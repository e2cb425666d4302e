"""Both tokenizers at work on the same texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, islice

from llama_convert.findings import Finding, severity_of
from llama_convert.verification.tokenizer.corpus import CORPUS
from llama_convert.verification.tokenizer.original import BYTE_PIECES, SPACE, Ids, Original, RunnableOriginal
from llama_convert.verification.tokenizer.ties import competing
from llama_convert.verification.tokenizer.wording import Wrong, group, quoted, short
from llama_convert.verification.tokenizer.written import Written, attempt

_AT_ONCE = 200
_MAX_WRONG = 100


class Running:
    """What texts show: how they are normalised, cut, begun and decoded."""

    def __init__(self, original: Original, written: Written) -> None:
        """Load the library's side.

        Raises:
            InputError: the library refuses tokenizer.json.
        """
        self.original, self.written, self.library = original, written, written.load()
        self.texts = 0
        """How many were compared, in ids or there and back."""
        self.names = {number: name for name, number in written.ids.items()}
        self._lengths: defaultdict[str, set[int]] = defaultdict(set)
        for name in filter(None, written.added):
            self._lengths[name[0]].add(len(name))

    def findings(self, *, guard: bool) -> Iterator[Finding]:
        """All that texts show; `guard` where the chat template puts the BOS."""
        yield from self._encoded()
        yield from self._tied()
        yield from self._begun(guard)
        yield from self._decoded()

    def _encoded(self) -> Iterator[Finding]:
        """Texts with other ids, those with the same likely cause in one finding."""
        special = [self.names[number] for number in sorted(self.original.special) if number in self.names]
        causes: defaultdict[str, list[Wrong]] = defaultdict(list)
        for text in (*CORPUS, *special, *self.original.texts):
            expected = self._expected(text)
            if expected is None:
                continue
            self.texts += 1
            found = self._encode(text)
            if found != expected:
                cause = self._cause(expected, found)
                causes[cause].append(_misread(text, expected, found))
        for cause, wrong in causes.items():
            yield from group("TOKENIZER_IDS", "text", f"of {self.texts:,} with other ids", wrong, hint=cause)

    def _tied(self) -> Iterator[Finding]:
        """Texts in which pieces with equal scores compete, many at a time with a character between them."""
        if self.original.kind != "sentencepiece" or not isinstance(self.original, RunnableOriginal):
            return
        known = set(chain.from_iterable(self.original.names))
        border = next(chr(code) for code in range(ord("\n"), 0x110000) if chr(code) not in known)
        texts = competing(self.original)
        wrong: list[Wrong] = []
        while len(wrong) < _MAX_WRONG and (some := list(islice(texts, _AT_ONCE))):
            some = [border + text.replace(SPACE, " ") for text in some]
            self.texts += len(some)
            if self._difference("".join(some)):
                wrong += filter(None, map(self._difference, some))
        said = f"of {self.texts:,} with other ids, because pieces share a score"
        hint = "sentencepiece joins the leftmost of equal scores. LlamaTokenizer of transformers 4 does, too."
        yield from group("TOKENIZER_IDS", "text", said, wrong, hint=hint)

    def _difference(self, text: str) -> Wrong | None:
        """What is wrong with the ids of a text, if the right ones are known."""
        expected, found = self._expected(text), self._encode(text)
        return None if expected in (None, found) else _misread(text, expected or [], found)

    def _expected(self, text: str) -> Ids | None:
        """The original's ids, with those of the special tokens that transformers cuts out of a text.

        None where no one knows: for text around a special token of sentencepiece's it is for transformers
        to say whether a space is put before what follows, and its versions differ.
        """
        ids = self.written.ids
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
        """Where the added tokens in a text are, the longest of those that begin at one place.

        The time does not grow with the number of added tokens, as that of one regular expression would.
        """
        marks, end = [], 0
        for start, letter in enumerate(text):
            if start < end or letter not in self._lengths:
                continue
            candidates = (text[start : start + n] for n in sorted(self._lengths[letter], reverse=True))
            if name := next((each for each in candidates if each in self.written.added), None):
                marks.append((start, name))
                end = start + len(name)
        return marks

    def _encode(self, text: str, *, begin: bool = False) -> Ids:
        return attempt(lambda: self.library.encode(text, add_special_tokens=begin).ids) or []

    def _decode(self, ids: Ids) -> str:
        return attempt(lambda: self.library.decode(ids, skip_special_tokens=False)) or ""

    def _cause(self, expected: Ids, found: Ids) -> str:
        """The likeliest reason for other ids, from what both sides spell."""
        names = self.original.names
        want = [names[number] if number < len(names) else self.names[number] for number in expected]
        got = [self.names.get(number, "") for number in found]
        spelled, instead = "".join(want), "".join(got)
        causes = (
            (want == got, "tokens have other ids"),
            (not self.written.ids.keys() >= set(want), "tokens are missing or have other names"),
            (not got, "the library finds no tokens at all"),
            (not set(BYTE_PIECES).isdisjoint(want), "the byte fallback is lost"),
            (SPACE + instead == spelled, "the dummy prefix space is missing"),
            (spelled != instead, "the normalizer rewrites the text"),
            (len(want) == 1, "a word that is a token is cut: merges are wrong, or ignore_merges is lost"),
        )
        other = "the pre-tokenizer cuts the text elsewhere, or merges are wrong"
        return next((cause for holds, cause in causes if holds), other)

    def _begun(self, guard: bool) -> Iterator[Finding]:
        """Whether the BOS, and nothing else, comes before every text."""
        bos = self.original.bos
        each = [(text, self._encode(text), self._encode(text, begin=True)) for text in CORPUS]
        wrong = [_misread(text, [bos, *ids], begun) for text, ids, begun in each if begun != [bos, *ids]]
        absent = all(ids == begun for _, ids, begun in each)
        hint = f"the post-processor puts {'no BOS there' if absent else 'other tokens there'}"
        if absent and guard:
            hint = "Published tokenizers of Llama Guard are so; the chat template puts it there."
        said = f"of {len(CORPUS)} not begun with the BOS alone, id {bos}"
        yield from group(
            "TOKENIZER_BOS", "text", said, wrong, hint=hint, severity=severity_of(warning=absent and guard)
        )

    def _decoded(self) -> Iterator[Finding]:
        """Whether each text is the same there and back, the original's ids taken where they are known."""
        wrong = []
        for text in CORPUS:
            if isinstance(self.original, RunnableOriginal):
                ids = self.original.encode(text)
            elif self._marks(text):
                continue
            else:
                ids = self._encode(text)
                self.texts += 1
            expected, found = self.original.kept(text), self._decode(ids)
            if expected != found:
                said = f"{short(ids)} as {quoted(expected)}"
                wrong.append(Wrong(quoted(expected), said, quoted(found)))
        yield from group("TOKENIZER_DECODE", "text", f"of {len(CORPUS)} decoded to another", wrong)


def _misread(text: str, expected: Ids, found: Ids) -> Wrong:
    return Wrong(quoted(text), f"{quoted(text)} as {short(expected)}", short(found))
