"""Forward passes over checkpoints of any size: one decoder layer is in memory while the next one is read.

A `StreamedModel` reads the weights that one of the two forward passes of `llama.forward` needs.  In Meta
format each rank is read as stored in its file: no code here merges ranks or permutes rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import cycle
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.row_reader import Bytes, read_rows, row_blocks
from llama_convert.checkpoints.source import Checkpoint
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight, matrix_shape
from llama_convert.checkpoints.tensor_set import as_stored_weight
from llama_convert.errors import UsageError
from llama_convert.llama.forward import (
    causal,
    huggingface_embed,
    huggingface_layer,
    huggingface_logits,
    meta_embed,
    meta_layer,
    meta_logits,
)
from llama_convert.llama.weights import EMBEDDING, Weight

HEAD_BLOCK = 64 << 20
"""Bytes of the LM head in memory at a time."""

T = TypeVar("T")
Layer = Any
"""The weights of one decoder layer: a dict by name, or in Meta format one dict per rank."""


def pick_device(name: str) -> torch.device:
    """The device named ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the GPU if there is one.

    Raises:
        UsageError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        hint = "Choose auto, cpu, cuda or cuda:N."
        raise UsageError("BAD_DEVICE", f"--device {name}: No such device.", hint=hint) from None
    return device


class Memory:
    """Buffers that layers of equal size use one after the other.

    The system clears newly allocated pages, and in a virtual machine gets them from its host, which takes as
    long as reading a layer.
    """

    def __init__(self) -> None:
        self._blocks: list[Bytes] = []
        self._taken = 0

    def take(self, nbytes: int) -> Bytes:
        """A buffer of ``nbytes`` bytes, valid until the next call of `clear`."""
        if self._taken == len(self._blocks):
            self._blocks.append(np.empty(nbytes, np.uint8))
        elif len(self._blocks[self._taken]) < nbytes:
            self._blocks[self._taken] = np.empty(nbytes, np.uint8)
        self._taken += 1
        return self._blocks[self._taken - 1][:nbytes]

    def clear(self) -> None:
        """Make all buffers available again."""
        self._taken = 0


def one_ahead(jobs: Iterable[Callable[[Memory], T]]) -> Iterator[T]:
    """The results of the jobs in order, each computed in a thread while the previous one is in use.

    A result may be in the memory that its job received: it is valid until the next one is requested.
    """

    def submit(job: Callable[[Memory], T], memory: Memory) -> Future[T]:
        memory.clear()
        return pool.submit(job, memory)

    with ThreadPoolExecutor(max_workers=1) as pool:
        current = None
        for job, memory in zip(jobs, cycle([Memory(), Memory()]), strict=False):
            following = submit(job, memory)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()


class StreamedModel(ABC):
    """The forward pass of a checkpoint, as its format defines it."""

    def __init__(self, n_layers: int, files: SourceFiles, device: torch.device, dtype: torch.dtype) -> None:
        self.n_layers = n_layers
        self.files = files
        self.device = device
        self.dtype = dtype

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden state before the first layer, [tokens, dim]; only the rows of these tokens are read."""

    @abstractmethod
    def load(self, layer: int, memory: Memory) -> Layer:
        """Read the weights of a layer."""

    @abstractmethod
    def layer(self, weights: Layer, layer: int, hidden: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden state after a layer, [tokens, dim].

        Args:
            weights: what `load` returned.
            layer: number of the layer.
            hidden: hidden state before it, [tokens, dim].
            positions: position of each token, int64 [tokens].
            visible: which tokens (columns) each token (row) attends to, bool [tokens, tokens].
        """

    @abstractmethod
    def logits_by_blocks(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits in blocks of the vocabulary, each [tokens, block], in the order of token ids."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token, [tokens, vocabulary size]."""
        return torch.cat(list(self.logits_by_blocks(hidden)), dim=1)

    @torch.no_grad()
    def hidden(self, tokens: Tensor, progress: Callable[[], None] = lambda: None) -> Tensor:
        """Hidden state after the last layer, [tokens, dim], of one sequence at positions 0, 1, 2, ..."""
        tokens = tokens.to(self.device)
        positions = torch.arange(len(tokens), device=self.device)
        visible = causal(positions)
        hidden = self.embed(tokens)
        loads = (partial(self.load, layer) for layer in range(self.n_layers))
        for layer, weights in enumerate(one_ahead(loads)):
            hidden = self.layer(weights, layer, hidden, positions, visible)
            progress()
        return hidden

    def tensor(self, weight: StoredWeight, memory: Memory, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of a weight, on the device, in its stored dtype."""
        rows, columns = matrix_shape(weight.shape)
        stop = rows if stop is None else stop
        row_bytes = columns * weight.dtype.itemsize
        block = memory.take((stop - start) * row_bytes).reshape(stop - start, row_bytes)
        read_rows(self.files, weight, start, stop, block)
        shape = weight.shape if len(weight.shape) < 2 else (stop - start, *weight.shape[1:])
        values = torch.from_numpy(block.reshape(-1)).view(getattr(torch, weight.dtype.name))
        return values.reshape(shape).to(self.device)

    def head_blocks(self, weight: StoredWeight) -> Iterator[Callable[[Memory], Tensor]]:
        """Jobs that each read a block of rows of an LM head."""
        for start, stop in row_blocks(weight, HEAD_BLOCK):
            yield partial(self.tensor, weight, start=start, stop=stop)


class GatheredRows:
    """A matrix that reads only the rows that are indexed."""

    def __init__(self, model: StreamedModel, weight: StoredWeight) -> None:
        self.shape = weight.shape
        self._model = model
        self._weight = weight

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.cat([self._model.tensor(self._weight, Memory(), row, row + 1) for row in rows.tolist()])


class StreamedMeta(StreamedModel):
    """A checkpoint with Meta's row order, run as tensor-parallel ranks like in Meta's code."""

    def __init__(
        self, checkpoint: Checkpoint, files: SourceFiles, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(checkpoint.config.n_layers, files, device, dtype)
        self.config = checkpoint.config
        self.ranks: list[dict[str, StoredWeight]]
        if isinstance(checkpoint, MetaCheckpoint):
            self.ranks = [
                {each.meta_name: as_stored_weight(rank[each.meta_name]) for each in checkpoint.weights}
                for rank in checkpoint.ranks
            ]
        else:
            self.ranks = [{weight.meta_name: stored for weight, stored in checkpoint.weights.items()}]
        self.heads = [rank["output.weight"] for rank in self.ranks if "output.weight" in rank]
        if not self.heads:  # tied
            self.heads = [checkpoint.weights[Weight(EMBEDDING)]]

    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden state before the first layer."""
        name = "tok_embeddings.weight"
        ranks: Sequence[Any] = [{name: GatheredRows(self, rank[name])} for rank in self.ranks]
        return meta_embed(self.config, ranks, tokens, self.dtype)

    def load(self, layer: int, memory: Memory) -> Layer:
        """Read the weights of a layer, of every rank."""
        prefix = f"layers.{layer}."
        return [
            {name: self.tensor(weight, memory) for name, weight in rank.items() if name.startswith(prefix)}
            for rank in self.ranks
        ]

    def layer(self, weights: Layer, layer: int, hidden: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden state after a layer."""
        return meta_layer(self.config, weights, layer, hidden, positions, visible)

    def logits_by_blocks(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits in blocks of the vocabulary: the LM head is split along dim 0 over the ranks."""
        for rank, head in zip(self.ranks, self.heads, strict=False):
            norm = self.tensor(rank["norm.weight"], Memory())
            for block in one_ahead(self.head_blocks(head)):
                yield meta_logits(self.config, [{"norm.weight": norm, "output.weight": block}], hidden)


class StreamedHuggingFace(StreamedModel):
    """A checkpoint with Hugging Face's row order, run as transformers defines it."""

    def __init__(
        self, checkpoint: Checkpoint, files: SourceFiles, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(checkpoint.config.n_layers, files, device, dtype)
        self.config = checkpoint.config
        self.weights: Mapping[str, StoredWeight] = {
            weight.huggingface_name: stored for weight, stored in checkpoint.weights.items()
        }

    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden state before the first layer."""
        name = "model.embed_tokens.weight"
        weights: Any = {name: GatheredRows(self, self.weights[name])}
        return huggingface_embed(weights, tokens, self.dtype)

    def load(self, layer: int, memory: Memory) -> Layer:
        """Read the weights of a layer."""
        prefix = f"model.layers.{layer}."
        return {
            name: self.tensor(weight, memory)
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }

    def layer(self, weights: Layer, layer: int, hidden: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden state after a layer."""
        return huggingface_layer(self.config, weights, layer, hidden, positions, visible)

    def logits_by_blocks(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits in blocks of the vocabulary; the LM head of a tied model is its embedding."""
        norm = self.tensor(self.weights["model.norm.weight"], Memory())
        head = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        for block in one_ahead(self.head_blocks(self.weights[head])):
            yield huggingface_logits(self.config, {"model.norm.weight": norm, head: block}, hidden)


def open_model(
    checkpoint: Checkpoint, files: SourceFiles, device: torch.device, dtype: torch.dtype
) -> StreamedModel:
    """The forward pass of a checkpoint, as the order of its Q and K rows defines it.

    Args:
        checkpoint: the checkpoint to run.
        files: opens its files.
        device: where to compute.
        dtype: dtype of the arithmetic.
    """
    kind = StreamedMeta if checkpoint.row_order == "meta" else StreamedHuggingFace
    return kind(checkpoint, files, device, dtype)


def bytes_per_layer(checkpoint: Checkpoint) -> int:
    """Bytes of all weights divided by the number of layers."""
    return sum(weight.nbytes for weight in checkpoint.weights.values()) // checkpoint.config.n_layers
