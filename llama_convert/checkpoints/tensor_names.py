"""Names of tensors as training programs save them: their format, and the prefixes that wrappers add."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llama_convert.errors import InputError
from llama_convert.llama.weights import (
    RECOMPUTED,
    Weight,
    parse_huggingface_name,
    parse_meta_name,
    parse_torchtune_name,
)

NameFormat = Literal["meta", "huggingface", "torchtune"]

_PARSERS: dict[NameFormat, Callable[[str], Weight | None]] = {
    "meta": parse_meta_name,
    "huggingface": parse_huggingface_name,
    "torchtune": parse_torchtune_name,
}
"""Formats in order of precedence: Meta and torchtune share two names."""
_WRAPPER = re.compile(
    r"(?:^|(?<=\.))(?:"
    r"module"  # DataParallel, DistributedDataParallel, DeepSpeed
    r"|_orig_mod"  # torch.compile
    r"|_fsdp_wrapped_module"  # FullyShardedDataParallel
    r"|_checkpoint_wrapped_module"  # torch.distributed.algorithms: activation checkpointing
    r")\."
)
_LORA = re.compile(r"(?:.+\.)?lora_\w+(?:\..+)?")
"""Matrices of an adapter: ``lora_A`` in PEFT, ``lora_a`` in torchtune."""
_MAX_PARTS = 6
"""Parts between the dots of a name, at most: ``model.layers.0.self_attn.q_proj.weight``."""


@dataclass(frozen=True)
class TensorNames:
    """The names in a checkpoint; each is in one of `weights`, `recomputed`, `adapters` and `unknown`."""

    format: NameFormat | None
    """Format of `weights`; None if there are none."""
    weights: dict[str, Weight]
    """Weights of the model by their name in the file."""
    recomputed: tuple[str, ...]
    """Constants of RoPE, which are not weights (see `RECOMPUTED`)."""
    adapters: tuple[str, ...]
    """Matrices of a LoRA adapter that is not merged."""
    unknown: tuple[str, ...]
    """All other tensors."""
    prefixes: tuple[str, ...]
    """Prefixes that the names in the file have in addition, for example ``("module.", "_orig_mod.")``."""


def resolve_tensor_names(names: Iterable[str], file: Path) -> TensorNames:
    """The format of names and the weight of each.

    Removes the prefixes of wrappers anywhere in a name, then one prefix that all names have in common, for
    example ``model.``: the one that makes the most names those of weights.

    Args:
        names: names of all tensors of a checkpoint.
        file: the file or folder, for errors.

    Raises:
        InputError: two names differ only in the prefixes of wrappers.
    """
    unwrapped: dict[str, str] = {}
    recomputed, adapters, wrappers = [], [], dict[str, None]()
    for name in names:
        short = _WRAPPER.sub("", name)
        if RECOMPUTED.fullmatch(short):
            recomputed.append(name)
        elif _LORA.fullmatch(short):
            adapters.append(name)
        elif short in unwrapped:
            message = f"The same weight as {unwrapped[short]}: the names differ only in prefixes."
            raise InputError("TENSOR_DUPLICATE", message, file=file, tensor=name)
        else:
            unwrapped[short] = name
            wrappers |= dict.fromkeys(_WRAPPER.findall(name))
    name_format, prefix = _format_and_prefix(unwrapped)
    weights = {
        name: weight
        for short, name in unwrapped.items()
        if name_format and (weight := _PARSERS[name_format](short.removeprefix(prefix)))
    }
    return TensorNames(
        name_format,
        weights,
        tuple(recomputed),
        tuple(adapters),
        tuple(name for name in unwrapped.values() if name not in weights),
        (*wrappers, *([prefix] if prefix else [])),
    )


def _format_and_prefix(names: Iterable[str]) -> tuple[NameFormat | None, str]:
    """The format and common prefix with which the most names are those of weights.

    The shortest prefix and the first format win a tie.
    """
    names = list(names)
    for name_format, parse in _PARSERS.items():
        if names and all(map(parse, names)):  # as usual, and much faster than to count
            return name_format, ""
    counts = Counter(reading for name in names for reading in _readings(name))
    formats = list(_PARSERS)
    for name_format, prefix in sorted(counts, key=lambda r: (-counts[r], len(r[1]), formats.index(r[0]))):
        if all(name.startswith(prefix) for name in names):
            return name_format, prefix
    return None, ""


def _readings(name: str) -> Iterator[tuple[NameFormat, str]]:
    """Each format and prefix with which a name is that of a weight."""
    parts = name.split(".")
    for start in range(max(0, len(parts) - _MAX_PARTS), len(parts)):
        rest = ".".join(parts[start:])
        for name_format, parse in _PARSERS.items():
            if parse(rest):
                yield name_format, name.removesuffix(rest)
