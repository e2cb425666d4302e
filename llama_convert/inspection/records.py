"""What an inspection says, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_convert import json_output
from llama_convert.findings import Finding

if TYPE_CHECKING:
    from llama_convert.inspection.stats import Stats


@dataclass(frozen=True)
class Release:
    """Which of Meta's releases it is, and how that shows."""

    title: str
    """Such as ``Llama 3.1 8B``."""
    version: str
    size: str | None
    """None: a shape that Meta never released."""
    evidence: tuple[str, ...]
    alternatives: tuple[str, ...]
    """Other releases that the files could be."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; a tied LM head, and copies on several ranks, count once."""

    total: int
    embedding: int
    layers: int
    """Of all layers together."""
    per_layer: int | None
    """None: layers differ, or there is none."""
    norm: int
    """Of the norm after the last layer."""
    head: int
    other: int
    """Of tensors that are no weights of a Llama."""
    whole: bool
    """Whether this is all of a model, and not what one file or an incomplete folder holds."""


@dataclass(frozen=True)
class Kind:
    """All tensors of one kind that are stored alike."""

    name: str
    """``{layer}`` stands for the layer's number."""
    count: int
    shape: tuple[int, ...]
    """With all ranks joined, where they fit together; else of one rank's slice."""
    dtype: str
    cut: int | None
    """The axis on which ranks cut it."""
    copies: int
    """How many ranks hold the same rows: all of them for norms, several for a repeated KV head."""


@dataclass(frozen=True)
class DtypeCount:
    """What is stored in one dtype."""

    dtype: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class File:
    """A file of the folder."""

    name: str
    bytes: int
    role: str
    """``weights``, ``settings``, ``tokenizer``, ``checksums``, ``text`` or ``other``."""
    tensors: int | None
    """How many it holds; None where it holds none or could not be read."""


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer that lies beside the weights."""

    file: str
    kind: str | None
    """``sentencepiece`` or ``tiktoken``; None for another."""
    words: int
    """Tokens that a model can emit, special ones among them."""
    special: int


@dataclass(frozen=True)
class Conversion:
    """What ``llama-convert convert`` would write of the weights, with its default options."""

    files: dict[str, int]
    bytes: int
    dtype: str
    peak_memory: int
    """About how many bytes of memory it takes."""
    peak_memory_with_cast: int


@dataclass(frozen=True)
class Tensor:
    """One tensor."""

    name: str
    """What the files call it."""
    meta_name: str | None
    """None: it is no weight of a Llama."""
    huggingface_name: str | None
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    files: tuple[str, ...]
    stats: Stats | None = None


@dataclass(frozen=True)
class Inspection:
    """All that can be told of a checkpoint."""

    path: str
    layout: str
    """``meta`` or ``huggingface``."""
    single_file: bool
    """Whether a file was named, and not a folder."""
    release: Release | None
    config: dict[str, Any] | None
    """Hyper-parameters, by their names in `LlamaConfig`."""
    raw_config: dict[str, Any] | None
    """What the settings file says, where no hyper-parameters could be made of it."""
    ranks: int | None
    kv_repeats: int | None
    """How many neighbouring ranks hold the same KV head."""
    parameters: Parameters
    dtypes: tuple[DtypeCount, ...]
    kinds: tuple[Kind, ...]
    files: tuple[File, ...]
    bytes: int
    """Of all files."""
    tokenizer: Tokenizer | None
    checksums: tuple[str, ...]
    """What the files carry to be checked by."""
    shared: tuple[tuple[str, ...], ...]
    """Tensors that are views of one storage."""
    conversion: Conversion | None
    """None where nothing can be converted, or it is converted already."""
    findings: tuple[Finding, ...]
    """What is wrong, and with `warning` what is odd."""
    tensors: tuple[Tensor, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return all(finding.is_warning for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The keys that ``inspect PATH --json`` adds to those of every command."""
        return json_output.inspection(self)
