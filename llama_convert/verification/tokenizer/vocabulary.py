"""Every token's id and name, and which tokens are special."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from llama_convert.findings import Finding, severity_of
from llama_convert.verification.tokenizer.original import SPACE, Original
from llama_convert.verification.tokenizer.wording import Wrong, group, listed
from llama_convert.verification.tokenizer.written import Json, Written

# Llama 3's special tokens by their distance from the first; releases name some of these, and move none.
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

_METAS_OWN = ("<|step_id|>", "<|image|>")
"""Names that Meta's code (llama-models) has and the Hub's files have not."""


def is_special_name(name: str) -> bool:
    """Whether a release has a special token with this name."""
    return name in _OFFSETS or name in _METAS_OWN or _RESERVED.fullmatch(name) is not None


MARK = re.compile(rf"{SPACE}?<(?!0x)[^<>]+>")
"""A piece of sentencepiece that may also be a special token, as `▁<PRE>` and `<step>` are; no byte is."""

# Code, what is said, when (of an added token, {} where it is none), and why it matters.
_FAULTS: tuple[tuple[str, str, Callable[[Json], object], str], ...] = (
    ("TOKEN_SPECIAL", "not among the added tokens", lambda t: not t, "They are not cut out of the text."),
    (
        "TOKEN_SPECIAL",
        "added but not special",
        lambda t: t and t.get("special") is not True,
        "They are left in answers.",
    ),
    (
        "TOKEN_SPECIAL",
        "that want or take the spaces around them",
        lambda t: t.get("lstrip") or t.get("rstrip") or t.get("single_word"),
        "Spaces are lost.",
    ),
    (
        "TOKEN_NORMALIZED",
        "looked for only after spaces were rewritten, and not found within words",
        lambda t: t.get("normalized"),
        "Early published files of Llama 2 are so; `normalized` is to be false.",
    ),
)


def size(words: int, rows: int | None) -> Iterator[Finding]:
    """Every id needs its row of the embedding."""
    if rows is not None and words != rows:
        yield Finding(
            "TOKENIZER_SIZE",
            f"{words:,} tokens, but the embedding has {rows:,} rows",
            file="tokenizer.json",
            expected=str(rows),
            found=str(words),
            hint="It belongs to another checkpoint." if words > rows else "The other rows are never used.",
            severity=severity_of(warning=words < rows),
        )


def vocabulary(original: Original, written: Written) -> Iterator[Finding]:
    """Every name that is missing, too many, another's, or at another id."""
    ids, names, known = written.ids, original.names, set(original.names)
    unnamed = range(len(names), original.vocab_size)
    missing = {number: name for number, name in enumerate(names) if name not in ids}
    extra = {number: name for name, number in ids.items() if name not in known and number not in unnamed}
    yield from _moved({name: number for number, name in enumerate(names)}, ids)
    renamed = [
        Wrong(f"{extra.pop(number)!r} for {name!r}", f"{name!r} at id {number}")
        for number, name in missing.items()
        if number in extra
    ]
    yield from group("TOKEN_RENAMED", "token", "with another name", renamed)
    held = set(ids.values())
    lost = [f"{name!r} (id {number})" for number, name in missing.items() if number not in held]
    lost += [f"id {number}" for number in unnamed if number not in held]
    yield from group("TOKEN_MISSING", "token", "missing", map(Wrong, lost))
    for added in (False, True):
        # Whoever trains a model on may add tokens after all others; the embedding's size says if that is so.
        surplus = [
            Wrong(f"{name!r} (id {number})")
            for number, name in extra.items()
            if added == (number >= original.vocab_size and name in written.added)
        ]
        yield from group(
            "TOKEN_EXTRA", "token", "that the original has not", surplus, severity=severity_of(warning=added)
        )


def _moved(right: Mapping[str, int], ids: Mapping[str, int]) -> Iterator[Finding]:
    """Tokens that have another id than the right one."""
    moved = {name: number for name, number in right.items() if ids.get(name, number) != number}
    wrong = [
        Wrong(f"{name!r} {ids[name]} for {number}", f"{name!r} at id {number}", str(ids[name]))
        for name, number in moved.items()
    ]
    hint = _move_hint({number: ids[name] for name, number in moved.items()})
    yield from group("TOKEN_IDS", "token", "with another id", wrong, hint=hint)


def _move_hint(to: Mapping[int, int]) -> str | None:
    """What kind of move takes each id to the other."""
    swaps = [f"{a} and {b}" for a, b in to.items() if a < b and to.get(b) == a]
    if 2 * len(swaps) == len(to):
        return f"ids {listed(swaps)} are swapped"
    shifts = {b - a for a, b in to.items()}
    if len(shifts) == 1:
        return f"from id {min(to)} on, ids are shifted by {shifts.pop():+d}"
    return "the same ids in another order" if to.keys() == set(to.values()) else None


def special(original: Original, written: Written) -> Iterator[Finding]:
    """Special tokens are cut out of the text, and can be left out of the answer; no others are."""
    ids, added = written.ids, written.added
    names = sorted((name for name in ids if ids[name] in original.special), key=ids.__getitem__)
    for code, said, holds, hint in _FAULTS:
        wrong = [Wrong(repr(name)) for name in names if holds(added.get(name, {}))]
        warning = code == "TOKEN_NORMALIZED"
        yield from group(code, "special token", said, wrong, hint=hint, severity=severity_of(warning=warning))
    ordinary = [
        Wrong(repr(name))
        for name in added
        if ids[name] < len(original.names)
        and ids[name] not in original.special
        and not (original.kind == "sentencepiece" and MARK.fullmatch(name))
    ]
    yield from group("TOKEN_SPECIAL", "ordinary token", "cut out of the text as special ones are", ordinary)
    if original.kind == "tiktoken":
        yield from _special_names(len(original.names), ids)


def _special_names(first: int, ids: Mapping[str, int]) -> Iterator[Finding]:
    """The names that Llama 3's releases agree on; tokenizer.model has none, so others are no error."""
    reserved = {int(match[1]): n for name, n in ids.items() if (match := _RESERVED.fullmatch(name))}
    in_turn = zip(sorted(reserved), sorted(reserved.values()), strict=True)
    right = {name: first + offset for name, offset in _OFFSETS.items()}
    right |= {f"<|reserved_special_token_{number}|>": n for number, n in in_turn}
    yield from _moved(right, ids)
    absent = [Wrong(repr(name)) for name in _NAMED_BY_ALL if name not in ids]
    said = "of every Llama 3 missing by name"
    hint = "Right only if the checkpoint was trained with names of its own."
    yield from group("TOKEN_RENAMED", "special token", said, absent, hint=hint, severity="warning")
