"""Conversion of a `tokenizer.model` to the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, read_small
from llama_convert.tokenizers.sentencepiece_model import read_sentencepiece
from llama_convert.tokenizers.tiktoken_ranks import read_tiktoken
from llama_convert.tokenizers.tokenizer import Tokenizer, TokenizerOptions
from llama_convert.tokenizers.tokenizer_json import Json, TokenizerJson, write_tokenizer_json

NO_LENGTH_LIMIT = int(1e30)
"""`model_max_length` in files of transformers if there is no limit."""


@dataclass(frozen=True)
class TokenizerReport:
    """Ids and files that were written."""

    bos_id: int
    eos_id: int
    vocab_size: int
    files: tuple[Path, ...]


# Other files under the name tokenizer.model: error code, beginning, message, hint.
_OTHER_FILES = (
    ("TOKENIZER_EMPTY", rb"\s*\Z", "The file is empty.", "Download it again."),
    ("TOKENIZER_LFS_POINTER", rb"version https://git-lfs", "Only a git-lfs pointer.", "Run: git lfs pull"),
    (
        "TOKENIZER_HTML",
        rb"\s*<(!doctype|html|\?xml)",
        "Not a tokenizer but an HTML page.",
        "Download it again.",
    ),
    (
        "TOKENIZER_JSON",
        rb"\s*\{",
        "Not a tokenizer.model but a JSON file (already converted?).",
        "Pass the tokenizer.model of the release.",
    ),
)


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.model`; detects its kind by its content.

    Raises:
        InputError: the file is missing, damaged, or not a tokenizer of Llama.
    """
    try:
        data = read_small(path, MAX_TOKENIZER)
    except InputError as error:
        raise InputError("TOKENIZER_MISSING", error.message, file=path, hint=error.hint) from None
    for code, beginning, message, hint in _OTHER_FILES:
        if re.match(beginning, data, re.IGNORECASE):
            raise InputError(code, message, file=path, hint=hint)
    # The tag of the first piece in a protocol buffer, which is not base64.
    if data.startswith(b"\n"):
        return read_sentencepiece(path, data)
    if re.match(rb"[\x20-\x7e]+\r?(\n|\Z)", data):
        return read_tiktoken(path, data)
    message = "Neither a sentencepiece model nor a tiktoken vocabulary."
    raise InputError("TOKENIZER_FORMAT", message, file=path)


def convert_tokenizer(
    tokenizer: Tokenizer, folder: Path, options: TokenizerOptions | None = None
) -> TokenizerReport:
    """Write the tokenizer files to an existing folder, replacing files with the same names.

    A sentencepiece model is also copied, as on the Hub, because other programs read it.

    Raises:
        UsageError: the special tokens in `options` are invalid.
        OSError: a file cannot be written.
    """
    options = options or TokenizerOptions()
    content = tokenizer.tokenizer_json(options)
    path = folder / "tokenizer.json"
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        write_tokenizer_json(content, stream)
    written = [path]
    for name, value in (
        ("tokenizer_config.json", _config(content, options)),
        ("special_tokens_map.json", _roles(content, _token_object)),
    ):
        path = folder / name
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    if tokenizer.kind == "sentencepiece":
        path = folder / "tokenizer.model"
        path.write_bytes(read_small(tokenizer.path, MAX_TOKENIZER))
        written.append(path)
    return TokenizerReport(
        bos_id=content.special[content.bos],
        eos_id=content.special[content.eos],
        vocab_size=tokenizer.vocab_size,
        files=tuple(written),
    )


def _config(content: TokenizerJson, options: TokenizerOptions) -> Json:
    """`tokenizer_config.json` for transformers 4 and 5.

    `PreTrainedTokenizerFast` uses tokenizer.json unchanged.  `add_prefix_space` and `add_bos_token` are
    omitted: with them, some versions rebuild parts of the tokenizer.  `clean_up_tokenization_spaces` is off
    because it makes decoding lossy ("a , b" becomes "a, b").
    """
    return {
        "added_tokens_decoder": {
            str(number): _token_object(text) | {"special": True} for text, number in content.special.items()
        },
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": options.model_max_length or NO_LENGTH_LIMIT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_roles(content, str),
        **({"chat_template": options.chat_template} if options.chat_template else {}),
    }


def _roles(content: TokenizerJson, form: Callable[[str], Any]) -> Json:
    roles = {"bos_token": content.bos, "eos_token": content.eos, "unk_token": content.unk}
    return {role: form(text) for role, text in roles.items() if text is not None}


def _token_object(text: str) -> Json:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
