"""The original implied by a tokenizer.json, for folders without a `tokenizer.model`.

The first ids of all Llama tokenizers are known, and the other ids follow the order of merges.  Llama 3's ids
are tiktoken's ranks, with which tiktoken can run; sentencepiece cannot run without its file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from llama_convert.errors import InputError
from llama_convert.findings import Finding
from llama_convert.verification.tokenizer.grouping import Problem, group
from llama_convert.verification.tokenizer.merges import UNORDERED
from llama_convert.verification.tokenizer.tokenizer_json import TokenizerJson
from llama_convert.verification.tokenizer.tokenizer_model import (
    BYTE_PIECES,
    LETTERS,
    N_SPECIAL,
    Original,
    tiktoken_original,
)

_FIRST_PIECES = ["<unk>", "<s>", "</s>", *BYTE_PIECES]
_MISPLACED = 16
"""Max number of misplaced bytes that is an error; more are another order, as other BPE tokenizers have."""


def numbering(ids: Mapping[str, int]) -> Iterator[Finding]:
    """Findings if ids are not 0, 1, 2, ... with one token each."""
    counts = Counter(ids.values())
    twice = [Problem(f"{name!r} (id {number})") for name, number in ids.items() if counts[number] > 1]
    gaps = [Problem(str(number)) for number in range(len(ids)) if number not in counts]
    yield from group("TOKEN_DUPLICATE", "token", "with the id of another token", twice)
    yield from group("TOKEN_GAP", "id", "without a token", gaps)


def implied_original(tokenizer: TokenizerJson) -> Original:
    """The original implied by the tokens, ids and merges of a tokenizer.json.

    Args:
        tokenizer: the tokenizer.json; its ids pass `numbering`.

    Raises:
        InputError: it is not a Llama tokenizer.
    """
    names = sorted(tokenizer.ids, key=tokenizer.ids.__getitem__)
    try:
        if "<s>" in tokenizer.vocab and "<|begin_of_text|>" not in tokenizer.ids:
            return _implied_pieces(_with_first(names, _FIRST_PIECES), tokenizer)
        return _implied_ranks(names, tokenizer)
    except (KeyError, ValueError) as error:
        message = f"Not a Llama tokenizer: a byte, or a byte that a token consists of, is missing ({error})."
        raise InputError("TOKENIZER_UNSUPPORTED", message, file=tokenizer.path) from None


def _implied_pieces(names: list[str], tokenizer: TokenizerJson) -> Original:
    made = {left + right for left, right in tokenizer.merges}
    joined = (name for name in names[len(_FIRST_PIECES) :] if name in made or name not in tokenizer.added)
    return Original(
        source="its own ids and merges",
        kind="sentencepiece",
        names=names,
        vocab_size=len(names),
        special=range(3),
        bos=1,
        order={name: None if UNORDERED.fullmatch(name) else tokenizer.ids[name] for name in joined},
    )


def _implied_ranks(names: list[str], tokenizer: TokenizerJson) -> Original:
    n_base = len(tokenizer.vocab.keys() - tokenizer.added.keys())
    orders = (_with_first(names, order) for order in (LETTERS, sorted(LETTERS)))
    moves = [(sum(a != b for a, b in zip(names, order, strict=True)), order) for order in orders]
    changes, nearest = min(moves)
    values = {letter: byte for byte, letter in enumerate(LETTERS)}
    ordered = (nearest if changes <= _MISPLACED else names)[:n_base]
    tokens = [bytes(values[letter] for letter in name) for name in ordered]
    special = range(n_base, min(len(names), n_base + N_SPECIAL))
    original = tiktoken_original(tokens, "its own ids")
    return replace(original, vocab_size=len(names), special=special)


def _with_first(names: Sequence[str], first: Sequence[str]) -> list[str]:
    """The names with those of `first` in front; each is swapped with the name at its place.

    Raises:
        KeyError: a name of `first` is missing.
    """
    ordered = list(names)
    places = {name: number for number, name in enumerate(names)}
    for number, name in enumerate(first):
        place, displaced = places[name], ordered[number]
        ordered[number], ordered[place] = name, displaced
        places[name], places[displaced] = number, place
    return ordered
