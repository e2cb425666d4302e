"""A checkpoint in Hugging Face's layout: ``config.json`` and safetensors files, read and checked."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from llama_convert.checkpoints.content import content_of
from llama_convert.checkpoints.huggingface_config import HuggingFaceConfig, read_config
from llama_convert.checkpoints.json_object import read_json_object
from llama_convert.checkpoints.shards import INDEX_FILE, SINGLE_FILE
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight
from llama_convert.dtypes import WEIGHT_DTYPES, Dtype
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats.files import is_file_name, is_plain, quoted
from llama_convert.formats.safetensors import read_safetensors_file
from llama_convert.formats.strict_json import shown
from llama_convert.formats.tensors import StoredTensor
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.releases import Identity, Release, TokenizerKind, Traits, identify
from llama_convert.llama.rotary import CheckpointLayout
from llama_convert.llama.weights import (
    EMBEDDING,
    HEAD,
    RECOMPUTED,
    Weight,
    WeightKind,
    huggingface_weights,
    parse_huggingface_name,
)

_MOST_PROBLEMS = 200
_MAX_INDEX = 2 << 20  # of 405B it has 0.1 MB


@dataclass(frozen=True)
class HuggingFaceCheckpoint:
    """A checkpoint in Hugging Face's layout, its headers read."""

    folder: Path
    settings: HuggingFaceConfig
    """``config.json`` as it was read."""
    config: LlamaConfig
    """The hyper-parameters that config.json and the tensors give together."""
    files: tuple[Path, ...]
    """Those that transformers reads the tensors from."""
    dtype: Dtype
    """What most of its weights are stored in."""
    weights: dict[Weight, StoredWeight]
    """In the order of the model.  A tied LM head is not among them, unless the files hold one."""
    warnings: tuple[LlamaConvertError, ...]
    """What was decided although the files contradict each other or say something unknown."""
    layout: ClassVar[CheckpointLayout] = "huggingface"

    @cached_property
    def identity(self) -> Identity:
        """The release that its settings are those of."""
        return self.identified(None)

    def identified(self, version: str | None, tokenizer: TokenizerKind | None = None) -> Identity:
        """The release that its settings are those of; ``version`` chooses where they allow several.

        Where no version is asked for, the context length and the factor of RoPE tell releases apart too.

        Args:
            version: the release to take it for.
            tokenizer: the kind of tokenizer that goes with it, if that is known.

        Raises:
            UsageError: ``version`` is unknown, or cannot be true of the files.
        """
        traits = self.traits(tokenizer)
        identity = identify(traits, version)
        readings = identity.readings
        factor = self.config.rope_scaling.factor if self.config.rope_scaling else None
        settings = (self.config.context_length, factor)
        fitting = [row for row in readings if (row.context_length, row.rope_factor) == settings]
        if version is not None or not fitting or len(fitting) == len(readings):
            return identity
        signs = [f"a context of {self.config.context_length} tokens"]
        signs += [f"rope factor {factor:g}"] if factor else []

        def unlikely(row: Release) -> tuple[bool, bool]:
            return row is not identity.release, not re.search(row.name_pattern, traits.names)

        return identity.proved(min(fitting, key=unlikely), fitting, *signs)

    def traits(self, tokenizer: TokenizerKind | None = None) -> Traits:
        """What bears on the release and is said in either layout."""
        config = self.config
        return Traits(
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


def open_huggingface(folder: Path) -> HuggingFaceCheckpoint:
    """Read the headers of a checkpoint; no weight is read.

    Raises:
        InputError: a file is missing, damaged, or at odds with another; the first that `survey` found.
    """
    checkpoint, problems = survey(folder)
    if problems or checkpoint is None:
        raise problems[0]
    return checkpoint


def survey(folder: Path) -> tuple[HuggingFaceCheckpoint | None, list[LlamaConvertError]]:
    """The checkpoint as far as it can be read, and everything that is wrong with its headers.

    Weights that are missing or do not fit are left out of the checkpoint; without a config or any readable
    file there is none.  Of endless problems the first hundreds are given.
    """
    problems: list[LlamaConvertError] = []
    checkpoint = _survey(folder, problems)
    if len(problems) > _MOST_PROBLEMS:
        more = f"and {len(problems) - _MOST_PROBLEMS:,} problems more"
        problems[_MOST_PROBLEMS:] = [InputError(problems[_MOST_PROBLEMS].code, more, file=folder)]
    return checkpoint, problems


def _survey(folder: Path, problems: list[LlamaConvertError]) -> HuggingFaceCheckpoint | None:
    config: HuggingFaceConfig | None = None
    try:
        config = read_config(folder / "config.json")
    except LlamaConvertError as error:
        problems.append(error)
    files, weight_map = _files(folder, problems)
    tensors = _tensors(files, weight_map, problems)
    if config is None or not tensors:
        return None
    weights = _fitting(config, tensors, problems)
    if not weights:
        return None
    llama = config.llama
    warnings: list[LlamaConvertError] = [*config.warnings]
    try:
        if llama.tied and _has_another_head(weights):
            llama = replace(llama, tied=False)
            warnings.append(_contradicted_tie(config))
    except InputError as error:
        problems.append(error)
    sizes: Counter[Dtype] = Counter()
    for weight in weights.values():
        sizes[weight.dtype] += weight.nbytes
    dtype = sizes.most_common(1)[0][0]
    if config.dtype not in (None, dtype):
        problems.append(
            InputError(
                "CONFIG_TENSORS_DISAGREE",
                f'"torch_dtype" is {config.dtype}, the weights are {dtype}',
                file=config.file,
                expected=dtype,
                found=config.dtype,
            )
        )
    return HuggingFaceCheckpoint(folder, config, llama, tuple(files), dtype, weights, tuple(warnings))


def _has_another_head(weights: dict[Weight, StoredWeight]) -> bool:
    """Whether the files hold an LM head that differs from the embedding."""
    from llama_convert.checkpoints.row_reader import same_numbers  # numpy, which takes a moment

    head, embedding = weights.get(Weight(HEAD)), weights.get(Weight(EMBEDDING))
    if head is None or embedding is None:
        return False
    with SourceFiles() as files:
        return not same_numbers(files, head, embedding)


def _contradicted_tie(config: HuggingFaceConfig) -> InputError:
    return InputError(
        "CONFIG_TENSORS_DISAGREE",
        f'"tie_word_embeddings" is true, but this LM head differs from {EMBEDDING.huggingface}; '
        "the stored LM head is used",
        file=config.file,
        tensor=HEAD.huggingface,
        hint='Set "tie_word_embeddings" to false. transformers 4 loads only one of the two tensors.',
    )


def _files(folder: Path, problems: list[LlamaConvertError]) -> tuple[list[Path], dict[str, str] | None]:
    """The files that transformers reads, which prefers a single one, and what an index says of each name."""
    index_file, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if os.path.lexists(single):
        if index_file.exists():
            message = f"transformers reads {SINGLE_FILE} and passes over this index"
            problems.append(InputError("INDEX_STALE", message, file=index_file, hint="remove one of them"))
        return [single], None
    if not os.path.lexists(index_file):
        content = content_of(folder)
        message = f"no {SINGLE_FILE} or {INDEX_FILE}" + (f", but {content.what}" if content else "")
        hint = content.hint if content else None
        problems.append(InputError("INPUT_NOT_FOUND", message, file=folder, hint=hint))
        return [], None
    try:
        index = read_json_object(index_file, "INDEX", belongs="", max_bytes=_MAX_INDEX)
        below = index.below("weight_map")
        if below is None:
            raise index.refuse('"weight_map" is missing')
        weight_map: dict[str, str] = below.content
        for name, file in weight_map.items():
            if not is_plain(name):
                raise index.refuse(f"names a tensor {quoted(name)}")
            if not isinstance(file, str) or not is_file_name(file):
                message = f"{quoted(name)} is said to be in {shown(file)}, which is no name of a file here"
                raise index.refuse(message)
    except LlamaConvertError as error:
        problems.append(error)
        return sorted(folder.glob("*.safetensors")), None
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for extra in sorted(set(folder.glob("model*.safetensors")) - set(files)):
        message = "the index names no tensor of it: left over from another conversion?"
        problems.append(InputError("FILE_EXTRA", message, file=extra))
    return files, weight_map


def _tensors(
    files: list[Path], weight_map: dict[str, str] | None, problems: list[LlamaConvertError]
) -> dict[str, StoredTensor]:
    """All tensors of the files by name, held against the index."""
    tensors: dict[str, StoredTensor] = {}
    unread: set[str] = set()
    for file in files:
        try:
            found = read_safetensors_file(file)
        except LlamaConvertError as error:
            problems.append(error)
            unread.add(file.name)
            continue
        for name, tensor in found.items():
            if name in tensors:
                message = f"is in {tensors[name].file.name} too"
                problems.append(InputError("TENSOR_TWICE", message, file=file, tensor=name))
            elif weight_map is not None and weight_map.get(name) != file.name:
                said = weight_map.get(name, "in no file")
                message = "the index says otherwise where it is"
                problems.append(
                    InputError("INDEX_WRONG", message, file=file, tensor=name, expected=file.name, found=said)
                )
            tensors.setdefault(name, tensor)
    if weight_map is not None and files:
        index_file = files[0].parent / INDEX_FILE
        for name, said in weight_map.items():
            if name not in tensors and said not in unread:
                message = f"is not in {said}, where the index has it"
                problems.append(InputError("INDEX_WRONG", message, file=index_file, tensor=name))
        problems += _check_total(index_file, tensors) if not unread else []
    return tensors


def _check_total(index_file: Path, tensors: dict[str, StoredTensor]) -> list[LlamaConvertError]:
    metadata = read_json_object(index_file, "INDEX", belongs="", max_bytes=_MAX_INDEX).content.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(tensor.nbytes for tensor in tensors.values())
    if said in (None, total):
        return []
    message = f'"total_size" is {shown(said)}, the tensors have {total:,} bytes'
    return [InputError("INDEX_WRONG", message, file=index_file, expected=total, found=shown(said))]


def _fitting(
    config: HuggingFaceConfig, tensors: dict[str, StoredTensor], problems: list[LlamaConvertError]
) -> dict[Weight, StoredWeight]:
    """The tensors that are weights of this model, in its order."""
    expected = huggingface_weights(config.llama)
    found: dict[Weight, StoredTensor] = {}
    for name, tensor in tensors.items():
        weight = parse_huggingface_name(name)
        known = weight is not None and (weight.layer is None or weight.layer < config.llama.n_layers)
        if weight is not None and known:
            found[weight] = tensor
        elif not RECOMPUTED.fullmatch(name):
            message = "is no weight of this model"
            if weight is not None:
                message += f": config.json says num_hidden_layers {config.llama.n_layers}"
            problems.append(InputError("TENSOR_UNKNOWN", message, file=tensor.file, tensor=name))
    if config.llama.tied and Weight(EMBEDDING) not in found and Weight(HEAD) in found:
        found[Weight(EMBEDDING)] = found.pop(Weight(HEAD))  # one matrix, saved under its other name
    problems += [_missing(config, weight) for weight in expected if weight not in found]
    misfits: dict[WeightKind, list[StoredTensor]] = defaultdict(list)
    fitting: dict[Weight, StoredWeight] = {}
    for weight in dict.fromkeys([*expected, *found]):
        if weight not in found:
            continue
        tensor = found[weight]
        if tensor.dtype not in WEIGHT_DTYPES:
            message = f"is {tensor.dtype}: expected a float type"
            problems.append(InputError("TENSOR_DTYPE", message, file=tensor.file, tensor=tensor.name))
        elif tensor.shape != weight.shape(config.llama):
            misfits[weight.kind].append(tensor)
        else:
            pieces = (Piece(0, 0, Slab.of(tensor)),)
            fitting[weight] = StoredWeight(tensor.name, tensor.shape, tensor.dtype, pieces)
    problems += [_misfit(config.llama, kind, of_kind) for kind, of_kind in misfits.items()]
    return fitting


def _missing(config: HuggingFaceConfig, weight: Weight) -> LlamaConvertError:
    hint = 'or "tie_word_embeddings" should be true' if weight.kind == HEAD else None
    return InputError(
        "TENSOR_MISSING", "is in no file", file=config.file.parent, tensor=weight.huggingface_name, hint=hint
    )


def _misfit(config: LlamaConfig, kind: WeightKind, tensors: list[StoredTensor]) -> LlamaConvertError:
    """One problem for a kind of weight, however many layers have it."""
    tensor = tensors[0]
    expected = Weight(kind, 0 if kind.per_layer else None).shape(config)
    more = f", and {len(tensors) - 1} layers more" if len(tensors) > 1 else ""
    hint = None
    if "kv" in kind.axes and len(tensor.shape) == 2 and tensor.shape[0] % config.head_dim == 0:
        hint = f'"num_key_value_heads" should be {tensor.shape[0] // config.head_dim}'
    return InputError(
        "TENSOR_SHAPE",
        f"is {list(tensor.shape)}, config.json makes it {list(expected)}{more}",
        file=tensor.file,
        tensor=tensor.name,
        hint=hint,
        expected=list(expected),
        found=list(tensor.shape),
    )
