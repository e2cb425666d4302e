"""Tokens that a Hugging Face folder has and a `tokenizer.model` made from it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.formats.files import read_small
from llama_convert.verification.report import Finding
from llama_convert.verification.tokenizer.original import Original
from llama_convert.verification.tokenizer.vocabulary import is_special_name
from llama_convert.verification.tokenizer.wording import Wrong, group

_MAX_SIZE = 64 << 20


def lost_tokens(original: Original, folder: Path, file: str) -> Iterator[Finding]:
    """Tokens that any file of a Hugging Face folder adds, and Meta's code would not have."""
    ids = {name: number for number, name in enumerate(original.names)}

    def is_lost(name: str, number: int | None) -> bool:
        in_special = number is None or len(ids) <= number < original.n_words
        if original.kind == "tiktoken" and in_special and is_special_name(name):
            return False
        return name not in ids or number not in (None, ids[name])

    lost = [
        Wrong(repr(name) if number is None else f"{name!r} (id {number})")
        for name, number in sorted(
            _recorded(folder).items(), key=lambda token: (token[1] is None, token[1] or 0)
        )
        if is_lost(name, number)
    ]
    hint = "Meta's form has no place for added tokens; their rows of the embedding are kept."
    for finding in group(
        "TOKEN_MISSING", "added token", "of the source missing", lost, hint=hint, warning=True
    ):
        yield replace(finding, file=file)


def _recorded(folder: Path) -> dict[str, int | None]:
    """Names of added tokens, with ids where any file has them."""
    found: dict[str, int | None] = {}
    settings = [_read(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    for key, value in (item for content in settings for item in content.items()):
        if key.endswith(("_token", "_tokens")):
            for each in value if isinstance(value, list) else [value]:
                name = each.get("content") if isinstance(each, dict) else each
                if isinstance(name, str) and name:
                    found[name] = None
    tokens: list[tuple[Any, Any]] = list(_read(folder / "added_tokens.json").items())
    listed, described = (
        _read(folder / "tokenizer.json").get("added_tokens"),
        settings[0].get("added_tokens_decoder"),
    )
    for token in listed if isinstance(listed, list) else []:
        with suppress(AttributeError):
            tokens.append((token.get("content"), token.get("id")))
    for number, token in described.items() if isinstance(described, dict) else []:
        with suppress(AttributeError, ValueError):
            tokens.append((token.get("content"), int(number)))
    return found | {name: n for name, n in tokens if name and isinstance(name, str) and isinstance(n, int)}


def _read(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none."""
    try:
        content = json.loads(read_small(path, _MAX_SIZE))
    except (InputError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
