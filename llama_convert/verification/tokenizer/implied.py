"""The original that a tokenizer.json implies, where there is none.

All Llamas begin alike, so the first ids are known; further ids rise with the merges.  Llama 3's ids are
tiktoken's ranks, which is all that tiktoken needs; sentencepiece cannot be run without its file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from llama_convert.errors import InputError
from llama_convert.findings import Finding
from llama_convert.verification.tokenizer.merges import UNORDERED
from llama_convert.verification.tokenizer.original import (
    BYTE_PIECES,
    LETTERS,
    N_SPECIAL,
    Original,
    tiktoken_original,
)
from llama_convert.verification.tokenizer.wording import Wrong, group
from llama_convert.verification.tokenizer.written import Written

_FIRST_PIECES = ["<unk>", "<s>", "</s>", *BYTE_PIECES]
_MISPLACED = 16
"""Bytes out of order that are a fault; more are another order, which any tokenizer but Llama 3's may have."""


def numbering(ids: Mapping[str, int]) -> Iterator[Finding]:
    """Whether each id from 0 on is some one token's."""
    held = Counter(ids.values())
    twice = [Wrong(f"{name!r} (id {number})") for name, number in ids.items() if held[number] > 1]
    gaps = [Wrong(str(number)) for number in range(len(ids)) if number not in held]
    yield from group("TOKEN_TWICE", "token", "with an id that another has", twice)
    yield from group("TOKEN_GAP", "id", "without a token", gaps)


def implied(written: Written) -> Original:
    """The tokenizer that `written` should be, by its own tokens, ids and merges; its ids are numbered.

    Raises:
        InputError: it is no Llama's.
    """
    names = sorted(written.ids, key=written.ids.__getitem__)
    try:
        if "<s>" in written.vocab and "<|begin_of_text|>" not in written.ids:
            return _implied_pieces(_begun(names, _FIRST_PIECES), written)
        return _implied_ranks(names, written)
    except (KeyError, ValueError) as error:
        message = f"has the tokens of no Llama, all bytes and what they make: {error}"
        raise InputError("TOKENIZER_FORM", message, file=written.path) from None


def _implied_pieces(names: list[str], written: Written) -> Original:
    made = {left + right for left, right in written.merges}
    joined = (name for name in names[len(_FIRST_PIECES) :] if name in made or name not in written.added)
    return Original(
        source="its own ids and merges",
        kind="sentencepiece",
        names=names,
        vocab_size=len(names),
        special=range(3),
        bos=1,
        order={name: None if UNORDERED.fullmatch(name) else written.ids[name] for name in joined},
    )


def _implied_ranks(names: list[str], written: Written) -> Original:
    n_base = len(written.vocab.keys() - written.added.keys())
    orders = (_begun(names, order) for order in (LETTERS, sorted(LETTERS)))
    moves = [(sum(a != b for a, b in zip(names, order, strict=True)), order) for order in orders]
    changes, nearest = min(moves)
    values = {letter: byte for byte, letter in enumerate(LETTERS)}
    ordered = (nearest if changes <= _MISPLACED else names)[:n_base]
    tokens = [bytes(values[letter] for letter in name) for name in ordered]
    special = range(n_base, min(len(names), n_base + N_SPECIAL))
    original = tiktoken_original(tokens, "its ids taken for ranks")
    return replace(original, vocab_size=len(names), special=special)


def _begun(names: Sequence[str], first: Sequence[str]) -> list[str]:
    """The names with those of `first` in front; each changes places with the name that has its id.

    Raises:
        KeyError: one of `first` is not there.
    """
    ordered = list(names)
    places = {name: number for number, name in enumerate(names)}
    for number, name in enumerate(first):
        place, displaced = places[name], ordered[number]
        ordered[number], ordered[place] = name, displaced
        places[name], places[displaced] = number, place
    return ordered
