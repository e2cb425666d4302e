"""Finds the checkpoint at a path, whatever its format, and the folder with its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llama_convert.checkpoints.dcp import open_chunks, open_dcp
from llama_convert.checkpoints.folders import RANK_FILE, is_dcp, is_huggingface, torch_files
from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint, open_huggingface, read_tensors
from llama_convert.checkpoints.meta import MetaCheckpoint, open_meta
from llama_convert.checkpoints.meta_folder import (
    MetaFolder,
    meta_folder,
    meta_folder_at,
    meta_folders,
    ranks_in,
    without_weights,
)
from llama_convert.checkpoints.other_models import without_llama_weights
from llama_convert.checkpoints.suggestions import SuggestionError, no_checkpoint_at
from llama_convert.checkpoints.tensor_names import resolve_tensor_names
from llama_convert.checkpoints.tensor_set import TensorSet, read_loose_files, read_torch_files
from llama_convert.checkpoints.unsupported import unsupported_content
from llama_convert.errors import InputError
from llama_convert.formats.dcp_metadata import DcpMetadata
from llama_convert.formats.file_kinds import HEAD_SIZE, LEGACY_TORCH, SAFETENSORS, TORCH, kind_of
from llama_convert.formats.files import read_at, reading
from llama_convert.formats.safetensors import read_safetensors_file
from llama_convert.formats.state_dict import WRAPPER_KEYS
from llama_convert.llama.releases import TokenizerKind
from llama_convert.llama.weights import CheckpointFormat
from llama_convert.text import listed

Checkpoint = MetaCheckpoint | HuggingFaceCheckpoint

_PART = re.compile(r".+-\d{1,9}-of-(\d{1,9})\.\w+")
_OPTIMIZER = re.compile(r"optim(?:izer)?s?|state|param_groups")
CONFIG_FROM_HINT = "Pass a folder of the same model that has one: --config-from FOLDER."


@dataclass(frozen=True)
class HuggingFaceFolder:
    """The files of a checkpoint with ``config.json``."""

    path: Path
    """Folder of the weights."""
    settings: Path
    """Folder with ``config.json`` and tokenizer."""
    found: TensorSet | None = None
    """Tensors that were read already; None: those that transformers reads."""


Source = MetaFolder | HuggingFaceFolder


def find_checkpoint(
    path: Path,
    *,
    prefer: CheckpointFormat = "huggingface",
    config_from: Path | None = None,
    model_size: str | None = None,
    output: Path | None = None,
) -> Source:
    """The checkpoint in a folder, or in a file.

    Args:
        path: the path that the user passed.
        prefer: the format to use if the folder has both, as a download from the Hub with ``original/``.
        config_from: the folder with the settings and the tokenizer; by default that of the weights.
        model_size: name of the subfolder to use if there are several in Meta format, for example ``7B``.
        output: the folder to write, which is not searched.

    Raises:
        InputError: there is no checkpoint, there are several, a file is damaged, or there are no settings.
    """
    if path.is_file():
        found = _read_file(path, output)
        if _is_part(path):
            message = "One of several files of a checkpoint."
            raise SuggestionError(message, file=path, instead={str(path): str(path.parent)})
        return _with_settings(path, found, config_from)
    if not path.is_dir():
        raise no_checkpoint_at(path, None, output=output)
    if config_from is not None:
        return _with_settings(path, _tensors_in(path, output), config_from)
    if is_dcp(path):
        return _with_settings(path, _read_dcp(path), None)
    here = HuggingFaceFolder(path, path) if is_huggingface(path) else None
    if here and prefer == "huggingface":
        return here
    folders = meta_folders(path, model_size, output)
    if len(folders) == 1 and (meta := meta_folder_at(folders[0])):
        return meta
    if here and len(folders) < 2:
        return here
    if folders == [path]:
        raise unsupported_content(path) or without_weights(path)
    if not folders and torch_files(path) and (loose := read_loose_files(path)):
        return _with_settings(path, loose, None)
    raise no_checkpoint_at(path, None, output=output)


def open_source(
    source: Source, tokenizer: TokenizerKind | None = None, version: str | None = None
) -> Checkpoint:
    """Read the headers of a checkpoint.

    Args:
        source: its files.
        tokenizer: kind of the tokenizer of a Meta checkpoint, if there is one.
        version: ``--llama-version``, for a Meta checkpoint.

    Raises:
        InputError: a file is missing or damaged, or contradicts another.
        UsageError: ``version`` is unknown or does not match the files.
    """
    if isinstance(source, MetaFolder):
        return open_meta(source, tokenizer, version)
    return open_huggingface(source.path, source.found, source.settings)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of the checkpoint in a folder; raises as `find_checkpoint` and `open_source`."""
    return open_source(find_checkpoint(folder))


def _with_settings(path: Path, found: TensorSet | None, config_from: Path | None) -> Source:
    """The checkpoint with the tensors of a folder or file and the settings there, or of another folder."""
    weights = path if path.is_dir() else path.parent
    folder = config_from or weights
    ranks = (found.files,) if found else ranks_in(weights)
    places = (folder, folder / "original")
    config = next((place for place in places if (place / "config.json").exists()), None)
    params = next((place for place in places if (place / "params.json").exists()), None)
    if params and (config is None or len(ranks) > 1):
        if not ranks:
            found = read_tensors(weights)
            ranks = (found.files,)
        return meta_folder(weights, ranks, found, params)
    if config and len(ranks) > 1:
        message = f"The weights are split into {len(ranks)} ranks, but there is no params.json."
        hint = "Pass a folder with params.json: --config-from FOLDER."
        raise InputError("PARAMS_MISSING", message, file=config, hint=hint)
    if config:
        return HuggingFaceFolder(weights, config, found)
    if config_from is not None:
        message = "Neither config.json nor params.json is in this folder."
        raise InputError("CONFIG_MISSING", message, file=config_from)
    message = "No config.json or params.json next to the weights."
    raise InputError("CONFIG_MISSING", message, file=path, hint=CONFIG_FROM_HINT)


def tensors_at(path: Path) -> TensorSet | None:
    """The tensors of a file, or of a folder without settings; None if they are in files with a usual name.

    Raises:
        InputError: a file is damaged, or there are no weights of a Llama.
    """
    return _read_file(path) if path.is_file() else _tensors_in(path)


def _tensors_in(folder: Path, output: Path | None = None) -> TensorSet | None:
    """The tensors of a folder; None if they are in rank files or files that transformers reads."""
    if is_dcp(folder):
        return _read_dcp(folder)
    if ranks_in(folder) or is_huggingface(folder):
        return None
    if loose := read_loose_files(folder):
        return loose
    raise no_checkpoint_at(folder, None, output=output)


def _read_file(file: Path, output: Path | None = None) -> TensorSet:
    """The tensors of one file.

    Raises:
        InputError: it is neither a safetensors file nor a PyTorch file, or has no weights of a Llama.
    """
    with reading(file) as reader:
        kind = kind_of(read_at(reader, HEAD_SIZE, 0))
    if kind not in (SAFETENSORS, TORCH, LEGACY_TORCH):
        raise no_checkpoint_at(file, None, output=output)
    is_safetensors = kind == SAFETENSORS
    found = TensorSet((file,), read_safetensors_file(file)) if is_safetensors else read_torch_files([file])
    if not resolve_tensor_names(found.tensors, file).weights:
        raise without_llama_weights(found.tensors, file)
    return found


def _is_part(file: Path) -> bool:
    """Whether the names of a file and those next to it are those of ranks, or of parts with their number."""
    if RANK_FILE.fullmatch(file.name):
        return sum(RANK_FILE.fullmatch(each.name) is not None for each in file.parent.iterdir()) > 1
    part = _PART.fullmatch(file.name)
    return part is not None and int(part[1]) > 1


def _read_dcp(folder: Path) -> TensorSet:
    """The weights of a distributed checkpoint; the state of the optimizer is not read.

    The model is the state dict itself, or what is under one of `WRAPPER_KEYS`.

    Raises:
        InputError: there are weights of a Llama in several places, or in none.
    """
    metadata = open_dcp(folder)
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name, tensor in metadata.tensors.items():
        keys: tuple[str, ...] = ()
        rest = tensor.path
        while len(rest) > 1 and rest[0] in WRAPPER_KEYS:
            keys, rest = (*keys, str(rest[0])), rest[1:]
        if len(rest) == 1:
            groups.setdefault(keys, {})[str(rest[0])] = name
    models = {
        keys: names for keys, names in groups.items() if resolve_tensor_names(names, metadata.file).weights
    }
    if not models:
        raise _without_weights(metadata)
    if len(models) > 1:
        message = f"Contains several state dicts: {listed('.'.join(keys) for keys in models)}."
        raise InputError("INPUT_AMBIGUOUS", message, file=folder)
    ((wrapper_keys, names),) = models.items()
    for name in resolve_tensor_names(names, metadata.file).recomputed:  # of any dtype
        del names[name]
    weights = open_chunks(metadata, names.values())
    files = {slab.file for weight in weights.values() for slab in weight.slabs}
    return TensorSet(
        (metadata.file, *sorted(files)), {short: weights[name] for short, name in names.items()}, wrapper_keys
    )


def _without_weights(metadata: DcpMetadata) -> InputError:
    """The error for a distributed checkpoint without weights of a Llama."""
    names = [
        name for name, tensor in metadata.tensors.items() if not _OPTIMIZER.fullmatch(str(tensor.path[0]))
    ]
    if names:
        return without_llama_weights(names, metadata.folder)
    message = "Contains no tensors."
    if metadata.tensors:
        message = "Contains only the state of an optimizer."
    hint = "Pass the folder of the model, for example pytorch_model_fsdp_0 next to optimizer_0."
    return InputError("INPUT_DCP", message, file=metadata.folder, hint=hint)
