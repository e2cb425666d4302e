"""Meta's `tokenizer.model`, run by the library that Meta's code runs it with."""

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
from llama_convert.verification.tokenizer.wording import short

Ids = list[int]

# Meta's llama-models, `llama3/tokenizer.py`: `pat_str` and `num_reserved_special_tokens`.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
N_SPECIAL = 256
_LONGEST_TOKEN = 512
"""Characters; Llama 3's longest has 128.  Finding the merges takes the square of it."""

SPACE = "▁"
"""How sentencepiece writes a space."""
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
"""The bytes as sentencepiece's pieces."""


def _letters() -> list[str]:
    """GPT-2's letter for each byte: its own where that can be seen, else the next from U+0100 on."""
    seen = [chr(byte).isprintable() and byte != 0x20 for byte in range(256)]
    return [chr(byte if seen[byte] else 0x100 + byte - sum(seen[:byte])) for byte in range(256)]


LETTERS = _letters()
"""How tokenizer.json writes the bytes of a tiktoken token."""


@dataclass(frozen=True)
class Original:
    """A tokenizer as Meta's code runs it, its tokens by the names that tokenizer.json has for them."""

    source: str
    kind: Literal["tiktoken", "sentencepiece"]
    names: Sequence[str]
    """Of the ids from 0 on.  Ids beyond have names that the file does not say."""
    vocab_size: int
    special: Collection[int]
    bos: int
    order: Mapping[str, float | None]
    """The words that are joined and made by joining: the lower, the earlier; None where nothing is known."""
    texts: Sequence[str] = ()
    """What the tokens spell, as far as they spell characters."""

    def __post_init__(self) -> None:
        longest = max(map(len, self.names), default=0)
        if longest > _LONGEST_TOKEN:
            raise ValueError(f"a token has {longest:,} characters, the limit is {_LONGEST_TOKEN}")

    def kept(self, text: str) -> str:
        """What is left of a text there and back: sentencepiece takes U+2581 for a space."""
        return text if self.kind == "tiktoken" else text.replace(SPACE, " ")


@dataclass(frozen=True, kw_only=True)
class RunnableOriginal(Original):
    """One whose library is at hand, not only its names."""

    encode: Callable[[str], Ids] = field(repr=False)
    """Without BOS; what looks like a special token is text."""
    decode: Callable[[Ids], str] = field(repr=False)


def original_in(folder: Path) -> Path | None:
    """Meta's file, where downloads have it."""
    paths = (folder / "tokenizer.model", folder / "original" / "tokenizer.model")
    return next((path for path in paths if os.path.lexists(path)), None)


def open_original(path: Path) -> RunnableOriginal:
    """Open a `tokenizer.model`; its first byte says which kind it is.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = read_small(path, MAX_TOKENIZER)
        # The tag of a protocol buffer's first piece; no line of base64 begins so.
        if data.startswith(b"\n"):
            return _sentencepiece(data, f"{path.name} (sentencepiece)")
        return tiktoken_original(_tokens(data), f"{path.name} (tiktoken)")
    except InputError as error:
        message = f"cannot be read: {error.message}"
    except (ValueError, RuntimeError) as error:
        message = f"neither sentencepiece nor tiktoken can read it: {short(error)}"
    raise InputError("TOKENIZER_UNREADABLE", message, file=path)


def _tokens(data: bytes) -> list[bytes]:
    """The tokens in the order of their ranks, of lines of a token in base64 and its rank."""
    lines = (line.split() for line in data.splitlines() if line)
    ranks = {b64decode(token, validate=True): int(rank) for token, rank in lines}
    tokens = sorted(ranks, key=ranks.__getitem__)
    if [ranks[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("its ranks are not those from 0 on, each once")
    return tokens


def tiktoken_original(tokens: Sequence[bytes], source: str) -> RunnableOriginal:
    """Llama 3's tokenizer, of its tokens by rank.

    Raises:
        ValueError: a byte has no token, at which tiktoken would abort.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise ValueError(f"there is no token for the byte 0x{byte:02X}")
    encoding = tiktoken.Encoding("", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    names = [token.decode("latin-1").translate(dict(enumerate(LETTERS))) for token in tokens]
    spelled = (token.decode(errors="ignore") for token in tokens)
    return RunnableOriginal(
        source=source,
        kind="tiktoken",
        names=names,
        vocab_size=len(tokens) + N_SPECIAL,
        special=range(len(tokens), len(tokens) + N_SPECIAL),
        bos=len(tokens),
        order={name: rank for rank, name in enumerate(names)},
        texts=[text for text, token in zip(spelled, tokens, strict=True) if text.encode() == token],
        encode=encoding.encode_ordinary,
        decode=encoding.decode,
    )


def _sentencepiece(model: bytes, source: str) -> RunnableOriginal:
    """The tokenizer of LLaMA 1, Llama 2 and Code Llama; the library raises a RuntimeError if it is none."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    names = [processor.id_to_piece(number) for number in range(processor.vocab_size())]
    special = frozenset(n for n in range(len(names)) if processor.is_unknown(n) or processor.is_control(n))
    # With a dropout of 1 nothing is merged, and of the longer pieces only those stay that the user defined.
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
        # The space before a text comes by itself.
        texts=[name.removeprefix(SPACE).replace(SPACE, " ") for name in normal],
        encode=processor.encode,
        decode=processor.decode,
    )
