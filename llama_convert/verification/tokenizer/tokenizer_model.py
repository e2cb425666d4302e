"""Runs a `tokenizer.model` with the library that Meta's code uses: tiktoken or sentencepiece."""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import sentencepiece
import tiktoken

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, read_small
from llama_convert.verification.tokenizer.grouping import short

Ids = list[int]

# Meta's llama-models, `llama3/tokenizer.py`: `pat_str` and `num_reserved_special_tokens`.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
N_SPECIAL = 256
_LONGEST_TOKEN = 512
"""Max characters of a token; Llama 3's longest has 128.  Finding its merges takes quadratic time."""

SPACE = "▁"
"""The space in pieces of sentencepiece."""
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
"""The pieces of sentencepiece for single bytes."""


def _letters() -> list[str]:
    """GPT-2's letter for each byte: the same character if it is visible, else the next from U+0100 on."""
    visible = [chr(byte).isprintable() and byte != 0x20 for byte in range(256)]
    return [chr(byte if visible[byte] else 0x100 + byte - sum(visible[:byte])) for byte in range(256)]


LETTERS = _letters()
"""The letters that represent bytes of a tiktoken token in tokenizer.json."""


@dataclass(frozen=True)
class Original:
    """A tokenizer as Meta's code defines it; its tokens have the names that tokenizer.json uses."""

    source: str
    """Where it comes from, for messages."""
    kind: Literal["tiktoken", "sentencepiece"]
    names: Sequence[str]
    """Names of the ids from 0 on; the file has no names for higher ids."""
    vocab_size: int
    special: Collection[int]
    bos: int
    order: Mapping[str, float | None]
    """Ranks of the tokens that merges join or give: lower ranks merge first; None if the rank is unknown."""
    texts: Sequence[str] = ()
    """Texts of the tokens that consist of whole characters."""

    def __post_init__(self) -> None:
        longest = max(map(len, self.names), default=0)
        if longest > _LONGEST_TOKEN:
            raise ValueError(f"a token has {longest:,} characters, the limit is {_LONGEST_TOKEN}")

    def after_round_trip(self, text: str) -> str:
        """A text after encoding and decoding: sentencepiece replaces U+2581 by a space."""
        return text if self.kind == "tiktoken" else text.replace(SPACE, " ")


@dataclass(frozen=True, kw_only=True)
class RunnableOriginal(Original):
    """An original that can encode and decode."""

    encode: Callable[[str], Ids] = field(repr=False)
    """Without BOS; names of special tokens are encoded as text."""
    decode: Callable[[Ids], str] = field(repr=False)


def original_in(folder: Path) -> Path | None:
    """The `tokenizer.model` of a folder, or of its subfolder ``original``; None if there is none."""
    paths = (folder / "tokenizer.model", folder / "original" / "tokenizer.model")
    return next((path for path in paths if os.path.lexists(path)), None)


def open_original(path: Path) -> RunnableOriginal:
    """Open a `tokenizer.model` of either kind, which its first byte identifies.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = read_small(path, MAX_TOKENIZER)
        # The tag of the first piece in a protocol buffer; no line of base64 starts with it.
        if data.startswith(b"\n"):
            return _sentencepiece(data, f"{path.name} (sentencepiece)")
        return tiktoken_original(_tokens(data), f"{path.name} (tiktoken)")
    except InputError as error:
        message = f"Cannot be read: {error.message}"
    except (ValueError, RuntimeError) as error:
        message = f"Neither sentencepiece nor tiktoken can read it: {short(error)}"
    raise InputError("TOKENIZER_UNREADABLE", message, file=path)


def _tokens(data: bytes) -> list[bytes]:
    """The tokens by rank, from lines with a token in base64 and its rank."""
    lines = (line.split() for line in data.splitlines() if line)
    ranks = {b64decode(token, validate=True): int(rank) for token, rank in lines}
    tokens = sorted(ranks, key=ranks.__getitem__)
    if [ranks[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("the ranks are not 0, 1, 2, ... without gaps")
    return tokens


def tiktoken_original(tokens: Sequence[bytes], source: str) -> RunnableOriginal:
    """Llama 3's tokenizer with these tokens, given in the order of their ranks.

    Raises:
        ValueError: a byte has no token, with which tiktoken would abort.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise ValueError(f"there is no token for the byte 0x{byte:02X}")
    encoding = tiktoken.Encoding("", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    names = [token.decode("latin-1").translate(dict(enumerate(LETTERS))) for token in tokens]
    texts = (token.decode(errors="ignore") for token in tokens)
    return RunnableOriginal(
        source=source,
        kind="tiktoken",
        names=names,
        vocab_size=len(tokens) + N_SPECIAL,
        special=range(len(tokens), len(tokens) + N_SPECIAL),
        bos=len(tokens),
        order={name: rank for rank, name in enumerate(names)},
        texts=[text for text, token in zip(texts, tokens, strict=True) if text.encode() == token],
        encode=encoding.encode_ordinary,
        decode=encoding.decode,
    )


def _sentencepiece(model: bytes, source: str) -> RunnableOriginal:
    """The tokenizer of LLaMA 1, Llama 2 and Code Llama.

    Raises:
        RuntimeError: the model is damaged.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    names = [processor.id_to_piece(number) for number in range(processor.vocab_size())]
    special = frozenset(n for n in range(len(names)) if processor.is_unknown(n) or processor.is_control(n))
    # With a dropout of 1 nothing is merged, and the only longer pieces that remain are user-defined.
    whole = set(processor.encode(" ".join(names), enable_sampling=True, alpha=1.0))
    normal = {
        name: number
        for number, name in enumerate(names)
        if number not in special and not processor.is_byte(number) and (len(name) == 1 or number not in whole)
    }
    return RunnableOriginal(
        source=source,
        kind="sentencepiece",
        names=names,
        vocab_size=len(names),
        special=special,
        bos=processor.bos_id(),
        order={name: -processor.get_score(number) for name, number in normal.items()},
        # sentencepiece itself adds a space before a text.
        texts=[name.removeprefix(SPACE).replace(SPACE, " ") for name in normal],
        encode=processor.encode,
        decode=processor.decode,
    )
