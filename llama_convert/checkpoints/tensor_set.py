"""The tensors of a checkpoint, in files of any kind, and the weight of the model that each one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_convert.checkpoints.folders import torch_files
from llama_convert.checkpoints.other_models import MERGE_ADAPTER
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight
from llama_convert.checkpoints.tensor_names import NameFormat, resolve_tensor_names
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats.tensors import StoredTensor
from llama_convert.formats.torch_reader import TorchCheckpoint, read_torch_checkpoint
from llama_convert.llama.weights import CheckpointFormat, Weight
from llama_convert.text import listed

Tensor = StoredTensor | StoredWeight
"""A tensor of one file, or one whose parts are in several."""

_MAX_FILES = 2048
_ROW_ORDERS: dict[NameFormat, CheckpointFormat] = {
    "meta": "meta",
    "torchtune": "meta",
    "huggingface": "huggingface",
}
"""The order of Q and K rows that goes with the names of tensors."""


@dataclass(frozen=True)
class TensorSet:
    """The tensors of one checkpoint, or of one rank."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    """By the names in the files."""
    wrapper_keys: tuple[str, ...] = ()
    """Keys that lead to the state dict in a training checkpoint, outermost first."""


@dataclass(frozen=True)
class ModelTensors:
    """The tensors of a `TensorSet` by the weight that they are."""

    weights: dict[Weight, Tensor]
    constants: tuple[Tensor, ...]
    """Constants of RoPE, which loaders recompute."""
    unknown: tuple[Tensor, ...]
    """All others."""
    row_order: CheckpointFormat | None
    """Order of the Q and K rows; None without weights."""
    note: str | None
    """What was removed from the names, as a sentence; None if nothing."""


def model_tensors(found: TensorSet, file: Path) -> ModelTensors:
    """The weight that each tensor is.

    Args:
        found: the tensors.
        file: the file or folder, for errors.

    Raises:
        InputError: two tensors are the same weight, or there are matrices of a LoRA adapter.
    """
    names = resolve_tensor_names(found.tensors, file)
    if names.adapters:
        raise InputError(
            "TENSOR_UNKNOWN",
            "A matrix of a LoRA adapter, which is not merged into the weights.",
            file=file,
            tensor=names.adapters[0],
            hint=MERGE_ADAPTER,
        )
    tensors = found.tensors
    return ModelTensors(
        {weight: tensors[name] for name, weight in names.weights.items()},
        tuple(tensors[name] for name in names.recomputed),
        tuple(tensors[name] for name in names.unknown),
        _ROW_ORDERS[names.format] if names.format else None,
        _note(found.wrapper_keys, names.prefixes),
    )


def _note(keys: Sequence[str], prefixes: Sequence[str]) -> str | None:
    parts = []
    if keys:
        parts.append(f'Using the state dict under "{".".join(keys)}"; other entries are skipped.')
    if prefixes:
        removed = " and ".join(f'"{prefix}"' for prefix in prefixes)
        parts.append(f"Removed {removed} from the names of tensors.")
    return " ".join(parts) or None


def as_stored_weight(tensor: Tensor) -> StoredWeight:
    """A vector or matrix as a weight with its name in the file."""
    if isinstance(tensor, StoredWeight):
        return tensor
    return StoredWeight(tensor.name, tensor.shape, tensor.dtype, (Piece(0, 0, Slab.of(tensor)),))


def read_torch_files(files: Sequence[Path]) -> TensorSet:
    """The tensors of PyTorch files that together are one checkpoint or rank.

    Raises:
        InputError: a file is damaged, or two files have a tensor of the same name.
    """
    return merged({file: read_torch_checkpoint(file) for file in files})


def merged(contents: dict[Path, TorchCheckpoint]) -> TensorSet:
    """The tensors of several files as one set.

    Raises:
        InputError: two files have a tensor of the same name.
    """
    tensors: dict[str, Tensor] = {}
    for file, content in contents.items():
        for name, tensor in content.tensors.items():
            if name in tensors:
                message = f"Duplicate tensor, also in {tensors[name].file.name}."
                raise InputError("TENSOR_DUPLICATE", message, file=file, tensor=name)
            tensors[name] = tensor
    keys = next((content.wrapper_keys for content in contents.values() if content.wrapper_keys), ())
    return TensorSet(tuple(contents), tensors, keys)


def read_loose_files(folder: Path) -> TensorSet | None:
    """The checkpoint in PyTorch files of any names; None if no file contains weights of a Llama.

    Files without such weights are ignored.

    Raises:
        InputError: a file is damaged, or there are several checkpoints.
    """
    contents: dict[Path, TorchCheckpoint] = {}
    first_error: LlamaConvertError | None = None
    for file in torch_files(folder)[:_MAX_FILES]:
        try:
            content = read_torch_checkpoint(file)
        except InputError as error:
            first_error = first_error or error
            continue
        if resolve_tensor_names(content.tensors, file).weights:
            contents[file] = content
    if first_error and contents:
        raise first_error
    if not contents:
        return None
    _check_one_checkpoint(folder, contents)
    return merged(contents)


def _check_one_checkpoint(folder: Path, contents: dict[Path, TorchCheckpoint]) -> None:
    """Refuse files that each have a whole checkpoint, for example of several epochs."""
    files: dict[str, Path] = {}
    for file, content in contents.items():
        for name in content.tensors:
            other = files.setdefault(name, file)
            if other is not file:
                names = listed(each.name for each in contents)
                message = f"Contains several checkpoints: {other.name} and {file.name} both have {name}."
                hint = f"Pass one file, or move the files of one checkpoint to another folder ({names})."
                raise InputError("INPUT_AMBIGUOUS", message, file=folder, hint=hint)
