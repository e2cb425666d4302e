"""Kind and vocabulary size of the tokenizer next to the weights."""

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
from llama_convert.tokenizers import Tokenizer as TokenizerModel
from llama_convert.tokenizers import open_tokenizer
from llama_convert.tokenizers.sentencepiece_model import PieceType, SentencePieceModel

_SPECIAL_PIECES = (PieceType.CONTROL, PieceType.UNKNOWN)


def inspect_tokenizer(opened: Opened) -> tuple[Tokenizer | None, list[Finding]]:
    """The tokenizer next to the weights, and the findings about it; None if it is missing or unreadable."""
    if opened.single_file:
        return None, []
    file = opened.input.tokenizer
    if file is None and (opened.folder / "tokenizer.model").is_file():
        file = opened.folder / "tokenizer.model"
    if file is None:
        return None, [Finding("TOKENIZER_MISSING", "No tokenizer found.", severity="warning")]
    try:
        tokenizer = _read_tokenizer(file, opened.input.meta_tokenizer)
    except LlamaConvertError as error:
        return None, [Finding.of(error)]
    rows = opened.input.checkpoint.config.vocab_size if opened.input.checkpoint else None
    if rows is None or tokenizer.vocab_size == rows:
        return tokenizer, []
    message = f"Tokenizer has {tokenizer.vocab_size:,} tokens; the embedding has {rows:,} rows."
    fewer = tokenizer.vocab_size < rows
    return tokenizer, [Finding("TOKENIZER_MISMATCH", message, file.name, severity=severity_of(warning=fewer))]


def _read_tokenizer(file: Path, model: TokenizerModel | None) -> Tokenizer:
    """Kind and vocabulary size of a ``tokenizer.json``, or of a ``tokenizer.model`` with content ``model``.

    Raises:
        InputError: the file is damaged, or not a tokenizer of a Llama.
    """
    if file.suffix == ".json":
        return _read_tokenizer_json(file)
    model = model or open_tokenizer(file)
    special = model.n_special
    if isinstance(model, SentencePieceModel):
        special = sum(piece.type in _SPECIAL_PIECES for piece in model.pieces)
    return Tokenizer(file.name, model.kind, model.vocab_size, special)


def _read_tokenizer_json(file: Path) -> Tokenizer:
    content = read_json_object(
        file, "TOKENIZER", max_bytes=MAX_TOKENIZER_JSON, max_lists=MAX_LISTS_OF_TOKENIZER
    ).content
    model, added = content.get("model"), content.get("added_tokens") or []
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        raise InputError("TOKENIZER_JSON", "Contains no vocabulary (model.vocab).", file=file)
    added_tokens: list[dict[str, Any]] = [token for token in added if isinstance(token, dict)]
    tokens = {*vocabulary, *(str(token.get("content")) for token in added_tokens)}
    special = sum(token.get("special") is True for token in added_tokens)
    return Tokenizer(file.name, _kind(model, content), len(tokens), special)


def _kind(model: dict[str, Any], content: dict[str, Any]) -> str | None:
    """``sentencepiece`` for BPE with byte fallback, ``tiktoken`` for byte-level BPE."""
    if model.get("type") != "BPE":
        return None
    if model.get("byte_fallback"):
        return "sentencepiece"
    return "tiktoken" if "ByteLevel" in str(content.get("pre_tokenizer")) else None
