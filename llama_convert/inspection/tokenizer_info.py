"""The tokenizer beside the weights: which kind, and how many words it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_convert.checkpoints.json_object import read_json_object
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.findings import Finding, severity_of
from llama_convert.formats.files import MAX_TOKENIZER_JSON
from llama_convert.formats.strict_json import MAX_LISTS_OF_TOKENIZER
from llama_convert.inspection.opened import Opened
from llama_convert.inspection.records import Tokenizer
from llama_convert.tokenizers import Tokenizer as Original
from llama_convert.tokenizers import open_tokenizer
from llama_convert.tokenizers.sentencepiece_model import PieceType, SentencePieceModel

_SPECIAL_PIECES = (PieceType.CONTROL, PieceType.UNKNOWN)


def tokenizer_of(opened: Opened) -> tuple[Tokenizer | None, list[Finding]]:
    """The tokenizer beside the weights, and what is wrong or odd about it."""
    if opened.single_file:
        return None, []
    file = opened.side.tokenizer
    if file is None and (opened.folder / "tokenizer.model").is_file():
        file = opened.folder / "tokenizer.model"
    if file is None:
        message = "there is no tokenizer beside the weights"
        return None, [Finding("TOKENIZER_MISSING", message, severity="warning")]
    try:
        tokenizer = read_tokenizer_info(file, opened.side.words)
    except LlamaConvertError as error:
        return None, [Finding.of(error)]
    rows = opened.side.checkpoint.config.vocab_size if opened.side.checkpoint else None
    if rows is None or tokenizer.words == rows:
        return tokenizer, []
    message = f"has {tokenizer.words} words, the embedding {rows} rows"
    fewer = tokenizer.words < rows
    return tokenizer, [Finding("TOKENIZER_MISMATCH", message, file.name, severity=severity_of(warning=fewer))]


def read_tokenizer_info(file: Path, original: Original | None = None) -> Tokenizer:
    """What a ``tokenizer.model`` or a ``tokenizer.json`` holds.

    Args:
        file: where it is.
        original: what has been read of it already.

    Raises:
        InputError: it is damaged, or the tokenizer of no Llama.
    """
    if file.suffix == ".json":
        return _of_json(file)
    original = original or open_tokenizer(file)
    special = original.n_special
    if isinstance(original, SentencePieceModel):
        special = sum(piece.type in _SPECIAL_PIECES for piece in original.pieces)
    return Tokenizer(file.name, original.kind, original.vocab_size, special)


def _of_json(file: Path) -> Tokenizer:
    content = read_json_object(
        file, "TOKENIZER_JSON", max_bytes=MAX_TOKENIZER_JSON, max_lists=MAX_LISTS_OF_TOKENIZER
    ).content
    model, added = content.get("model"), content.get("added_tokens") or []
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        raise InputError("TOKENIZER_JSON", "holds no vocabulary of words and their ids", file=file)
    tokens: list[dict[str, Any]] = [token for token in added if isinstance(token, dict)]
    words = {*vocabulary, *(str(token.get("content")) for token in tokens)}
    special = sum(token.get("special") is True for token in tokens)
    return Tokenizer(file.name, _kind(model, content), len(words), special)


def _kind(model: dict[str, Any], content: dict[str, Any]) -> str | None:
    """Bytes are words of their own in sentencepiece's, letters in tiktoken's."""
    if model.get("type") != "BPE":
        return None
    if model.get("byte_fallback"):
        return "sentencepiece"
    return "tiktoken" if "ByteLevel" in str(content.get("pre_tokenizer")) else None
