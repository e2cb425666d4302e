"""Added tokens in the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small
from llama_convert.formats.strict_json import MAX_LISTS_OF_TOKENIZER, parse_json

RECORDS = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files that transformers reads added tokens from."""

_ROLE = re.compile(r".*_tokens?")


def added_tokens(file: Path) -> list[tuple[str, int | None]]:
    """Names of the added tokens in one of the `RECORDS`, with their ids or None; empty if it does not exist.

    Raises:
        InputError: the file is not a JSON object.
    """
    if not file.exists():
        return []
    try:
        content = parse_json(read_small(file, MAX_TOKENIZER_JSON), max_lists=MAX_LISTS_OF_TOKENIZER)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError("TOKENIZER_JSON", "Not a JSON object.", file=file)
    if file.name == "added_tokens.json":
        tokens = list(content.items())
    else:
        tokens = [*_from_list(content.get("added_tokens")), *_from_map(content.get("added_tokens_decoder"))]
        roles = [value for key, value in content.items() if _ROLE.fullmatch(key)]
        tokens += [(name, None) for value in roles for name in _names(value)]
    return [(name, number) for name, number in tokens if name and (number is None or type(number) is int)]


def _from_list(tokens: Any) -> Iterator[tuple[str, Any]]:
    """Tokens of ``added_tokens`` of tokenizer.json."""
    for token in tokens if isinstance(tokens, list) else []:
        if isinstance(token, dict):
            yield str(token.get("content", "")), token.get("id")


def _from_map(tokens: Any) -> Iterator[tuple[str, Any]]:
    """Tokens of ``added_tokens_decoder`` of tokenizer_config.json."""
    for number, token in tokens.items() if isinstance(tokens, dict) else []:
        if isinstance(token, dict) and number.isdecimal() and len(number) < 10:
            yield str(token.get("content", "")), int(number)


def _names(value: Any) -> Iterator[str]:
    """Names of tokens in a string, an object with ``content``, or a list of these."""
    for each in value if isinstance(value, list) else [value]:
        name = each.get("content") if isinstance(each, dict) else each
        if isinstance(name, str):
            yield name
