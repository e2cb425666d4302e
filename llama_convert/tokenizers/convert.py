"""From a `tokenizer.model` to the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER, read_small
from llama_convert.tokenizers.options import TokenizerOptions
from llama_convert.tokenizers.pipeline import Json, Pipeline, Tokenizer
from llama_convert.tokenizers.sentencepiece_model import read_sentencepiece
from llama_convert.tokenizers.tiktoken_ranks import read_tiktoken
from llama_convert.tokenizers.tokenizer_json import write_tokenizer_json

NO_LENGTH_LIMIT = int(1e30)
"""What transformers writes as `model_max_length` where there is no limit."""


@dataclass(frozen=True)
class TokenizerReport:
    """What was written, for the other files of the folder to agree with."""

    bos_id: int
    eos_id: int
    vocab_size: int
    files: tuple[Path, ...]


# What often lies in place of a tokenizer.model: code, how it begins, what it is, what to do.
_IMPOSTORS = (
    ("TOKENIZER_EMPTY", rb"\s*\Z", "the file is empty", "Download it again."),
    ("TOKENIZER_POINTER", rb"version https://git-lfs", "only a git-lfs pointer", "Run `git lfs pull`."),
    ("TOKENIZER_HTML", rb"\s*<(!doctype|html|\?xml)", "a web page, not a tokenizer", "Download it again."),
    ("TOKENIZER_JSON", rb"\s*\{", "a JSON file, not Meta's tokenizer.model", "It may be converted already."),
)


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.model`; its content says which kind it is.

    Raises:
        InputError: the file is missing, damaged, or the tokenizer of no Llama.
    """
    try:
        data = read_small(path, MAX_TOKENIZER)
    except InputError as error:
        raise InputError("TOKENIZER_MISSING", f"cannot be read: {error.message}", file=path) from None
    for code, beginning, message, hint in _IMPOSTORS:
        if re.match(beginning, data, re.IGNORECASE):
            raise InputError(code, message, file=path, hint=hint)
    # A protocol buffer begins with the tag of its first piece; no line of base64 does.
    if data.startswith(b"\n"):
        return read_sentencepiece(path, data)
    if re.match(rb"[\x20-\x7e]+\r?(\n|\Z)", data):
        return read_tiktoken(path, data)
    raise InputError("TOKENIZER_FORMAT", "neither a sentencepiece model nor tiktoken ranks", file=path)


def convert_tokenizer(
    tokenizer: Tokenizer, folder: Path, options: TokenizerOptions | None = None
) -> TokenizerReport:
    """Write the tokenizer files into `folder`, which exists; files of the same names are replaced.

    Beside the JSON files goes a copy of a sentencepiece model, as on the Hub; other programs read it.

    Raises:
        UsageError: the special tokens of `options` cannot be used.
        OSError: the folder cannot be written.
    """
    options = options or TokenizerOptions()
    pipeline = tokenizer.pipeline(options)
    path = folder / "tokenizer.json"
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        write_tokenizer_json(pipeline, stream)
    written = [path]
    for name, value in (
        ("tokenizer_config.json", _config(pipeline, options)),
        ("special_tokens_map.json", _roles(pipeline, _described)),
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
        bos_id=pipeline.special[pipeline.bos],
        eos_id=pipeline.special[pipeline.eos],
        vocab_size=tokenizer.vocab_size,
        files=tuple(written),
    )


def _config(pipeline: Pipeline, options: TokenizerOptions) -> Json:
    """`tokenizer_config.json` in the form that transformers 4 and 5 both read right.

    The class is the one that takes tokenizer.json as it is.  `add_prefix_space` and `add_bos_token` are left
    out: where they are present, versions of transformers rebuild parts of the tokenizer by them.  The
    clean-up of spaces is off because it makes decoding lossy ("a , b" becomes "a, b").
    """
    return {
        "added_tokens_decoder": {
            str(number): _described(text) | {"special": True} for text, number in pipeline.special.items()
        },
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": options.model_max_length or NO_LENGTH_LIMIT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_roles(pipeline, str),
        **({"chat_template": options.chat_template} if options.chat_template else {}),
    }


def _roles(pipeline: Pipeline, form: Callable[[str], Any]) -> Json:
    roles = {"bos_token": pipeline.bos, "eos_token": pipeline.eos, "unk_token": pipeline.unk}
    return {role: form(text) for role, text in roles.items() if text is not None}


def _described(text: str) -> Json:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
