"""Reader of the `tokenizer.model` of LLaMA 1, Llama 2 and Code Llama: a `ModelProto` of sentencepiece.

It parses the protocol buffer itself; tests compare the result with the library `sentencepiece`.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.tokenizers.bpe import too_many_merges
from llama_convert.tokenizers.merge_order import SPACE, MergeOrder, order_merges
from llama_convert.tokenizers.tokenizer import Tokenizer, TokenizerOptions
from llama_convert.tokenizers.tokenizer_json import Json, TokenizerJson, bos_template, bpe, sequence

# Infilling pieces of Code Llama (Meta's `codellama: llama/tokenizer.py`).  In text they result from merges;
# as special tokens, they can also be skipped in decoding.
INFILL = (f"{SPACE}<PRE>", f"{SPACE}<SUF>", f"{SPACE}<MID>", f"{SPACE}<EOT>")
STEP = "<step>"
"""End of a turn of Code Llama 70B; Meta's code adds it by id, a chat template as text."""

# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _WHITESPACE_SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5

_MAX_PIECES, _MAX_PIECE_LENGTH = 150_000, 1000
_FIXED_SIZES = {1: 8, 5: 4}
"""Bytes of a field by wire type."""

Fields = dict[int, Any]
"""Integer or bytes by field number; the last value of a repeated field."""

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class PieceType(IntEnum):
    """Type of a piece (`ModelProto.SentencePiece.Type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """A token.  Merges whose result has a higher score come first."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class SentencePieceModel(Tokenizer):
    """A sentencepiece model: pieces by id."""

    kind = "sentencepiece"
    n_special = 0
    pieces: tuple[Piece, ...] = field(repr=False)
    unk_id: int
    bos_id: int
    eos_id: int

    @property
    def n_base(self) -> int:
        """All pieces, including special ones."""
        return len(self.pieces)

    @property
    def user_defined(self) -> list[str]:
        """Pieces that sentencepiece neither splits nor merges, sorted by descending length."""
        texts = (piece.text for piece in self.pieces if piece.type is PieceType.USER_DEFINED)
        return sorted(texts, key=len, reverse=True)

    @cached_property
    def merge_order(self) -> MergeOrder:
        """The merges for tokenizer.json."""
        scores = {piece.text: piece.score for piece in self.pieces if piece.type is PieceType.NORMAL}
        return order_merges(scores, self.user_defined)

    @property
    def differing_text(self) -> str | None:
        """A text for which tokenizer.json has other ids than sentencepiece; None if none was found."""
        return self.merge_order.differing_text

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each piece."""
        return {piece.text: number for number, piece in enumerate(self.pieces)}

    def has_token(self, name: str, number: int | None) -> bool:
        """Whether there is such a piece."""
        return name in self.ids and number in (None, self.ids[name])

    def tokenizer_json(self, options: TokenizerOptions) -> TokenizerJson:
        """The same tokenizer as a tokenizer.json.

        Text without names of special tokens has the same ids.  ``<s>`` in text is three characters for
        sentencepiece; `tokenizers` splits it off as a special token, and inserts the initial space before
        each part between such tokens.
        """
        names = [piece.text for piece in self.pieces]
        ids = self.ids
        control = [number for number, piece in enumerate(self.pieces) if piece.type is PieceType.CONTROL]
        marks = [ids[name] for name in (*INFILL, STEP) if name in ids]
        # sentencepiece never splits a user-defined piece; `ignore_merges` keeps it as a pre-token.
        unsplit = self.user_defined
        bos, eos = names[self.bos_id], names[self.eos_id]
        return TokenizerJson(
            special={names[number]: number for number in sorted({self.unk_id, *control, *marks})},
            model=bpe(unk=names[self.unk_id], fuse_unk=True, byte_fallback=True, ignore_merges=bool(unsplit)),
            vocab=names,
            merges=self.merge_order.merges,
            bos=bos,
            eos=STEP if options.instruct and STEP in ids else eos,
            unk=names[self.unk_id],
            normalizer=sequence("normalizers", {"type": "Prepend", "prepend": SPACE}, _replace(" ", SPACE)),
            pre_tokenizer=_isolate(unsplit) if unsplit else None,
            post_processor=bos_template(bos, self.bos_id),
            decoder=sequence(
                "decoders",
                _replace(SPACE, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ),
        )


def read_sentencepiece(path: Path, data: bytes) -> SentencePieceModel:
    """Read a model like that of Llama: BPE with byte fallback, and no normalization but an initial space.

    Args:
        path: its file, for errors.
        data: its content.

    Raises:
        InputError: the file is damaged or truncated, or the model has other settings.
    """
    try:
        pieces, trainer, normalizer = _read_proto(data)
    except ValueError as error:
        raise InputError(
            "TOKENIZER_DAMAGED",
            f"Truncated or damaged sentencepiece model ({error}).",
            file=path,
            hint="Download it again.",
        ) from None
    _check_settings(path, trainer, normalizer)
    ids = _check_pieces(path, pieces)
    unk = next(number for number, piece in enumerate(pieces) if piece.type is PieceType.UNKNOWN)
    return SentencePieceModel(path, pieces, unk_id=unk, bos_id=ids["<s>"], eos_id=ids["</s>"])


def _replace(old: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _isolate(texts: Sequence[str]) -> Json:
    pattern = "|".join(map(re.escape, texts))
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _check_settings(path: Path, trainer: Fields, normalizer: Fields) -> None:
    model_type = trainer.get(_MODEL_TYPE, 1)
    problems = (
        (model_type != 2, f"it is a {_MODEL_TYPES.get(model_type, 'unknown')} model, not BPE"),
        (trainer.get(_BYTE_FALLBACK, 0) != 1, "it has no byte fallback"),
        (bool(normalizer.get(_CHARSMAP)), "it normalizes characters"),
        (normalizer.get(_DUMMY_PREFIX, 1) != 1, "it adds no space before the text"),
        (normalizer.get(_REMOVE_SPACES, 1) != 0, "it removes extra spaces"),
        (normalizer.get(_ESCAPE_SPACES, 1) != 1, f"it does not escape spaces as {SPACE}"),
        (trainer.get(_WHITESPACE_SUFFIX, 0) != 0, "it treats spaces as suffixes"),
    )
    for is_present, problem in problems:
        if is_present:
            raise InputError(
                "TOKENIZER_UNSUPPORTED", f"Not a sentencepiece model of Llama: {problem}.", file=path
            )


def _check_pieces(path: Path, pieces: Sequence[Piece]) -> dict[str, int]:
    """The id of each piece.

    Raises:
        InputError: the pieces are not like those of Llama.
    """
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    types = Counter(piece.type for piece in pieces)
    control = {piece.text for piece in pieces if piece.type is PieceType.CONTROL}
    duplicate = next((piece.text for number, piece in enumerate(pieces) if ids[piece.text] != number), None)
    is_long = any(len(text) > _MAX_PIECE_LENGTH for text in ids)
    problems = (
        (duplicate is not None, f"duplicate piece {duplicate!r:.60}"),
        ("" in ids, "a piece is empty"),
        (is_long, f"a piece has more than {_MAX_PIECE_LENGTH} characters"),
        (not all(math.isfinite(piece.score) for piece in pieces), "the score of a piece is not finite"),
        (types[PieceType.UNKNOWN] != 1, f"{types[PieceType.UNKNOWN]} unknown pieces instead of 1"),
        (types[PieceType.BYTE] != 256, f"{types[PieceType.BYTE]} byte pieces instead of 256"),
        (not {f"<0x{byte:02X}>" for byte in range(256)} <= ids.keys(), "a byte piece is missing"),
        (types[PieceType.UNUSED] != 0, f"{types[PieceType.UNUSED]} unused pieces"),
        (not {"<s>", "</s>"} <= control, "<s> or </s> is missing"),
    )
    for is_present, problem in problems:
        if is_present:
            raise InputError("TOKENIZER_PIECES", f"Not a sentencepiece model of Llama: {problem}.", file=path)
    if message := too_many_merges(ids):
        raise InputError("TOKENIZER_PIECES", message, file=path)
    return ids


def _read_proto(data: bytes) -> tuple[tuple[Piece, ...], Fields, Fields]:
    pieces: list[Piece] = []
    specs: dict[int, Fields] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            if len(pieces) == _MAX_PIECES:
                raise ValueError(f"more than {_MAX_PIECES:,} pieces")
            pieces.append(_piece(dict(_fields(value))))
        elif number in (_TRAINER, _NORMALIZER):
            specs[number] = dict(_fields(value))
    if len(specs) < 2:
        raise ValueError(f"no settings after {len(pieces)} pieces")
    return tuple(pieces), specs[_TRAINER], specs[_NORMALIZER]


def _piece(fields: Fields) -> Piece:
    text, score = fields.get(_PIECE, b""), fields.get(_SCORE, bytes(4))
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise ValueError("malformed piece")
    (number,) = struct.unpack("<f", score)
    return Piece(text.decode(), number, PieceType(fields.get(_TYPE, PieceType.NORMAL)))


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """Fields of a protocol buffer message: integers for varints, bytes for other wire types.

    Raises:
        ValueError: `message` is not a complete message.
    """
    if not isinstance(message, bytes):
        raise ValueError("a number instead of a message")
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise ValueError(f"no field at byte {position}")
        if position + size > len(message):
            raise ValueError(f"field of {size} bytes {len(message) - position} bytes before the end")
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The varint at `position` (seven bits per byte), and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            raise ValueError("end within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"no number at byte {position}")
