"""Reader of the `tokenizer.model` of Llama 3: one line per token, with its bytes in base64 and its rank."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.text import listed
from llama_convert.tokenizers.bpe import splits, too_many_merges
from llama_convert.tokenizers.special_tokens import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    END_OF_TURN,
    N_SPECIAL,
    SPECIAL_NAMES,
    special_tokens,
)
from llama_convert.tokenizers.tokenizer import Tokenizer, TokenizerOptions
from llama_convert.tokenizers.tokenizer_json import TokenizerJson, bos_template, bpe, sequence

# Splits text into pre-tokens before the merges (Meta's `llama3/tokenizer.py: pat_str`).
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_MAX_TOKENS, _MAX_TOKEN_BYTES = 300_000, 1000
_LLAMA4_TOKENS = 200_000
"""Llama 4 has another split pattern, which its file does not contain."""


@dataclass(frozen=True)
class TiktokenModel(Tokenizer):
    """A tiktoken vocabulary: tokens by rank."""

    kind = "tiktoken"
    n_special = N_SPECIAL
    tokens: tuple[bytes, ...] = field(repr=False)

    @property
    def n_base(self) -> int:
        """Tokens in the file, without special tokens."""
        return len(self.tokens)

    def has_token(self, name: str, number: int | None) -> bool:
        """Whether there is such a token, or a special token with this name in Meta's code."""
        if number is None:
            return name in SPECIAL_NAMES or name in map(_printable, self.tokens)
        if number < self.n_base:
            return _printable(self.tokens[number]) == name
        return number < self.vocab_size and name in SPECIAL_NAMES

    def tokenizer_json(self, options: TokenizerOptions) -> TokenizerJson:
        """The same tokenizer as a tokenizer.json.

        With `ignore_merges`, a pre-token that is in the vocabulary is not split, as in tiktoken.
        """
        names = special_tokens(options.special_names, options.special_tokens)
        ids = {name: self.n_base + offset for offset, name in enumerate(names)}
        return TokenizerJson(
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
    """Read a vocabulary; its lines may be in any order.

    Args:
        path: its file, for errors.
        data: its content.

    Raises:
        InputError: a malformed line, a duplicate token or rank, a missing rank or one-byte token, or the
            vocabulary of Llama 4.
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
                f"Malformed line {number}.",
                file=path,
                hint="The file is damaged or truncated. Download it again.",
                expected="a token in base64, a space and its rank",
                found=repr(found),
            ) from None
        if len(by_rank) == _MAX_TOKENS:
            raise InputError("TOKENIZER_RANKS", f"More than {_MAX_TOKENS:,} tokens.", file=path)
        if rank in by_rank:
            message = f"Duplicate rank {rank!s:.20} in line {number}."
            raise InputError("TOKENIZER_RANKS", message, file=path)
        by_rank[rank] = token
    tokens = tuple(by_rank[rank] for rank in range(len(by_rank)) if rank in by_rank)
    if len(tokens) < len(by_rank):
        gap = next(rank for rank in range(len(by_rank)) if rank not in by_rank)
        message = f"Missing rank {gap}: the ranks of {len(by_rank)} tokens are not consecutive from 0."
        raise InputError("TOKENIZER_RANKS", message, file=path)
    _check_tokens(path, tokens)
    return TiktokenModel(path, tokens)


def _check_tokens(path: Path, tokens: Sequence[bytes]) -> None:
    if len(tokens) == _LLAMA4_TOKENS:
        raise InputError("TOKENIZER_UNSUPPORTED", "The tokenizer of Llama 4 is not supported.", file=path)
    distinct = set(tokens)
    if len(distinct) < len(tokens):
        ((duplicate, _),) = Counter(tokens).most_common(1)
        raise InputError("TOKENIZER_RANKS", f"The token {duplicate!r:.60} has two ranks.", file=path)
    if b"" in distinct:
        raise InputError("TOKENIZER_LINE", "A token is empty.", file=path)
    if max(map(len, tokens), default=0) > _MAX_TOKEN_BYTES:
        raise InputError("TOKENIZER_LINE", f"A token has more than {_MAX_TOKEN_BYTES} bytes.", file=path)
    missing = [byte for byte in range(256) if bytes([byte]) not in distinct]
    if missing:
        names = listed(f"0x{byte:02X}" for byte in missing)
        raise InputError("TOKENIZER_BYTES", f"Missing one-byte tokens: {names}.", file=path)
    if message := too_many_merges(dict.fromkeys(tokens)):
        raise InputError("TOKENIZER_RANKS", message, file=path)


def _byte_level(**options: bool) -> dict[str, str | bool]:
    return {"type": "ByteLevel", **options}


def _merges(tokens: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    """All merges of two tokens, sorted by the rank of the result, then of the left and the right token.

    tiktoken has no list of merges: it merges the adjacent tokens whose result has the lowest rank.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for whole in tokens:
        for left, right in sorted((ranks[left], ranks[right]) for left, right in splits(ranks, whole)):
            yield _printable(tokens[left]), _printable(tokens[right])


def _byte_alphabet() -> dict[int, str]:
    """Characters of GPT-2 for bytes: visible ones of Latin-1 for themselves, from U+0100 for the others."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = sorted(set(range(256)) - visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


def _printable(token: bytes) -> str:
    return token.decode("latin-1").translate(_ALPHABET)


def ranks_of_tokenizer_json(content: Any) -> bytes | None:
    """Content of the `tokenizer.model` from which a tokenizer.json was converted; None if it is not tiktoken.

    Args:
        content: the parsed tokenizer.json.

    Raises:
        KeyError, TypeError, AttributeError: it is not a tokenizer.json.
    """
    added = {token["content"] for token in content["added_tokens"]}
    vocab: dict[str, int] | list[Any] = content["model"]["vocab"]
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers", [])
    if isinstance(vocab, list) or not any(step.get("pattern") == {"Regex": SPLIT_PATTERN} for step in steps):
        return None
    bytes_of = {character: byte for byte, character in _ALPHABET.items()}
    tokens = sorted((rank, token) for token, rank in vocab.items() if token not in added)
    if any(character not in bytes_of for _, token in tokens for character in token):
        return None
    if [rank for rank, _ in tokens] != list(range(len(tokens))):
        return None
    lines = (
        base64.b64encode(bytes(bytes_of[character] for character in token)) + b" %d\n" % rank
        for rank, token in tokens
    )
    return b"".join(lines)
