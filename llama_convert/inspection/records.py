"""Results of `inspect` and `compare` as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_convert.findings import Finding

if TYPE_CHECKING:
    from llama_convert.inspection.stats import Stats


@dataclass(frozen=True)
class Release:
    """The detected release of Meta, and the evidence for it."""

    title: str
    """For example ``Llama 3.1 8B``."""
    version: str
    size: str | None
    """None for a size that Meta never released."""
    evidence: tuple[str, ...]
    alternatives: tuple[str, ...]
    """Titles of other releases that the files allow."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; a tied LM head and replicas on several ranks count once."""

    total: int
    embedding: int
    layers: int
    """All layers together."""
    per_layer: int | None
    """None if layers differ, or if there is none."""
    norm: int
    """The norm after the last layer."""
    head: int
    other: int
    """Tensors that are not Llama tensors."""
    whole: bool
    """True for a complete model; False for a single file or an incomplete folder."""


@dataclass(frozen=True)
class WeightGroup:
    """Tensors of one kind with the same shape, dtype and sharding."""

    name: str
    """Name in the files; ``{layer}`` stands for the layer's number."""
    count: int
    shape: tuple[int, ...]
    """Shape with all ranks joined if they fit together, otherwise of one slice."""
    dtype: str
    sharded_dim: int | None
    """Dimension that is split over the ranks; None if every rank has the whole tensor."""
    copies: int
    """Number of ranks with the same rows: all ranks for norms, several for replicated KV heads."""


@dataclass(frozen=True)
class DtypeCount:
    """Number and size of the tensors of one dtype."""

    dtype: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class File:
    """One file of the folder."""

    name: str
    bytes: int
    role: str
    """``weights``, ``settings``, ``tokenizer``, ``checksums``, ``text`` or ``other``."""
    tensors: int | None
    """Number of tensors; None for a file without tensors, or one that cannot be read."""


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer next to the weights."""

    file: str
    kind: str | None
    """``sentencepiece`` or ``tiktoken``; None for a kind that no Llama uses."""
    vocab_size: int
    """Number of tokens, special tokens included."""
    special: int
    """Number of special tokens."""


@dataclass(frozen=True)
class Conversion:
    """Weight files that ``llama-convert convert`` would write with default options."""

    files: dict[str, int]
    """Size in bytes by file name."""
    bytes: int
    dtype: str
    peak_memory: int
    """Upper bound in bytes, with any dtype."""


@dataclass(frozen=True)
class Tensor:
    """One tensor."""

    name: str
    """Name in the files."""
    meta_name: str | None
    """None if it is not a Llama tensor."""
    huggingface_name: str | None
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    files: tuple[str, ...]
    stats: Stats | None = None


@dataclass(frozen=True)
class Inspection:
    """Description of one checkpoint."""

    path: Path | str
    """A folder or file, or a URL."""
    format: str
    """``meta`` or ``huggingface``."""
    single_file: bool
    """Whether `path` is a file instead of a folder."""
    release: Release | None
    config: dict[str, Any] | None
    """Hyper-parameters, by their names in `LlamaConfig`."""
    raw_config: dict[str, Any] | None
    """Content of params.json or config.json if no hyper-parameters can be derived from it."""
    ranks: int | None
    """Number of tensor-parallel ranks; None for the Hugging Face format."""
    kv_repeats: int | None
    """Number of neighboring ranks with the same KV head."""
    parameters: Parameters
    dtypes: tuple[DtypeCount, ...]
    kinds: tuple[WeightGroup, ...]
    files: tuple[File, ...]
    bytes: int
    """Size of all files."""
    tokenizer: Tokenizer | None
    checksums: tuple[str, ...]
    """Checksums that the files contain."""
    shared: tuple[tuple[str, ...], ...]
    """Names of tensors that are views of the same storage."""
    conversion: Conversion | None
    """None if `convert` cannot read the checkpoint, or if it is in the Hugging Face format already."""
    findings: tuple[Finding, ...]
    tensors: tuple[Tensor, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return all(finding.is_warning for finding in self.findings)


@dataclass(frozen=True)
class Mismatch:
    """A property that both checkpoints have, with different values."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class ValueDifference:
    """Differences between the values of one tensor, with rows in the same order and rounded to one dtype."""

    name: str
    """Name in the second checkpoint."""
    elements: int
    different: int
    """Number of elements that differ in at least one bit."""
    max_difference: float
    """Max of |a - b|; infinity if one of them is NaN or infinite and the bits differ."""
    mean_difference: float
    """Mean of |a - b| over all elements."""
    relative_difference: float
    """Frobenius norm of a - b divided by that of a."""
    cosine_similarity: float
    """Cosine of the angle between a and b as vectors; NaN if undefined."""


@dataclass(frozen=True)
class Comparison:
    """Differences between two checkpoints, ``a`` and ``b``."""

    a: Inspection
    b: Inspection
    config: tuple[Mismatch, ...]
    """Hyper-parameters."""
    only_in_a: tuple[str, ...]
    """Names of tensors that only this checkpoint has, as in its files."""
    only_in_b: tuple[str, ...]
    shapes: tuple[Mismatch, ...]
    dtypes: tuple[Mismatch, ...]
    tokenizer: tuple[Mismatch, ...]
    values: tuple[ValueDifference, ...]
    """Tensors whose values differ."""
    compared: int | None
    """Number of tensors whose values were compared; None if that was not requested."""
    findings: tuple[Finding, ...] = ()
    """Errors that prevented the comparison of values."""

    @property
    def same(self) -> bool:
        """Whether no difference was found."""
        names = (self.only_in_a, self.only_in_b)
        return not any((self.config, *names, self.shapes, self.dtypes, self.tokenizer, self.values))

    @property
    def ok(self) -> bool:
        """Whether no difference and no error was found."""
        return self.same and self.a.ok and self.b.ok and not self.findings
