"""Reader of checkpoints with ``config.json``: safetensors files, PyTorch files, or tensors read elsewhere."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from llama_convert.checkpoints.folders import safetensors_files
from llama_convert.checkpoints.huggingface_config import HuggingFaceConfig, read_config
from llama_convert.checkpoints.json_object import read_json_object
from llama_convert.checkpoints.other_models import known_model
from llama_convert.checkpoints.shards import CONTAINERS, INDEX_FILE, SINGLE_FILE, Container
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight
from llama_convert.checkpoints.tensor_set import (
    ModelTensors,
    Tensor,
    TensorSet,
    as_stored_weight,
    model_tensors,
    read_loose_files,
)
from llama_convert.checkpoints.unsupported import unsupported_content
from llama_convert.dtypes import WEIGHT_DTYPES, Dtype
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats.file_kinds import HEAD_SIZE, LEGACY_TORCH, SAFETENSORS, TORCH, kind_of
from llama_convert.formats.files import is_file_name, read_at, reading
from llama_convert.formats.safetensors import read_safetensors_file
from llama_convert.formats.strict_json import shown
from llama_convert.formats.tensors import StoredTensor
from llama_convert.formats.torch_reader import TorchCheckpoint, read_torch_checkpoint
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.releases import (
    DetectedRelease,
    Release,
    ReleaseTraits,
    TokenizerKind,
    detect_release,
)
from llama_convert.llama.weights import (
    EMBEDDING,
    HEAD,
    CheckpointFormat,
    Weight,
    WeightKind,
    huggingface_weights,
)
from llama_convert.text import is_printable_name, quoted

_MAX_PROBLEMS = 200
_MAX_INDEX = 2 << 20
"""Bytes; the index of 405B has 0.1 MB."""


@dataclass(frozen=True)
class HuggingFaceCheckpoint:
    """A checkpoint with ``config.json``; only its headers are read."""

    folder: Path
    """Folder of the weights."""
    settings: HuggingFaceConfig
    """``config.json``."""
    config: LlamaConfig
    """Hyper-parameters by ``config.json`` and the tensors."""
    files: tuple[Path, ...]
    """Files with the weights."""
    dtype: Dtype
    """Dtype of most weights, by bytes."""
    weights: dict[Weight, StoredWeight]
    """In the order of the model.  Contains a tied LM head only if the files do."""
    warnings: tuple[LlamaConvertError, ...]
    """Unknown keys, and contradictions between files with how they were resolved."""
    tensors: Mapping[str, Tensor] = field(repr=False, compare=False)
    """All tensors, also those that are not weights, by their names in the files."""
    row_order: CheckpointFormat = "huggingface"
    """Order of the Q and K rows, which goes with the names of the tensors."""
    note: str | None = None
    """What was removed from the names of the tensors; None if nothing."""
    format: ClassVar[CheckpointFormat] = "huggingface"

    @cached_property
    def detected(self) -> DetectedRelease:
        """The detected release."""
        return self.detect(None)

    def detect(self, version: str | None, tokenizer: TokenizerKind | None = None) -> DetectedRelease:
        """The release of the checkpoint.

        Without ``version``, context length and RoPE factor also distinguish releases.

        Args:
            version: ``--llama-version``; selects one of the releases that match.
            tokenizer: kind of tokenizer, if it is known.

        Raises:
            UsageError: ``version`` is unknown or does not match the files.
        """
        traits = self.traits(tokenizer)
        detected = detect_release(traits, version)
        candidates = detected.candidates
        factor = self.config.rope_scaling.factor if self.config.rope_scaling else None
        settings = (self.config.context_length, factor)
        matching = [row for row in candidates if (row.context_length, row.rope_factor) == settings]
        if version is not None or not matching or len(matching) == len(candidates):
            return detected
        evidence = [f"context length {self.config.context_length}"]
        evidence += [f"RoPE factor {factor:g}"] if factor else []

        def unlikely(release: Release) -> tuple[bool, bool]:
            return release is not detected.release, not re.search(release.name_pattern, traits.names)

        return detected.narrowed_to(min(matching, key=unlikely), matching, *evidence)

    def traits(self, tokenizer: TokenizerKind | None = None) -> ReleaseTraits:
        """The traits that both formats have."""
        config = self.config
        return ReleaseTraits(
            shape=(config.dim, config.n_layers, config.n_heads, config.n_kv_heads, config.ffn_dim),
            vocab_size=config.vocab_size,
            norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            use_scaled_rope=config.rope_scaling is not None,
            tied=config.tied,
            nested=False,
            dtype=self.dtype.name,
            tokenizer=tokenizer,
            names=self.folder.resolve().name.lower(),
        )


def open_huggingface(
    folder: Path, found: TensorSet | None = None, settings: Path | None = None
) -> HuggingFaceCheckpoint:
    """Read the headers of a checkpoint.  Reads weights only to check whether an LM head is tied.

    Args:
        folder: the folder of the weights.
        found: its tensors; by default those that transformers reads.
        settings: the folder with ``config.json``, if it is another one.

    Raises:
        InputError: a file is missing or damaged, or contradicts another: the first problem of `read_headers`.
    """
    checkpoint, problems = read_headers(folder, found, settings)
    if problems or checkpoint is None:
        raise problems[0]
    return checkpoint


def read_headers(
    folder: Path, found: TensorSet | None = None, settings: Path | None = None
) -> tuple[HuggingFaceCheckpoint | None, list[LlamaConvertError]]:
    """The checkpoint as far as it is readable, and all problems of its headers (at most 200).

    Missing weights and those of the wrong shape or dtype are not in the checkpoint.  It is None without a
    config or without any valid weight.  Arguments are those of `open_huggingface`.
    """
    problems: list[LlamaConvertError] = []
    checkpoint = _read_headers(folder, found, settings or folder, problems)
    if len(problems) > _MAX_PROBLEMS:
        more = f"{len(problems) - _MAX_PROBLEMS:,} more problems."
        problems[_MAX_PROBLEMS:] = [InputError(problems[_MAX_PROBLEMS].code, more, file=folder)]
    return checkpoint, problems


def _read_headers(
    folder: Path, found: TensorSet | None, settings: Path, problems: list[LlamaConvertError]
) -> HuggingFaceCheckpoint | None:
    config: HuggingFaceConfig | None = None
    try:
        config = read_config(settings / "config.json")
    except LlamaConvertError as error:
        problems.append(error)
    found = found or _tensor_set(folder, problems)
    if config is None or not found.tensors:
        return None
    try:
        tensors = model_tensors(found, folder)
    except LlamaConvertError as error:
        problems.append(error)
        return None
    weights = _valid_weights(config, tensors, problems)
    if not weights:
        return None
    llama = config.llama
    warnings: list[LlamaConvertError] = [*config.warnings]
    try:
        if llama.tied and _head_differs(weights):
            llama = replace(llama, tied=False)
            warnings.append(_tied_head_differs(config))
    except InputError as error:
        problems.append(error)
    sizes: Counter[Dtype] = Counter()
    for weight in weights.values():
        sizes[weight.dtype] += weight.nbytes
    dtype = sizes.most_common(1)[0][0]
    if config.dtype not in (None, dtype):
        # Training programs keep the config of the model that they began with.
        is_saved_by_transformers = settings == folder and found.files[0].suffix == ".safetensors"
        (problems if is_saved_by_transformers else warnings).append(
            InputError(
                "CONFIG_TENSORS_DISAGREE",
                '"torch_dtype" does not match the weights.',
                file=config.file,
                expected=dtype,
                found=config.dtype,
            )
        )
    return HuggingFaceCheckpoint(
        folder,
        config,
        llama,
        found.files,
        dtype,
        weights,
        tuple(warnings),
        found.tensors,
        tensors.row_order or "huggingface",
        tensors.note,
    )


def _head_differs(weights: dict[Weight, StoredWeight]) -> bool:
    """Whether there is an LM head that differs from the embedding."""
    from llama_convert.checkpoints.row_reader import equal_values  # imports numpy, which is slow

    head, embedding = weights.get(Weight(HEAD)), weights.get(Weight(EMBEDDING))
    if head is None or embedding is None:
        return False
    with SourceFiles() as files:
        return not equal_values(files, head, embedding)


def _tied_head_differs(config: HuggingFaceConfig) -> InputError:
    return InputError(
        "CONFIG_TENSORS_DISAGREE",
        f'"tie_word_embeddings" is true, but the LM head differs from {EMBEDDING.huggingface}. '
        "Using the stored LM head.",
        file=config.file,
        tensor=HEAD.huggingface,
        hint='Set "tie_word_embeddings" to false. transformers 4 loads only one of the two tensors.',
    )


def read_tensors(folder: Path) -> TensorSet:
    """The tensors of a folder in Hugging Face format, without ``config.json``.

    Raises:
        InputError: a file is missing or damaged, or contradicts the index.
    """
    problems: list[LlamaConvertError] = []
    found = _tensor_set(folder, problems)
    if problems:
        raise problems[0]
    return found


def _tensor_set(folder: Path, problems: list[LlamaConvertError]) -> TensorSet:
    """All tensors that transformers reads, compared with the index; else those of files of any name.

    transformers prefers a single file; then the index is not used.
    """
    for container in CONTAINERS:
        index_file, single = folder / container.index, folder / container.single
        if os.path.lexists(single):
            if index_file.exists():
                message = f"Ignored by transformers, which reads {container.single}."
                problems.append(
                    InputError("INDEX_STALE", message, file=index_file, hint="Remove one of them.")
                )
            return _read_files([single], None, problems)[0]
        if os.path.lexists(index_file):
            return _indexed_tensors(container, index_file, problems)
    try:
        if found := read_loose_files(folder):
            return found
    except LlamaConvertError as error:
        problems.append(error)
        return TensorSet((), {})
    if files := safetensors_files(folder):
        return _read_files(files, None, problems)[0]
    missing = InputError("INPUT_NOT_FOUND", f"No {SINGLE_FILE} or {INDEX_FILE}.", file=folder)
    problems.append(unsupported_content(folder) or missing)
    return TensorSet((), {})


def _indexed_tensors(container: Container, index_file: Path, problems: list[LlamaConvertError]) -> TensorSet:
    """The tensors of the files in an index."""
    folder = index_file.parent
    try:
        index = read_json_object(index_file, "INDEX", max_bytes=_MAX_INDEX)
        child = index.child("weight_map")
        if child is None:
            raise index.refuse('Missing "weight_map".')
        weight_map: dict[str, str] = child.content
        for name, file in weight_map.items():
            if not is_printable_name(name):
                raise index.refuse(f"Invalid name of a tensor: {quoted(name)}.")
            if not isinstance(file, str) or not is_file_name(file):
                raise index.refuse(f"Invalid file name {shown(file)} for {quoted(name)}.")
    except LlamaConvertError as error:
        problems.append(error)
        return _read_files(sorted(folder.glob(container.shards)), None, problems)[0]
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for extra in sorted(set(folder.glob(container.shards)) - set(files)):
        message = "The index lists no tensor of this file (left over from another conversion?)."
        problems.append(InputError("FILE_NOT_INDEXED", message, file=extra))
    found, unreadable = _read_files(files, weight_map, problems)
    for name, indexed in weight_map.items():
        if name not in found.tensors and indexed not in unreadable:
            message = f"The tensor is not in {indexed}."
            problems.append(InputError("INDEX_MISMATCH", message, file=index_file, tensor=name))
    if files and not unreadable:
        problems += _check_total(index_file, found.tensors)
    return found


def _read_files(
    files: list[Path], weight_map: dict[str, str] | None, problems: list[LlamaConvertError]
) -> tuple[TensorSet, set[str]]:
    """All tensors of the files by name, compared with the index, and the names of unreadable files."""
    tensors: dict[str, StoredTensor] = {}
    unreadable: set[str] = set()
    keys: tuple[str, ...] = ()
    for file in files:
        try:
            content = _read_file(file)
        except LlamaConvertError as error:
            problems.append(error)
            unreadable.add(file.name)
            continue
        keys = keys or content.wrapper_keys
        for name, tensor in content.tensors.items():
            if name in tensors:
                message = f"Duplicate tensor, also in {tensors[name].file.name}."
                problems.append(InputError("TENSOR_DUPLICATE", message, file=file, tensor=name))
            elif weight_map is not None and weight_map.get(name) != file.name:
                indexed = weight_map.get(name, "no file")
                message = "The index has another file for this tensor."
                problems.append(
                    InputError(
                        "INDEX_MISMATCH", message, file=file, tensor=name, expected=file.name, found=indexed
                    )
                )
            tensors.setdefault(name, tensor)
    return TensorSet(tuple(files), tensors, keys), unreadable


def _read_file(file: Path) -> TorchCheckpoint:
    """The tensors of a weight file by its content."""
    with reading(file) as reader:
        kind = kind_of(read_at(reader, HEAD_SIZE, 0))
    is_torch = kind in (TORCH, LEGACY_TORCH)
    if kind == SAFETENSORS or (file.suffix == ".safetensors" and not is_torch):
        return TorchCheckpoint(read_safetensors_file(file), ())
    return read_torch_checkpoint(file)


def _check_total(index_file: Path, tensors: Mapping[str, Tensor]) -> list[LlamaConvertError]:
    """Compare ``total_size``: transformers counts tensors that share their bytes once, or each of them."""
    metadata = read_json_object(index_file, "INDEX", max_bytes=_MAX_INDEX).content.get("metadata")
    indexed = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(tensor.nbytes for tensor in tensors.values())
    places = {as_stored_weight(tensor).pieces: tensor.nbytes for tensor in tensors.values()}
    if indexed in (None, total, sum(places.values())):
        return []
    message = '"total_size" does not match the bytes of the tensors.'
    return [InputError("INDEX_MISMATCH", message, file=index_file, expected=total, found=shown(indexed))]


def _valid_weights(
    config: HuggingFaceConfig, tensors: ModelTensors, problems: list[LlamaConvertError]
) -> dict[Weight, StoredWeight]:
    """The weights of the model with the right shape and a valid dtype, in the order of the model."""
    expected = huggingface_weights(config.llama)
    n_layers = config.llama.n_layers
    beyond = {weight for weight in tensors.weights if weight.layer is not None and weight.layer >= n_layers}
    found = {weight: tensor for weight, tensor in tensors.weights.items() if weight not in beyond}
    known = known_model({tensor.name: tensor.file for tensor in tensors.unknown})
    problems += [known] if known else []
    for message, wrong in (
        (f"num_hidden_layers in config.json is only {n_layers}.", (tensors.weights[each] for each in beyond)),
        ("Not a Llama tensor.", () if known else tensors.unknown),
    ):
        for tensor in wrong:
            problems.append(InputError("TENSOR_UNKNOWN", message, file=tensor.file, tensor=tensor.name))
    if config.llama.tied and Weight(EMBEDDING) not in found and Weight(HEAD) in found:
        found[Weight(EMBEDDING)] = found.pop(Weight(HEAD))  # the tied matrix, saved under its other name
    problems += [_missing(config, weight) for weight in expected if weight not in found]
    wrong_shapes: dict[WeightKind, list[Tensor]] = defaultdict(list)
    valid: dict[Weight, StoredWeight] = {}
    for weight in dict.fromkeys([*expected, *found]):
        if weight not in found:
            continue
        tensor = found[weight]
        if tensor.dtype not in WEIGHT_DTYPES:
            message = f"Unsupported dtype {tensor.dtype}."
            problems.append(InputError("TENSOR_DTYPE", message, file=tensor.file, tensor=tensor.name))
        elif tensor.shape != weight.shape(config.llama):
            wrong_shapes[weight.kind].append(tensor)
        else:
            valid[weight] = as_stored_weight(tensor)
    problems += [_wrong_shape(config.llama, kind, of_kind) for kind, of_kind in wrong_shapes.items()]
    return valid


def _missing(config: HuggingFaceConfig, weight: Weight) -> LlamaConvertError:
    hint = 'If the LM head is tied, set "tie_word_embeddings" to true in config.json.'
    return InputError(
        "TENSOR_MISSING",
        "The tensor is in no file.",
        file=config.file.parent,
        tensor=weight.huggingface_name,
        hint=hint if weight.kind == HEAD else None,
    )


def _wrong_shape(config: LlamaConfig, kind: WeightKind, tensors: list[Tensor]) -> LlamaConvertError:
    """One problem for a kind of weight in all layers."""
    tensor = tensors[0]
    expected = Weight(kind, 0 if kind.per_layer else None).shape(config)
    more = f" (in {len(tensors)} layers)" if len(tensors) > 1 else ""
    hint = None
    if "kv" in kind.dims and len(tensor.shape) == 2 and tensor.shape[0] % config.head_dim == 0:
        hint = f'Set "num_key_value_heads" to {tensor.shape[0] // config.head_dim} in config.json.'
    return InputError(
        "TENSOR_SHAPE",
        f"The shape does not match config.json{more}.",
        file=tensor.file,
        tensor=tensor.name,
        hint=hint,
        expected=list(expected),
        found=list(tensor.shape),
    )
