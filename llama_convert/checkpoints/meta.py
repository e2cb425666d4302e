"""Reader of checkpoints in Meta format: ``params.json`` and one file per tensor-parallel rank.

The sharded dimension of each weight follows from its shapes, the release from all files.  Contradictions are
refused before weights are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.meta_folder import MetaFolder
from llama_convert.checkpoints.other_models import known_model
from llama_convert.checkpoints.params import Params, read_params
from llama_convert.checkpoints.ranks import (
    MergedSizes,
    Rank,
    check_no_copies,
    check_ranks_match,
    kv_repeats,
    merged_sizes,
)
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import Piece, StoredWeight
from llama_convert.checkpoints.tensor_set import (
    ModelTensors,
    Tensor,
    TensorSet,
    as_stored_weight,
    model_tensors,
    read_torch_files,
)
from llama_convert.dtypes import WEIGHT_DTYPES, Dtype
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.llama.config import LlamaConfig, RopeScaling
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
    RECOMPUTED,
    CheckpointFormat,
    Weight,
    model_weights,
    parse_meta_name,
)
from llama_convert.text import listed


@dataclass(frozen=True)
class MetaCheckpoint:
    """A checkpoint with ``params.json``; only its headers are read."""

    folder: MetaFolder
    params: Params
    config: LlamaConfig
    detected: DetectedRelease
    dtype: Dtype
    """Dtype of most weights, by bytes."""
    weights: dict[Weight, StoredWeight]
    """In the order of the model.  Contains a tied LM head only if the files do."""
    embedding_dim: int | None
    """Dimension along which ranks shard the embedding; None for a single rank."""
    kv_repeats: int
    """Number of adjacent ranks with the same KV head."""
    constants: tuple[Tensor, ...]
    """Tensors of the first rank that are not weights: loaders recompute them, for example ``rope.freqs``."""
    ranks: tuple[Rank, ...] = field(repr=False, compare=False)
    """Tensors of each rank as stored, by their names in Meta format."""
    row_order: CheckpointFormat = "meta"
    """Order of the Q and K rows, which goes with the names of the tensors."""
    note: str | None = None
    """What was removed from the names of the tensors; None if nothing."""
    format: ClassVar[CheckpointFormat] = "meta"

    @property
    def warnings(self) -> tuple[LlamaConvertError, ...]:
        """Unknown keys of ``params.json``."""
        return self.params.warnings

    def as_release(self, release: Release, evidence: str) -> MetaCheckpoint:
        """The checkpoint as another release that matches the files."""
        detected = self.detected.narrowed_to(release, self.detected.candidates, evidence)
        return replace(self, detected=detected, config=_with_release(self.config, self.params, detected))


def open_meta(
    folder: MetaFolder, tokenizer: TokenizerKind | None = None, version: str | None = None
) -> MetaCheckpoint:
    """Read the headers of a checkpoint.

    Reads weights only to detect replicated KV heads, copied rank files and a tied LM head.

    Args:
        folder: its files, from `find_meta_folder`.
        tokenizer: kind of its tokenizer, if there is one.
        version: ``--llama-version``; selects one of the releases that match the files.

    Raises:
        InputError: a file is missing or damaged, or contradicts another.
        UsageError: ``version`` is unknown or does not match the files.
    """
    params = read_params(folder.settings / "params.json")
    read = [model_tensors(_read_rank(folder, files), files[0]) for files in folder.ranks]
    ranks = [_by_name(tensors) for tensors in read]
    check_ranks_match(folder.rank_paths, ranks)
    tensors = _check_names(params, ranks[0])
    sizes = merged_sizes(params, tensors, len(ranks))
    with SourceFiles() as files:
        if len(ranks) > 1:
            check_no_copies(files, folder.rank_paths, ranks)
        repeats = kv_repeats(files, params, ranks, sizes)
        config = _config_by_shapes(params, sizes, repeats)
        sharded_dims = _sharded_dims(config, tensors, len(ranks), repeats)
        weights = {
            weight: _stored_weight(weight, config, [rank[weight.meta_name] for rank in ranks], dim, repeats)
            for weight, dim in sharded_dims.items()
        }
        tied = Weight(HEAD) not in weights or _is_tied(files, weights)
    dtype = _main_dtype(weights.values())
    traits = ReleaseTraits(
        shape=(config.dim, config.n_layers, config.n_heads, config.n_kv_heads, config.ffn_dim),
        vocab_size=config.vocab_size,
        norm_eps=params.norm_eps,
        rope_theta=params.rope_theta,
        use_scaled_rope=params.use_scaled_rope,
        tied=tied,
        nested=params.nested,
        dtype=dtype.name,
        tokenizer=tokenizer,
        names="/".join(folder.names).lower(),
    )
    detected = detect_release(traits, version)
    if version is None:
        detected = _as_recorded(detected, folder.path, weights.values())
    config = _with_release(replace(config, tied=tied), params, detected)
    embedding_dim = sharded_dims[Weight(EMBEDDING)]
    return MetaCheckpoint(
        folder,
        params,
        config,
        detected,
        dtype,
        weights,
        embedding_dim,
        repeats,
        read[0].constants,
        tuple(ranks),
        read[0].row_order or "meta",
        read[0].note,
    )


def _read_rank(folder: MetaFolder, files: tuple[Path, ...]) -> TensorSet:
    return folder.found or read_torch_files(files)


def _by_name(tensors: ModelTensors) -> Rank:
    """The tensors of a rank by their names in Meta format, or their own if they are not weights."""
    weights = {weight.meta_name: tensor for weight, tensor in tensors.weights.items()}
    return weights | {tensor.name: tensor for tensor in (*tensors.constants, *tensors.unknown)}


def _as_recorded(detected: DetectedRelease, folder: Path, weights: Iterable[StoredWeight]) -> DetectedRelease:
    """The release that the manifest records, if it matches the files."""
    from llama_convert.checkpoints.manifest_check import recorded_version  # imports numpy, which is slow

    version = recorded_version(folder, weights) if detected.alternatives else None
    for release in detected.alternatives:
        if release.version == version:
            return detected.narrowed_to(release, detected.candidates, f"version in {MANIFEST}")
    return detected


def _check_names(params: Params, rank: Rank) -> dict[Weight, Tensor]:
    """The tensors of a rank by weight.

    Raises:
        InputError: a weight of the model is missing, a tensor is not a weight, or its dtype is not supported.
    """
    file = next(iter(rank.values())).file
    found: dict[Weight, Tensor] = {}
    for name, tensor in rank.items():
        weight = parse_meta_name(name)
        if weight is None and RECOMPUTED.fullmatch(name):
            continue
        if weight is None:
            unknown = [other for other in rank if parse_meta_name(other) is None]
            not_llama = InputError("TENSOR_UNKNOWN", "Not a Llama tensor.", file=file, tensor=name)
            raise known_model(dict.fromkeys(unknown, file)) or not_llama
        if tensor.dtype not in WEIGHT_DTYPES:
            quantized = " (a quantized model?)" if tensor.dtype.itemsize == 1 else ""
            message = f"Unsupported dtype {tensor.dtype}{quantized}."
            raise InputError("TENSOR_DTYPE", message, file=file, tensor=name)
        if len(tensor.shape) != len(weight.kind.dims):
            raise InputError(
                "TENSOR_SHAPE",
                f"Wrong number of dimensions: the shape is {list(tensor.shape)}.",
                file=file,
                tensor=name,
                expected=len(weight.kind.dims),
                found=len(tensor.shape),
            )
        if 0 in tensor.shape:
            message = f"The tensor is empty: its shape is {list(tensor.shape)}."
            raise InputError("TENSOR_SHAPE", message, file=file, tensor=name)
        found[weight] = tensor
    layers = {weight.layer for weight in found if weight.layer is not None}
    beyond = sorted(layer for layer in layers if layer >= params.n_layers)
    if beyond:
        message = f"Contains layers.{beyond[0]}, but params.json has n_layers {params.n_layers}."
        raise InputError("PARAMS_TENSORS_DISAGREE", message, file=file)
    if params.n_layers > len(layers) and layers == set(range(len(layers))):
        message = f"n_layers is {params.n_layers}, but layers.{len(layers)} is in no file."
        raise InputError("PARAMS_TENSORS_DISAGREE", message, file=params.file)
    needed = (weight for weight in _expected_weights(params) if not weight.kind.dropped_when_tied)
    missing = [weight.meta_name for weight in needed if weight not in found]
    if missing:
        more = f" Also missing: {listed(missing[1:])}." if len(missing) > 1 else ""
        raise InputError("TENSOR_MISSING", f"The tensor is in no file.{more}", file=file, tensor=missing[0])
    return found


def _expected_weights(params: Params) -> Iterable[Weight]:
    """The weights of a model with this number of layers; their names do not depend on other parameters."""
    return model_weights(LlamaConfig(0, params.n_layers, 0, 0, 0, 0, 0, 0.0, 0.0, None, 0, False))


def _config_by_shapes(params: Params, sizes: MergedSizes, repeats: int) -> LlamaConfig:
    """The hyper-parameters without those that depend on the release (see `_with_release`)."""
    head_dim = params.dim // params.n_heads
    return LlamaConfig(
        dim=params.dim,
        n_layers=params.n_layers,
        n_heads=params.n_heads,
        n_kv_heads=sizes.kv_rows // head_dim // repeats,
        head_dim=head_dim,
        ffn_dim=sizes.ffn_dim,
        vocab_size=sizes.vocab_size,
        norm_eps=params.norm_eps,
        rope_theta=0.0,
        rope_scaling=None,
        context_length=0,
        tied=False,
    )


def _with_release(config: LlamaConfig, params: Params, detected: DetectedRelease) -> LlamaConfig:
    """The hyper-parameters with those that are constants in Meta's code or are only in the model card."""
    release = detected.release
    theta = params.rope_theta or release.rope_theta
    scaled = params.use_scaled_rope or release.implies_scaling
    factor = params.rope_factor or release.rope_factor or RopeScaling.factor
    context_length = release.context_length
    if release.version == "code" and theta <= 10000:
        context_length = 4096  # 70B Python and Instruct were not trained with long contexts
    return replace(
        config,
        rope_theta=theta,
        rope_scaling=RopeScaling(factor=factor) if scaled else None,
        context_length=context_length,
    )


def _sharded_dims(
    config: LlamaConfig, tensors: dict[Weight, Tensor], n_ranks: int, repeats: int
) -> dict[Weight, int | None]:
    """The dimension along which ranks shard each weight, by its shapes; None: every rank has a full copy.

    Raises:
        InputError: a shape matches no possible dimension, or several.
    """
    result: dict[Weight, int | None] = {}
    for weight in model_weights(config):
        if weight not in tensors:  # a tied LM head
            continue
        tensor, whole = tensors[weight], list(weight.shape(config))
        if "kv" in weight.kind.dims:
            whole[0] *= repeats
        possible: list[int | None] = [*weight.kind.sharded_dims] if n_ranks > 1 else []
        shapes = {dim: _shard_shape(whole, dim, n_ranks) for dim in possible or [None]}
        matching = [dim for dim, shape in shapes.items() if shape == list(tensor.shape)]
        if len(matching) != 1:
            raise InputError(
                "TENSOR_SHAPE",
                "The shape does not match params.json.",
                file=tensor.file,
                tensor=tensor.name,
                expected=" or ".join(str(shape) for shape in shapes.values()),
                found=list(tensor.shape),
            )
        result[weight] = matching[0]
    return result


def _shard_shape(whole: list[int], sharded_dim: int | None, n_ranks: int) -> list[int]:
    """Shape of a weight on one rank; the whole shape if the dimension is not divisible."""
    return [n // n_ranks if dim == sharded_dim and n % n_ranks == 0 else n for dim, n in enumerate(whole)]


def _stored_weight(
    weight: Weight, config: LlamaConfig, tensors: list[Tensor], sharded_dim: int | None, repeats: int
) -> StoredWeight:
    """A weight made of its shards on all ranks."""
    shape = weight.shape(config)
    if len(tensors) == 1:
        return replace(as_stored_weight(tensors[0]), name=weight.meta_name)
    slabs = [as_stored_weight(tensor).pieces[0].slab for tensor in tensors]
    if sharded_dim is None:
        pieces = [Piece(0, 0, slabs[0], tuple(slabs[1:]))]
    elif sharded_dim == 1:
        pieces = [Piece(0, rank * slab.columns, slab) for rank, slab in enumerate(slabs)]
    elif "kv" in weight.kind.dims and repeats > 1:
        step = config.head_dim
        heads = [slab.row_range(row, row + step) for slab in slabs for row in range(0, slab.rows, step)]
        pieces = [
            Piece(
                head * step, 0, heads[head * repeats], tuple(heads[head * repeats + 1 : (head + 1) * repeats])
            )
            for head in range(config.n_kv_heads)
        ]
    else:
        pieces = [Piece(rank * slab.rows, 0, slab) for rank, slab in enumerate(slabs)]
    return StoredWeight(weight.meta_name, shape, tensors[0].dtype, tuple(pieces))


def _is_tied(files: SourceFiles, weights: dict[Weight, StoredWeight]) -> bool:
    """Whether the LM head is the embedding: the same storage, or equal values.

    Blocks of zeros (placeholders) do not count as equal.
    """
    embedding, head = weights[Weight(EMBEDDING)], weights[Weight(HEAD)]
    if embedding.dtype != head.dtype:
        return False
    if embedding.pieces == head.pieces:
        return True
    from llama_convert.checkpoints.row_reader import row_blocks, rows_of  # imports numpy, which is slow

    for start, stop in row_blocks(embedding, 1 << 20):
        one, other = (rows_of(files, weight, start, stop) for weight in (embedding, head))
        if not one.any() or (one != other).any():
            return False
    return True


def _main_dtype(weights: Iterable[StoredWeight]) -> Dtype:
    sizes: Counter[Dtype] = Counter()
    for weight in weights:
        sizes[weight.dtype] += weight.nbytes
    return sizes.most_common(1)[0][0]
