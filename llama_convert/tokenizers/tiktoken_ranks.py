"""Llama 3's `tokenizer.model`: a line for each token, its bytes in base64 and its rank."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.tokenizers.bpe import splits, too_many_merges
from llama_convert.tokenizers.options import TokenizerOptions
from llama_convert.tokenizers.pipeline import Pipeline, Tokenizer, bos_template, bpe, sequence
from llama_convert.tokenizers.special import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    END_OF_TURN,
    N_SPECIAL,
    SPECIAL_NAMES,
    special_tokens,
)

# How the text is cut before the merges (Meta's `llama3/tokenizer.py: pat_str`); part of the format.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_MOST_TOKENS, _LONGEST_TOKEN = 300_000, 1000
_LLAMA4_RANKS = 200_000
"""Llama 4 cuts the text by another pattern, which its file does not tell."""


@dataclass(frozen=True)
class TiktokenModel(Tokenizer):
    """Byte strings by rank."""

    kind = "tiktoken"
    n_special = N_SPECIAL
    tokens: tuple[bytes, ...] = field(repr=False)

    @property
    def n_base(self) -> int:
        """The ranks."""
        return len(self.tokens)

    def holds(self, name: str, number: int | None) -> bool:
        """Whether there is such a rank, or Meta's code so names a special token."""
        if number is None:
            return name in SPECIAL_NAMES or name in map(_printable, self.tokens)
        if number < self.n_base:
            return _printable(self.tokens[number]) == name
        return number < self.vocab_size and name in SPECIAL_NAMES

    def pipeline(self, options: TokenizerOptions) -> Pipeline:
        """With `ignore_merges` a pre-token that is a word is taken whole, as tiktoken takes it."""
        names = special_tokens(options.naming, options.special_tokens)
        ids = {name: self.n_base + offset for offset, name in enumerate(names)}
        return Pipeline(
            special=ids,
            model=bpe(unk=None, fuse_unk=False, byte_fallback=False, ignore_merges=True),
            vocab=map(_printable, self.tokens),
            merges=_merges(self.tokens),
            bos=BEGIN_OF_TEXT,
            eos=END_OF_TURN if options.instruct and END_OF_TURN in ids else END_OF_TEXT,
            pre_tokenizer=sequence(
                "pretokenizers",
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(add_prefix_space=False, trim_offsets=True, use_regex=False),
            ),
            post_processor=sequence(
                "processors",
                _byte_level(add_prefix_space=True, trim_offsets=False, use_regex=True),
                bos_template(BEGIN_OF_TEXT, ids[BEGIN_OF_TEXT]),
            ),
            decoder=_byte_level(add_prefix_space=True, trim_offsets=True, use_regex=True),
        )


def read_tiktoken(path: Path, data: bytes) -> TiktokenModel:
    """Read the lines of `data`, in whatever order they are.

    Raises:
        InputError: a line that is none, a token or rank given twice, a rank left out, one of the 256 one-byte
            tokens missing; or it is Llama 4's.
    """
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, digits = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(digits)
        except (ValueError, binascii.Error):
            found = line[:40].decode("utf-8", "backslashreplace")
            raise InputError(
                "TOKENIZER_LINE",
                f"line {number} is {found!r}, not a token in base64, a space and its rank",
                file=path,
                hint="The file is damaged or was cut short; download it again.",
            ) from None
        if len(by_rank) == _MOST_TOKENS:
            raise InputError("TOKENIZER_RANKS", f"more than {_MOST_TOKENS:,} tokens", file=path)
        if rank in by_rank:
            raise InputError(
                "TOKENIZER_RANKS", f"line {number} gives rank {rank!s:.20} a second time", file=path
            )
        by_rank[rank] = token
    tokens = tuple(by_rank[rank] for rank in range(len(by_rank)) if rank in by_rank)
    if len(tokens) < len(by_rank):
        gap = next(rank for rank in range(len(by_rank)) if rank not in by_rank)
        raise InputError(
            "TOKENIZER_RANKS",
            f"rank {gap} is missing: {len(by_rank)} tokens need the ranks from 0 on",
            file=path,
        )
    _check_tokens(path, tokens)
    return TiktokenModel(path, tokens)


def _check_tokens(path: Path, tokens: Sequence[bytes]) -> None:
    if len(tokens) == _LLAMA4_RANKS:
        raise InputError("TOKENIZER_FORM", "the tokenizer of Llama 4, which is not supported", file=path)
    distinct = set(tokens)
    if len(distinct) < len(tokens):
        ((twice, _),) = Counter(tokens).most_common(1)
        raise InputError("TOKENIZER_RANKS", f"the token {twice!r:.60} has two ranks", file=path)
    if b"" in distinct:
        raise InputError("TOKENIZER_LINE", "a token is empty", file=path)
    if max(map(len, tokens), default=0) > _LONGEST_TOKEN:
        raise InputError("TOKENIZER_LINE", f"a token has more than {_LONGEST_TOKEN} bytes", file=path)
    missing = [byte for byte in range(256) if bytes([byte]) not in distinct]
    if missing:
        raise InputError(
            "TOKENIZER_BYTES",
            f"{len(missing)} of the 256 one-byte tokens are missing, 0x{missing[0]:02X} first",
            file=path,
        )
    if fault := too_many_merges(dict.fromkeys(tokens)):
        raise InputError("TOKENIZER_RANKS", f"not a Llama's tokenizer: {fault}", file=path)


def _byte_level(**options: bool) -> dict[str, str | bool]:
    return {"type": "ByteLevel", **options}


def _merges(tokens: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    """Every way to join two tokens into one, by the rank of the whole, then of its left and its right part.

    tiktoken knows no pairs: it joins the neighbours whose whole has the lowest rank.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for whole in tokens:
        for left, right in sorted((ranks[left], ranks[right]) for left, right in splits(ranks, whole)):
            yield _printable(tokens[left]), _printable(tokens[right])


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's letters for bytes: Latin-1's visible characters are themselves, the rest follow from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = sorted(set(range(256)) - visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


def _printable(token: bytes) -> str:
    return token.decode("latin-1").translate(_ALPHABET)


def ranks_of_tokenizer_json(content: Any) -> bytes | None:
    """The `tokenizer.model` that a tokenizer.json was made of; None if it cannot be written in this form.

    Args:
        content: what the file says.

    Raises:
        KeyError, TypeError, AttributeError: it is no tokenizer.json.
    """
    added = {token["content"] for token in content["added_tokens"]}
    vocab: dict[str, int] | list[Any] = content["model"]["vocab"]
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers", [])
    if isinstance(vocab, list) or not any(step.get("pattern") == {"Regex": SPLIT_PATTERN} for step in steps):
        return None
    bytes_of = {letter: byte for byte, letter in _ALPHABET.items()}
    words = sorted((rank, word) for word, rank in vocab.items() if word not in added)
    if any(letter not in bytes_of for _, word in words for letter in word):
        return None
    if [rank for rank, _ in words] != list(range(len(words))):
        return None
    lines = (
        base64.b64encode(bytes(bytes_of[letter] for letter in word)) + b" %d\n" % rank for rank, word in words
    )
    return b"".join(lines)
