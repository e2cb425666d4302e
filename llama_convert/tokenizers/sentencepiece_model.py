"""The `tokenizer.model` of LLaMA 1, Llama 2 and Code Llama: a sentencepiece `ModelProto`.

A protocol buffer of four record shapes is read here in a few lines; the library `sentencepiece` is what the
tests hold the result against.
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
from llama_convert.tokenizers.options import TokenizerOptions
from llama_convert.tokenizers.pipeline import Json, Pipeline, Tokenizer, bos_template, bpe, sequence

# Code Llama's infilling pieces (Meta's `codellama: llama/tokenizer.py`).  Typed as text they are made by
# ordinary merges; as special tokens they can also be left out when ids are decoded.
INFILL = (f"{SPACE}<PRE>", f"{SPACE}<SUF>", f"{SPACE}<MID>", f"{SPACE}<EOT>")
STEP = "<step>"
"""Ends a turn of Code Llama 70B; Meta adds it by id, a chat template writes it as text."""

# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _WHITESPACE_SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5

_MOST_PIECES, _LONGEST_PIECE = 150_000, 1000
_FIXED_SIZES = {1: 8, 5: 4}
"""Wire type -> bytes."""

Fields = dict[int, Any]
"""Field number -> number or bytes; the last one where a field is repeated."""

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class PieceType(IntEnum):
    """What a piece is for (`ModelProto.SentencePiece.Type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """A token; of two possible merges the one whose whole has the higher score is made first."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class SentencePieceModel(Tokenizer):
    """Pieces by id."""

    kind = "sentencepiece"
    n_special = 0
    pieces: tuple[Piece, ...] = field(repr=False)
    unk_id: int
    bos_id: int
    eos_id: int

    @property
    def n_base(self) -> int:
        """The pieces, special ones and all."""
        return len(self.pieces)

    @property
    def user_defined(self) -> list[str]:
        """The pieces that sentencepiece neither splits nor joins, the longest first."""
        texts = (piece.text for piece in self.pieces if piece.type is PieceType.USER_DEFINED)
        return sorted(texts, key=len, reverse=True)

    @cached_property
    def merge_order(self) -> MergeOrder:
        """The merges for tokenizer.json."""
        scores = {piece.text: piece.score for piece in self.pieces if piece.type is PieceType.NORMAL}
        return order_merges(scores, self.user_defined)

    @property
    def differing(self) -> str | None:
        """A text to which tokenizer.json gives other ids than sentencepiece; None: no such text was found."""
        return self.merge_order.differing

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each piece."""
        return {piece.text: number for number, piece in enumerate(self.pieces)}

    def holds(self, name: str, number: int | None) -> bool:
        """Whether there is such a piece."""
        return name in self.ids and number in (None, self.ids[name])

    def pipeline(self, options: TokenizerOptions) -> Pipeline:
        """The same tokenizer for the Rust library.

        Text without the names of special tokens has the same ids in both.  Where sentencepiece reads ``<s>``
        as three letters, the library cuts the special token out, and puts the space that goes before a text
        before each stretch between such tokens.
        """
        names = [piece.text for piece in self.pieces]
        ids = self.ids
        control = [number for number, piece in enumerate(self.pieces) if piece.type is PieceType.CONTROL]
        marks = [ids[name] for name in (*INFILL, STEP) if name in ids]
        # sentencepiece never cuts a user-defined piece; as a pre-token it is taken whole by `ignore_merges`.
        whole = self.user_defined
        bos, eos = names[self.bos_id], names[self.eos_id]
        return Pipeline(
            special={names[number]: number for number in sorted({self.unk_id, *control, *marks})},
            model=bpe(unk=names[self.unk_id], fuse_unk=True, byte_fallback=True, ignore_merges=bool(whole)),
            vocab=names,
            merges=self.merge_order.merges,
            bos=bos,
            eos=STEP if options.instruct and STEP in ids else eos,
            unk=names[self.unk_id],
            normalizer=sequence("normalizers", {"type": "Prepend", "prepend": SPACE}, _replace(" ", SPACE)),
            pre_tokenizer=_isolate(whole) if whole else None,
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
    """Read a model of the Llama form: BPE, byte fallback, text taken as it is but for one space before it.

    Raises:
        InputError: the file is damaged or cut short, or the model is of another form.
    """
    try:
        pieces, trainer, normalizer = _read_proto(data)
    except ValueError as error:
        raise InputError(
            "TOKENIZER_DAMAGED",
            f"not a whole sentencepiece model: {error}",
            file=path,
            hint="The file is damaged or was cut short; download it again.",
        ) from None
    _check_form(path, trainer, normalizer)
    ids = _check_pieces(path, pieces)
    unk = next(number for number, piece in enumerate(pieces) if piece.type is PieceType.UNKNOWN)
    return SentencePieceModel(path, pieces, unk_id=unk, bos_id=ids["<s>"], eos_id=ids["</s>"])


def _replace(old: str, new: str) -> Json:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _isolate(texts: Sequence[str]) -> Json:
    pattern = "|".join(map(re.escape, texts))
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _check_form(path: Path, trainer: Fields, normalizer: Fields) -> None:
    model_type = trainer.get(_MODEL_TYPE, 1)
    faults = (
        (model_type != 2, f"it is a {_MODEL_TYPES.get(model_type, 'strange')} model, not BPE"),
        (trainer.get(_BYTE_FALLBACK, 0) != 1, "it has no bytes to fall back on"),
        (bool(normalizer.get(_CHARSMAP)), "it rewrites characters before it cuts the text"),
        (normalizer.get(_DUMMY_PREFIX, 1) != 1, "it puts no space before the text"),
        (normalizer.get(_REMOVE_SPACES, 1) != 0, "it removes extra spaces"),
        (normalizer.get(_ESCAPE_SPACES, 1) != 1, f"it does not write spaces as {SPACE}"),
        (trainer.get(_WHITESPACE_SUFFIX, 0) != 0, "it takes spaces to the word before"),
    )
    for found, fault in faults:
        if found:
            raise InputError("TOKENIZER_FORM", f"not a Llama's sentencepiece model: {fault}", file=path)


def _check_pieces(path: Path, pieces: Sequence[Piece]) -> dict[str, int]:
    """The id of each piece's text, if the pieces are those of a Llama."""
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    types = Counter(piece.type for piece in pieces)
    control = {piece.text for piece in pieces if piece.type is PieceType.CONTROL}
    twice = next((piece.text for number, piece in enumerate(pieces) if ids[piece.text] != number), None)
    faults = (
        (twice is not None, f"the piece {twice!r:.60} is there twice"),
        ("" in ids, "a piece is empty"),
        (any(len(text) > _LONGEST_PIECE for text in ids), f"a piece is longer than {_LONGEST_PIECE} letters"),
        (not all(math.isfinite(piece.score) for piece in pieces), "the score of a piece is no number"),
        (types[PieceType.UNKNOWN] != 1, f"{types[PieceType.UNKNOWN]} unknown pieces, not one"),
        (types[PieceType.BYTE] != 256, f"{types[PieceType.BYTE]} pieces for bytes, not 256"),
        (not {f"<0x{byte:02X}>" for byte in range(256)} <= ids.keys(), "a byte has no piece of its name"),
        (types[PieceType.UNUSED] != 0, f"{types[PieceType.UNUSED]} unused pieces, which no Llama has"),
        (not {"<s>", "</s>"} <= control, "<s> and </s> are not both there"),
    )
    for found, fault in faults:
        if found:
            raise InputError("TOKENIZER_PIECES", f"not a Llama's sentencepiece model: {fault}", file=path)
    large = too_many_merges(ids)
    if large:
        raise InputError("TOKENIZER_PIECES", f"not a Llama's sentencepiece model: {large}", file=path)
    return ids


def _read_proto(data: bytes) -> tuple[tuple[Piece, ...], Fields, Fields]:
    pieces: list[Piece] = []
    specs: dict[int, Fields] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            if len(pieces) == _MOST_PIECES:
                raise ValueError(f"more than {_MOST_PIECES:,} pieces")
            pieces.append(_piece(dict(_fields(value))))
        elif number in (_TRAINER, _NORMALIZER):
            specs[number] = dict(_fields(value))
    if len(specs) < 2:
        raise ValueError(f"the settings that follow its {len(pieces)} pieces are missing")
    return tuple(pieces), specs[_TRAINER], specs[_NORMALIZER]


def _piece(fields: Fields) -> Piece:
    text, score = fields.get(_PIECE, b""), fields.get(_SCORE, bytes(4))
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise ValueError("a piece is malformed")
    (number,) = struct.unpack("<f", score)
    return Piece(text.decode(), number, PieceType(fields.get(_TYPE, PieceType.NORMAL)))


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message: a number for a varint, bytes for any other.

    Raises:
        ValueError: `message` is not the bytes of a whole message.
    """
    if not isinstance(message, bytes):
        raise ValueError("a number where a message is expected")
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
            raise ValueError(f"byte {position} is no field")
        if position + size > len(message):
            raise ValueError(f"a field of {size} bytes begins {len(message) - position} bytes before its end")
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number that begins at `position`, seven bits to a byte, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            raise ValueError("it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"byte {position} is no number")
