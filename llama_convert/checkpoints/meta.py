"""A checkpoint in Meta's layout: ``params.json`` and one file a tensor-parallel rank, read and checked.

Nothing is taken on trust: the cut of every weight is told from its shapes, the release from everything the
files say, and what does not fit together is refused by name before a weight is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import xxhash

from llama_convert.checkpoints.content import content_of_file
from llama_convert.checkpoints.locate import MetaFolder, locate
from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.params import Params, read_params
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight
from llama_convert.dtypes import WEIGHT_DTYPES, Dtype
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.formats.tensors import StoredTensor
from llama_convert.formats.torch_zip import read_torch_file
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.releases import Identity, Release, TokenizerKind, Traits, identify, released_kv_heads
from llama_convert.llama.rotary import CheckpointLayout
from llama_convert.llama.weights import EMBEDDING, HEAD, RECOMPUTED, Weight, model_weights, parse_meta_name

Rank = dict[str, StoredTensor]

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.")
"""What DistributedDataParallel, torch.compile, FSDP and trainers put before the names of tensors."""


@dataclass(frozen=True)
class MetaCheckpoint:
    """A checkpoint in Meta's layout, its headers read and found consistent."""

    folder: MetaFolder
    params: Params
    config: LlamaConfig
    identity: Identity
    dtype: Dtype
    """What most of its weights are stored in."""
    weights: dict[Weight, StoredWeight]
    """In the order of the model.  A tied LM head is not among them, unless the files hold one."""
    embedding_cut: int | None
    """The axis on which ranks cut the embedding; None for a single rank."""
    kv_repeats: int
    """How many neighbouring ranks hold the same KV head."""
    layout: ClassVar[CheckpointLayout] = "meta"

    @property
    def warnings(self) -> tuple[LlamaConvertError, ...]:
        """What ``params.json`` says that is unknown."""
        return self.params.warnings

    def as_release(self, release: Release, sign: str) -> MetaCheckpoint:
        """The same files as those of another release that they allow; ``sign`` says why."""
        identity = self.identity.proved(release, self.identity.readings, sign)
        return replace(self, identity=identity, config=_with_release(self.config, self.params, identity))


def open_meta(
    folder: MetaFolder, tokenizer: TokenizerKind | None = None, version: str | None = None
) -> MetaCheckpoint:
    """Read the headers of a checkpoint; no weight is read but the first KV heads and what may be tied.

    Args:
        folder: where it lies, from `locate`.
        tokenizer: the kind of tokenizer that goes with it, if there is one.
        version: the release to take it for, where the files allow several.

    Raises:
        InputError: a file is missing, damaged, or at odds with another.
        UsageError: ``version`` cannot be true of the files.
    """
    params = read_params(folder.path / "params.json")
    ranks = [read_torch_file(file) for file in folder.rank_files]
    _check_ranks_alike(folder.rank_files, ranks)
    names = _check_names(params, ranks[0])
    shapes = _joined_shapes(params, names, len(ranks))
    with SourceFiles() as files:
        if len(ranks) > 1:
            _check_ranks_differ(files, folder.rank_files, ranks)
        repeats = _kv_repeats(files, params, ranks, shapes)
        config = _structure(params, shapes, repeats)
        cuts = _cuts(params, config, names, len(ranks), repeats)
        weights = {
            weight: _assemble(weight, config, [rank[weight.meta_name] for rank in ranks], cut, repeats)
            for weight, cut in cuts.items()
        }
        tied = Weight(HEAD) not in weights or _is_tied(files, weights)
    dtype = _main_dtype(weights.values())
    traits = Traits(
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
    identity = identify(traits, version)
    if version is None:
        identity = _as_recorded(identity, folder.path, weights.values())
    config = _with_release(replace(config, tied=tied), params, identity)
    embedding_cut = cuts[Weight(EMBEDDING)]
    return MetaCheckpoint(folder, params, config, identity, dtype, weights, embedding_cut, repeats)


def _as_recorded(identity: Identity, folder: Path, weights: Iterable[StoredWeight]) -> Identity:
    """The reading that the conversion which wrote the files recorded, if it is one that they allow."""
    from llama_convert.checkpoints.manifest_check import recorded_version  # numpy, which takes a moment

    version = recorded_version(folder, weights) if identity.alternatives else None
    for release in identity.alternatives:
        if release.version == version:
            return identity.proved(release, identity.readings, f"{MANIFEST} says so")
    return identity


def _check_ranks_alike(files: tuple[Path, ...], ranks: list[Rank]) -> None:
    """Every rank has the names, shapes and dtypes of the first."""
    first = ranks[0]
    for file, rank in zip(files[1:], ranks[1:], strict=True):
        for name in [*first, *rank]:
            if name not in rank:
                raise InputError("RANKS_NAMES", f"missing; {files[0].name} has it", file=file, tensor=name)
            if name not in first:
                raise InputError("RANKS_NAMES", f"not in {files[0].name}", file=file, tensor=name)
            one, other = first[name], rank[name]
            if one.shape != other.shape:
                message = f"is {list(other.shape)}, {files[0].name} has {list(one.shape)}"
                hint = "all rank files must come from one release; compare their sizes with checklist.chk"
                raise InputError("RANKS_SHAPES", message, file=file, tensor=name, hint=hint)
            if one.dtype != other.dtype:
                message = f"is {other.dtype}, {files[0].name} has {one.dtype}: not of one save"
                raise InputError("RANKS_DTYPES", message, file=file, tensor=name)


def _check_names(params: Params, rank: Rank) -> dict[Weight, StoredTensor]:
    """The tensors of one rank by weight: all that the model has, and nothing else."""
    file = next(iter(rank.values())).file
    found: dict[Weight, StoredTensor] = {}
    for name, tensor in rank.items():
        weight = parse_meta_name(name)
        if weight is None and RECOMPUTED.fullmatch(name):
            continue
        if weight is None:
            raise _unknown_name(file, name, rank)
        if tensor.dtype not in WEIGHT_DTYPES:
            kind = "a quantised release?" if tensor.dtype.itemsize == 1 else "expected a float type"
            raise InputError("TENSOR_DTYPE", f"is {tensor.dtype}: {kind}", file=file, tensor=name)
        if len(tensor.shape) != len(weight.kind.axes):
            message = f"is {list(tensor.shape)}, expected {len(weight.kind.axes)} axes"
            raise InputError("TENSOR_SHAPE", message, file=file, tensor=name)
        if 0 in tensor.shape:
            raise InputError("TENSOR_SHAPE", f"is {list(tensor.shape)}: empty", file=file, tensor=name)
        found[weight] = tensor
    layers = {weight.layer for weight in found if weight.layer is not None}
    beyond = sorted(layer for layer in layers if layer >= params.n_layers)
    if beyond:
        message = f"holds layers.{beyond[0]}, but params.json says n_layers {params.n_layers}"
        raise InputError("PARAMS_TENSORS_DISAGREE", message, file=file)
    if params.n_layers > len(layers) and layers == set(range(len(layers))):
        message = f"says n_layers {params.n_layers}; layers.{len(layers)} is in no file"
        raise InputError("PARAMS_TENSORS_DISAGREE", message, file=params.file)
    needed = (weight for weight in _expected(params) if not weight.kind.dropped_when_tied)
    missing = [weight.meta_name for weight in needed if weight not in found]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError("TENSOR_MISSING", f"in no file{more}", file=file, tensor=missing[0])
    return found


def _expected(params: Params) -> Iterable[Weight]:
    """The weights a model of so many layers has; their names do not depend on any width."""
    return model_weights(LlamaConfig(0, params.n_layers, 0, 0, 0, 0, 0, 0.0, 0.0, None, 0, False))


def _unknown_name(file: Path, name: str, rank: Rank) -> InputError:
    if name.startswith("model.layers.") or name in ("lm_head.weight", "model.embed_tokens.weight"):
        content = content_of_file(file)
        message = "a Hugging Face name in a file of Meta's format"
        hint = content.hint if content else None
        return InputError("TENSOR_UNKNOWN", message, file=file, tensor=name, hint=hint)
    if prefix := next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), None):
        message = f'names begin with "{prefix}", which a wrapper of the model adds'
        hint = "Remove it from the names, and save the state dict again with torch.save."
        return InputError("TENSOR_UNKNOWN", message, file=file, tensor=name, hint=hint)
    if any(other.endswith(("scales", ".scale", "zeros")) for other in rank):
        return InputError(
            "UNSUPPORTED_MODEL", "quantised: convert the unquantised release", file=file, tensor=name
        )
    hint = "Merge the adapter into the weights first." if "lora" in name else None
    return InputError(
        "TENSOR_UNKNOWN", "is no weight of a Llama; nothing was dropped", file=file, tensor=name, hint=hint
    )


@dataclass(frozen=True)
class _Joined:
    """What the shapes on one rank add up to over all ranks, before anything is believed."""

    q_rows: int
    kv_rows: int
    ffn_dim: int
    vocab_size: int


def _joined_shapes(params: Params, names: dict[Weight, StoredTensor], n_ranks: int) -> _Joined:
    by_kind = {weight.kind.meta: tensor for weight, tensor in names.items() if weight.layer in (None, 0)}

    def rows(name: str) -> int:
        return by_kind[name].shape[0] * n_ranks

    wq = by_kind["layers.{layer}.attention.wq.weight"]
    q_rows = rows("layers.{layer}.attention.wq.weight")
    if q_rows != params.dim:
        raise _wrong_rank_count(params, wq, q_rows, n_ranks)
    vocabulary = "output.weight"
    if vocabulary not in by_kind:  # the embedding is the head, and may be cut on either axis
        vocabulary = "tok_embeddings.weight"
    cut = by_kind[vocabulary].shape[1] == params.dim
    joined = _Joined(
        q_rows, rows("layers.{layer}.attention.wk.weight"), rows("layers.{layer}.feed_forward.w1.weight"),
        rows(vocabulary) if cut else by_kind[vocabulary].shape[0],
    )  # fmt: skip
    if params.vocab_size not in (None, joined.vocab_size):
        message = f"has {joined.vocab_size} rows in all, params.json says vocab_size {params.vocab_size}"
        raise InputError("PARAMS_TENSORS_DISAGREE", message, file=wq.file, tensor=vocabulary)
    if params.ffn_dim not in (None, joined.ffn_dim):
        settings = f"multiple_of {params.multiple_of}, ffn_dim_multiplier {params.ffn_dim_multiplier}"
        settings = "hidden_dim" if params.hidden_dim else settings
        message = f"has {joined.ffn_dim} rows in all, params.json gives {params.ffn_dim} ({settings})"
        tensor = "layers.0.feed_forward.w1.weight"
        raise InputError("PARAMS_TENSORS_DISAGREE", message, file=wq.file, tensor=tensor)
    return joined


def _wrong_rank_count(params: Params, wq: StoredTensor, q_rows: int, n_ranks: int) -> InputError:
    found = (
        f"{n_ranks} file{'s' * (n_ranks > 1)} hold{'s' * (n_ranks == 1)} {q_rows} of {params.dim} rows of wq"
    )
    if params.dim % wq.shape[0] == 0 and q_rows < params.dim:
        needed = params.dim // wq.shape[0]
        message = f"{found}: {needed - n_ranks} of {needed} rank files are missing"
        return InputError("RANKS_MISSING", message, file=wq.file.parent, hint="download the missing files")
    return InputError("TENSOR_SHAPE", found, file=wq.file, tensor=wq.name)


def _kv_repeats(files: SourceFiles, params: Params, ranks: list[Rank], joined: _Joined) -> int:
    """How often each KV head is stored: more ranks than KV heads hold copies, on neighbouring ranks.

    405B in 16 ranks stores 16 KV heads of which 8 are distinct, and its ``params.json`` says 16: only the
    weights tell.  The heads of layer 0 are compared here, those of all layers while they are copied; where
    they are placeholders of zeros, the table of releases tells.  Heads that are all alike prove nothing, and
    are kept as they are.
    """
    head_dim = params.dim // params.n_heads
    declared = params.n_kv_heads or params.n_heads
    stored, rest = divmod(joined.kv_rows, head_dim)
    wk = ranks[0]["layers.0.attention.wk.weight"]
    if rest or stored % declared or params.n_heads % stored:
        message = f"{joined.kv_rows} rows in all are not those of {declared} KV heads of {head_dim}"
        raise InputError("TENSOR_SHAPE", message, file=wk.file, tensor=wk.name)
    if stored != declared:
        return stored // declared
    if len(ranks) == 1 or stored == 1:
        return 1
    every_head = (
        digest
        for rank in ranks
        for digest in _head_digests(files, rank["layers.0.attention.wk.weight"], head_dim)
    )
    heads = [next(every_head), next(every_head)]
    if heads[0] is None:
        released = released_kv_heads(params.dim, params.n_layers, params.n_heads, joined.ffn_dim)
        return stored // released if released and stored % released == 0 else 1
    if heads[0] != heads[1]:
        return 1
    heads += every_head
    for repeats in (n for n in range(stored // 2, 1, -1) if stored % n == 0):
        groups = [set(heads[start : start + repeats]) for start in range(0, stored, repeats)]
        distinct = set().union(*groups)
        if all(len(group) == 1 for group in groups) and len(distinct) == len(groups):
            return repeats
    return 1


def _head_digests(files: SourceFiles, tensor: StoredTensor, head_dim: int) -> Iterator[bytes | None]:
    """A digest of each head's rows, read as it is asked for; None for a placeholder of zeros."""
    from llama_convert.checkpoints.row_reader import rows_of  # numpy, which takes a moment

    weight = StoredWeight(tensor.name, tensor.shape, tensor.dtype, (Piece(0, 0, Slab.of(tensor)),))
    for start in range(0, tensor.shape[0], head_dim):
        rows = rows_of(files, weight, start, start + head_dim)
        yield xxhash.xxh3_128_digest(rows.data) if rows.any() else None


def _check_ranks_differ(files: SourceFiles, paths: tuple[Path, ...], ranks: list[Rank]) -> None:
    """No file is a copy of another: of layer 0's feed-forward each rank has rows of its own.

    They are compared by their checksums, and the first row itself.  Rows all of one number are a placeholder.
    """
    from llama_convert.checkpoints.row_reader import rows_of  # numpy, which takes a moment

    seen: dict[object, Path] = {}
    for path, rank in zip(paths, ranks, strict=True):
        w1 = rank["layers.0.feed_forward.w1.weight"]
        place = (w1.storage.crc32, w1.storage.size, w1.offset - w1.storage.offset, w1.strides)
        weight = StoredWeight(w1.name, w1.shape, w1.dtype, (Piece(0, 0, Slab.of(w1)),))
        row = rows_of(files, weight, 0, 1)
        if (row.reshape(-1, w1.dtype.itemsize) == row[0, : w1.dtype.itemsize]).all():
            return
        first = seen.setdefault((place, row.tobytes()), path)
        if first is not path:
            message = f"holds the same weights as {first.name}: a copy of it?"
            raise InputError("RANKS_DUPLICATE", message, file=path, tensor=w1.name, hint="download it again")


def _structure(params: Params, joined: _Joined, repeats: int) -> LlamaConfig:
    """The hyper-parameters that shapes and ``params.json`` settle; the release settles the rest."""
    head_dim = params.dim // params.n_heads
    return LlamaConfig(
        dim=params.dim,
        n_layers=params.n_layers,
        n_heads=params.n_heads,
        n_kv_heads=joined.kv_rows // head_dim // repeats,
        head_dim=head_dim,
        ffn_dim=joined.ffn_dim,
        vocab_size=joined.vocab_size,
        norm_eps=params.norm_eps,
        rope_theta=0.0,
        rope_scaling=None,
        context_length=0,
        tied=False,
    )


def _with_release(config: LlamaConfig, params: Params, identity: Identity) -> LlamaConfig:
    """The hyper-parameters that Meta's code holds as constants, or the release's model card tells."""
    release = identity.release
    theta = params.rope_theta or release.rope_theta
    scaled = params.use_scaled_rope or release.scaling_unsaid
    factor = params.rope_factor or release.rope_factor or RopeScaling.factor
    context_length = release.context_length
    if release.version == "code" and theta <= 10000:
        context_length = 4096  # 70B Python and Instruct were not trained for long contexts
    return replace(
        config,
        rope_theta=theta,
        rope_scaling=RopeScaling(factor=factor) if scaled else None,
        context_length=context_length,
    )


def _cuts(
    params: Params, config: LlamaConfig, names: dict[Weight, StoredTensor], n_ranks: int, repeats: int
) -> dict[Weight, int | None]:
    """The axis on which ranks cut each weight, from its shapes; None: each rank has all of it."""
    cuts: dict[Weight, int | None] = {}
    for weight in model_weights(config):
        if weight not in names:  # a tied LM head
            continue
        tensor, whole = names[weight], list(weight.shape(config))
        if "kv" in weight.kind.axes:
            whole[0] *= repeats
        possible: list[int | None] = list(weight.kind.cut) if n_ranks > 1 and weight.kind.cut else [None]
        shapes = {cut: _slice_shape(whole, cut, n_ranks) for cut in possible}
        fitting = [cut for cut in possible if shapes[cut] == list(tensor.shape)]
        if len(fitting) != 1:
            expected = " or ".join(str(shape) for shape in shapes.values())
            message = f"is {list(tensor.shape)}, expected {expected}"
            raise InputError("TENSOR_SHAPE", message, file=tensor.file, tensor=tensor.name)
        cuts[weight] = fitting[0]
    return cuts


def _slice_shape(whole: list[int], cut: int | None, n_ranks: int) -> list[int]:
    """The shape of one rank's slice, or of the whole where the axis cannot be cut evenly."""
    return [n // n_ranks if axis == cut and n % n_ranks == 0 else n for axis, n in enumerate(whole)]


def _assemble(
    weight: Weight, config: LlamaConfig, tensors: list[StoredTensor], cut: int | None, repeats: int
) -> StoredWeight:
    """One weight put together from its slice on every rank."""
    shape = weight.shape(config)
    slabs = [Slab.of(tensor) for tensor in tensors]
    if cut is None:
        pieces = [Piece(0, 0, slabs[0], tuple(slabs[1:]))]
    elif cut == 1:
        pieces = [Piece(0, rank * slab.columns, slab) for rank, slab in enumerate(slabs)]
    elif "kv" in weight.kind.axes and repeats > 1:
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
    """Whether the LM head is the embedding: one storage, or the same numbers twice.

    Numbers that are all zero (a placeholder) prove nothing.
    """
    embedding, head = weights[Weight(EMBEDDING)], weights[Weight(HEAD)]
    if embedding.dtype != head.dtype:
        return False
    if embedding.pieces == head.pieces:
        return True
    from llama_convert.checkpoints.row_reader import row_blocks, rows_of  # numpy, which takes a moment

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


__all__ = ["MetaCheckpoint", "MetaFolder", "locate", "open_meta"]
