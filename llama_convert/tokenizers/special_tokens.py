"""Names of the 256 special tokens after those of a tiktoken vocabulary, whose file does not contain them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Literal, get_args

from llama_convert.errors import UsageError

SpecialTokenNames = Literal["llama3", "llama3.1"]

N_SPECIAL = 256
"""Special tokens of Llama 3 (Meta's `llama3/tokenizer.py: num_reserved_special_tokens`)."""

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
END_OF_TURN = "<|eot_id|>"


def _reserved(number: int) -> str:
    return f"<|reserved_special_token_{number}|>"


# Names on the Hub, up to the last that is used; reserved names follow.  Meta's code for 3.1 and later has
# other names for ids that text models do not use.
_NAMES: dict[SpecialTokenNames, tuple[str, ...]] = {
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
assert set(_NAMES) == set(get_args(SpecialTokenNames))

SPECIAL_NAMES = frozenset(
    chain(*_NAMES.values(), map(_reserved, range(N_SPECIAL)), ("<|step_id|>", "<|image|>"))
)
"""Names of special tokens in all releases, including those in Meta's code (llama-models)."""


def special_tokens(names: SpecialTokenNames, override: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the 256 special tokens in the order of their ids.

    Args:
        names: the release whose names to use.
        override: names to use instead.  Unused reserved names follow.

    Raises:
        UsageError: too many names, an empty or duplicate name, or no begin or end of text.
    """
    used = tuple(override) or _NAMES[names]
    if len(used) > N_SPECIAL:
        message = f"Too many special tokens: {len(used)}, but the model has only {N_SPECIAL}."
        raise UsageError("BAD_SPECIAL_TOKENS", message)
    if not all(used) or len(set(used)) < len(used):
        raise UsageError("BAD_SPECIAL_TOKENS", "Special tokens are empty or duplicate.")
    for required in (BEGIN_OF_TEXT, END_OF_TEXT):
        if required not in used:
            raise UsageError("BAD_SPECIAL_TOKENS", f"Missing special token {required}.")
    unused = (name for name in map(_reserved, range(2 * N_SPECIAL)) if name not in used)
    return (*used, *islice(unused, N_SPECIAL - len(used)))
