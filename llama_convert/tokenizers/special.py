"""The 256 special tokens that follow those of a tiktoken file.  The file does not name them; releases do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Literal, get_args

from llama_convert.errors import UsageError

SpecialNaming = Literal["llama3", "llama3.1"]

N_SPECIAL = 256
"""Special tokens of every Llama 3 (Meta's `llama3/tokenizer.py: num_reserved_special_tokens`)."""

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
END_OF_TURN = "<|eot_id|>"


def _reserved(number: int) -> str:
    return f"<|reserved_special_token_{number}|>"


# The names up to the last used one, as the Hub has them; reserved names fill the rest.  Meta's own list for
# 3.1 and later differs from the Hub's in slots that no text model uses.
_NAMED: dict[SpecialNaming, tuple[str, ...]] = {
    "llama3": (
        BEGIN_OF_TEXT,
        END_OF_TEXT,
        *map(_reserved, range(4)),
        "<|start_header_id|>",
        "<|end_header_id|>",
        _reserved(4),
        END_OF_TURN,
    ),
    "llama3.1": (
        BEGIN_OF_TEXT,
        END_OF_TEXT,
        *map(_reserved, range(2)),
        "<|finetune_right_pad_id|>",
        _reserved(2),
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        END_OF_TURN,
        "<|python_tag|>",
    ),
}
assert set(_NAMED) == set(get_args(SpecialNaming))

SPECIAL_NAMES = frozenset(
    chain(*_NAMED.values(), map(_reserved, range(N_SPECIAL)), ("<|step_id|>", "<|image|>"))
)
"""All names that releases have for special tokens, those of Meta's own code (llama-models) included."""


def special_tokens(naming: SpecialNaming, override: Sequence[str] = ()) -> tuple[str, ...]:
    """The 256 names in id order: `override`, or else those of `naming`, then unused reserved names.

    Raises:
        UsageError: more than 256 names, an empty or repeated one, or no begin or end of text among them.
    """
    named = tuple(override) or _NAMED[naming]
    if len(named) > N_SPECIAL:
        raise UsageError("SPECIAL_TOKENS", f"{len(named)} special tokens; the model has room for {N_SPECIAL}")
    if not all(named) or len(set(named)) < len(named):
        raise UsageError("SPECIAL_TOKENS", "special tokens must be different from each other and not empty")
    for needed in (BEGIN_OF_TEXT, END_OF_TEXT):
        if needed not in named:
            raise UsageError("SPECIAL_TOKENS", f"the special tokens lack {needed}")
    fill = (name for name in map(_reserved, range(2 * N_SPECIAL)) if name not in named)
    return (*named, *islice(fill, N_SPECIAL - len(named)))
