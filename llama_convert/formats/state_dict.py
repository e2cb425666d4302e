"""The state dict inside the object of a PyTorch file, for example of a training checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama_convert.errors import InputError
from llama_convert.formats.pickle_objects import Pairs, TensorRecord
from llama_convert.text import listed

WRAPPER_KEYS = ("model", "module", "state_dict", "model_state_dict", "ema")
"""Keys under which training programs save a state dict, next to the state of the optimizer and numbers."""
_MAX_DEPTH = 4
"""Nested wrappers; two are usual."""


@dataclass(frozen=True)
class StateDict:
    """A state dict and where it was found."""

    items: Pairs
    """Names and values, all `TensorRecord` in a valid file."""
    keys: tuple[str, ...]
    """Keys that lead to it, outermost first; empty if it is the whole object."""


def find_state_dict(content: Pairs, file: Path) -> StateDict:
    """The only state dict in an object.

    A dict without any of `WRAPPER_KEYS` is a state dict if it contains a tensor.  Otherwise, the state dict
    is in the values of these keys; other entries are ignored.  An object without a state dict is returned
    itself.

    Args:
        content: what `read_pickle` returns for the object.
        file: the file, for errors.

    Raises:
        InputError: there are several state dicts, or a key occurs twice.
    """
    found: list[StateDict] = []
    pending = [StateDict(content, ())]
    visited: set[int] = set()
    for candidate in pending:  # grows
        if id(candidate.items) in visited:  # one dict under two keys
            continue
        visited.add(id(candidate.items))
        wrapped = _wrapped(candidate, file)
        if wrapped and len(candidate.keys) < _MAX_DEPTH:
            pending += wrapped
        elif any(isinstance(value, TensorRecord) for _, value in candidate.items):
            found.append(candidate)
    if len(found) > 1:
        message = f"Contains several state dicts: {listed('.'.join(each.keys) for each in found)}."
        hint = "Save one of them alone with torch.save."
        raise InputError("INPUT_AMBIGUOUS", message, file=file, hint=hint)
    return found[0] if found else pending[0]


def _wrapped(outer: StateDict, file: Path) -> list[StateDict]:
    """The dicts under `WRAPPER_KEYS` of a dict."""
    inner: dict[str, StateDict] = {}
    for key, value in outer.items:
        if isinstance(value, Pairs) and type(key) is str and key in WRAPPER_KEYS:
            if key in inner:
                raise InputError("INPUT_PICKLE", f'The key "{key}" occurs twice.', file=file)
            inner[key] = StateDict(value, (*outer.keys, key))
    return list(inner.values())
