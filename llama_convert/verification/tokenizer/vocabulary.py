"""Compares names and ids of all tokens, and which tokens are special."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.findings import Finding, severity_of
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small
from llama_convert.formats.strict_json import MAX_LISTS_OF_TOKENIZER, parse_json
from llama_convert.verification.tokenizer.grouping import Problem, group, listed
from llama_convert.verification.tokenizer.tokenizer_json import Json, TokenizerJson
from llama_convert.verification.tokenizer.tokenizer_model import SPACE, Original

# Llama 3's special tokens by their offset from the first, which is the same in every release that has them.
_OFFSETS = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|finetune_right_pad_id|>": 4,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
    "<|python_tag|>": 10,
}
_NAMED_BY_ALL = [name for name, offset in _OFFSETS.items() if offset in (0, 1, 6, 7, 9)]
_RESERVED = re.compile(r"<\|reserved_special_token_(\d+)\|>")

_META_ONLY = ("<|step_id|>", "<|image|>")
"""Names in Meta's code (llama-models) that the files on the Hub do not have."""


def is_special_name(name: str) -> bool:
    """Whether a release has a special token with this name."""
    return name in _OFFSETS or name in _META_ONLY or _RESERVED.fullmatch(name) is not None


MARK = re.compile(rf"{SPACE}?<(?!0x)[^<>]+>")
"""A piece of sentencepiece that may be a special token, for example `▁<PRE>` and `<step>`, but not a byte."""

# Code, message, condition (on the added token, {} if the token is not added), and consequence.
_FAULTS: tuple[tuple[str, str, Callable[[Json], object], str], ...] = (
    ("TOKEN_SPECIAL", "not among the added tokens", lambda t: not t, "They are not recognized in texts."),
    (
        "TOKEN_SPECIAL",
        "added but not special",
        lambda t: t and t.get("special") is not True,
        "Decoding does not remove them.",
    ),
    (
        "TOKEN_SPECIAL",
        "with lstrip, rstrip or single_word",
        lambda t: t.get("lstrip") or t.get("rstrip") or t.get("single_word"),
        "Spaces next to them are lost.",
    ),
    (
        "TOKEN_NORMALIZED",
        "that are recognized only after normalization",
        lambda t: t.get("normalized"),
        "Set `normalized` to false. Early official files of Llama 2 have this error.",
    ),
)


def size(n_tokens: int, n_rows: int | None) -> Iterator[Finding]:
    """A finding if the number of tokens is not the number of rows of the embedding."""
    if n_rows is not None and n_tokens != n_rows:
        too_many = n_tokens > n_rows
        yield Finding(
            "TOKENIZER_SIZE",
            f"Tokenizer has {n_tokens:,} tokens; the embedding has {n_rows:,} rows.",
            file="tokenizer.json",
            expected=str(n_rows),
            found=str(n_tokens),
            hint="It belongs to another checkpoint." if too_many else "The other rows are never used.",
            severity=severity_of(warning=not too_many),
        )


def vocabulary(original: Original, tokenizer: TokenizerJson) -> Iterator[Finding]:
    """Findings on tokens that are missing or extra, or have another name or id."""
    ids, names, known = tokenizer.ids, original.names, set(original.names)
    unnamed = range(len(names), original.vocab_size)
    missing = {number: name for number, name in enumerate(names) if name not in ids}
    extra = {number: name for name, number in ids.items() if name not in known and number not in unnamed}
    yield from _moved({name: number for number, name in enumerate(names)}, ids)
    renamed = [
        Problem(f"{extra.pop(number)!r} instead of {name!r}", f"{name!r} at id {number}")
        for number, name in missing.items()
        if number in extra
    ]
    yield from group("TOKEN_RENAMED", "token", "with another name", renamed)
    used = set(ids.values())
    lost = [f"{name!r} (id {number})" for number, name in missing.items() if number not in used]
    lost += [f"id {number}" for number in unnamed if number not in used]
    yield from group("TOKEN_MISSING", "token", "missing", map(Problem, lost))
    for added in (False, True):
        # Fine-tuning may add tokens after all others; `size` compares them with the embedding.
        extra_tokens = [
            Problem(f"{name!r} (id {number})")
            for number, name in extra.items()
            if added == (number >= original.vocab_size and name in tokenizer.added)
        ]
        yield from group(
            "TOKEN_EXTRA", "token", "not in the original", extra_tokens, severity=severity_of(warning=added)
        )


def _moved(expected: Mapping[str, int], ids: Mapping[str, int]) -> Iterator[Finding]:
    """A finding on tokens whose id is not the expected one."""
    moved = {name: number for name, number in expected.items() if ids.get(name, number) != number}
    problems = [
        Problem(f"{name!r} ({ids[name]} instead of {number})", f"{name!r} at id {number}", str(ids[name]))
        for name, number in moved.items()
    ]
    hint = _move_hint({number: ids[name] for name, number in moved.items()})
    yield from group("TOKEN_IDS", "token", "with a wrong id", problems, hint=hint)


def _move_hint(to: Mapping[int, int]) -> str | None:
    """How ids were moved, if in a simple way."""
    swaps = [f"{a} and {b}" for a, b in to.items() if a < b and to.get(b) == a]
    if 2 * len(swaps) == len(to):
        return f"Ids {listed(swaps)} are swapped."
    shifts = {b - a for a, b in to.items()}
    if len(shifts) == 1:
        return f"From id {min(to)} on, ids are shifted by {shifts.pop():+d}."
    return "The same ids are in another order." if to.keys() == set(to.values()) else None


def special(original: Original, tokenizer: TokenizerJson) -> Iterator[Finding]:
    """Findings on special tokens without the properties of special tokens, and on others that have them."""
    ids, added = tokenizer.ids, tokenizer.added
    names = sorted((name for name in ids if ids[name] in original.special), key=ids.__getitem__)
    for code, what, applies, hint in _FAULTS:
        problems = [Problem(repr(name)) for name in names if applies(added.get(name, {}))]
        severity = severity_of(warning=code == "TOKEN_NORMALIZED")
        yield from group(code, "special token", what, problems, hint=hint, severity=severity)
    ordinary = [
        Problem(repr(name))
        for name in added
        if ids[name] < len(original.names)
        and ids[name] not in original.special
        and not (original.kind == "sentencepiece" and MARK.fullmatch(name))
    ]
    yield from group("TOKEN_SPECIAL", "ordinary token", "recognized in texts like special tokens", ordinary)
    if original.kind == "tiktoken":
        yield from _special_names(len(original.names), ids)


def _special_names(first: int, ids: Mapping[str, int]) -> Iterator[Finding]:
    """Warnings on the names common to all releases of Llama 3, which tokenizer.model does not contain."""
    reserved = {int(match[1]): n for name, n in ids.items() if (match := _RESERVED.fullmatch(name))}
    in_order = zip(sorted(reserved), sorted(reserved.values()), strict=True)
    expected = {name: first + offset for name, offset in _OFFSETS.items()}
    expected |= {f"<|reserved_special_token_{number}|>": n for number, n in in_order}
    yield from _moved(expected, ids)
    absent = [Problem(repr(name)) for name in _NAMED_BY_ALL if name not in ids]
    what = "of Llama 3 missing by name"
    hint = "Correct only if the checkpoint was trained with custom names."
    yield from group("TOKEN_RENAMED", "special token", what, absent, hint=hint, severity="warning")


def lost_tokens(original: Original, folder: Path, file: str) -> Iterator[Finding]:
    """A warning on tokens that a Hugging Face folder adds and a `tokenizer.model` made from it lacks."""
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
    hint = "Meta format cannot store added tokens. Their rows of the embedding are kept."
    for finding in group(
        "TOKEN_MISSING",
        "added token",
        "of the source missing",
        map(Problem, shown),
        hint=hint,
        severity="warning",
    ):
        yield replace(finding, file=file)


def _recorded(folder: Path) -> set[tuple[str, int | None]]:
    """Names and ids of added tokens in all files of a folder; the id is None if no file has it."""
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
    """The content of a JSON file; empty if it is missing or damaged."""
    try:
        content = parse_json(read_small(path, MAX_TOKENIZER_JSON), max_lists=MAX_LISTS_OF_TOKENIZER)
    except (InputError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
