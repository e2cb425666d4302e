"""Tokens that a Hugging Face folder has and a `tokenizer.model` made from it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.findings import Finding
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small
from llama_convert.formats.strict_json import MAX_LISTS_OF_TOKENIZER, parse_json
from llama_convert.verification.tokenizer.original import Original
from llama_convert.verification.tokenizer.vocabulary import is_special_name
from llama_convert.verification.tokenizer.wording import Wrong, group


def lost_tokens(original: Original, folder: Path, file: str) -> Iterator[Finding]:
    """Tokens that any file of a Hugging Face folder adds, and Meta's code would not have."""
    ids = {name: number for number, name in enumerate(original.names)}

    def is_lost(name: str, number: int | None) -> bool:
        in_special = number is None or len(ids) <= number < original.vocab_size
        if original.kind == "tiktoken" and in_special and is_special_name(name):
            return False
        return name not in ids or number not in (None, ids[name])

    lost = sorted(
        (number is None, number or 0, name) for name, number in _recorded(folder) if is_lost(name, number)
    )
    shown = dict.fromkeys(
        repr(name) if unknown else f"{name!r} (id {number})" for unknown, number, name in lost
    )
    hint = "Meta's form has no place for added tokens; their rows of the embedding are kept."
    for finding in group(
        "TOKEN_MISSING",
        "added token",
        "of the source missing",
        map(Wrong, shown),
        hint=hint,
        severity="warning",
    ):
        yield replace(finding, file=file)


def _recorded(folder: Path) -> set[tuple[str, int | None]]:
    """Names and ids of added tokens; names alone if no file has their ids."""
    named: list[Any] = []
    settings = [_read(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    for key, value in (item for content in settings for item in content.items()):
        if key.endswith(("_token", "_tokens")):
            named += value if isinstance(value, list) else [value]
    names = [token.get("content") if isinstance(token, dict) else token for token in named]
    tokens: list[tuple[Any, Any]] = list(_read(folder / "added_tokens.json").items())
    listed = _read(folder / "tokenizer.json").get("added_tokens")
    for token in listed if isinstance(listed, list) else []:
        with suppress(AttributeError):
            tokens.append((token.get("content"), token.get("id")))
    described = settings[0].get("added_tokens_decoder")
    for number, token in described.items() if isinstance(described, dict) else []:
        with suppress(AttributeError, ValueError):
            tokens.append((token.get("content"), int(number)))
    numbered = {(name, n) for name, n in tokens if name and isinstance(name, str) and type(n) is int}
    known = {name for name, _ in numbered}
    return numbered | {(name, None) for name in names if name and isinstance(name, str) and name not in known}


def _read(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none."""
    try:
        content = parse_json(read_small(path, MAX_TOKENIZER_JSON), max_lists=MAX_LISTS_OF_TOKENIZER)
    except (InputError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
