"""Forward passes over checkpoints of any size: one decoder layer in memory, the next one being read.

A `Reading` lends one of the two readings of `llama.forward` the weights it asks for.  Meta's ranks are read
as their files hold them, each tensor by itself: nothing here knows how ranks are joined or rows reordered.
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

from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.row_reader import Bytes, read_rows, row_blocks
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import Piece, Slab, StoredWeight, matrix_shape
from llama_convert.errors import UsageError
from llama_convert.formats.torch_reader import read_torch_file
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
"""The weights of one decoder layer, in the form the reading wants them."""


def pick_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` means; ``auto`` is the GPU if there is one.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        message = f"--device {name}: there is no such device here; choose auto, cpu, cuda or cuda:N"
        raise UsageError("BAD_DEVICE", message) from None
    return device


class Memory:
    """Bytes that one layer's weights leave to another's, which are of the same sizes.

    Fresh ones have to be cleared by the system, and in a virtual machine fetched from its host, which takes
    as long as reading a layer does.
    """

    def __init__(self) -> None:
        self._blocks: list[Bytes] = []
        self._taken = 0

    def take(self, nbytes: int) -> Bytes:
        """So many bytes, until the next call of `clear`."""
        if self._taken == len(self._blocks):
            self._blocks.append(np.empty(nbytes, np.uint8))
        elif len(self._blocks[self._taken]) < nbytes:
            self._blocks[self._taken] = np.empty(nbytes, np.uint8)
        self._taken += 1
        return self._blocks[self._taken - 1][:nbytes]

    def clear(self) -> None:
        """Take everything back."""
        self._taken = 0


def one_ahead(jobs: Iterable[Callable[[Memory], T]]) -> Iterator[T]:
    """Each job's result in turn, the next one being worked on in a thread meanwhile.

    A result may lie in the memory that its job is given: it is good until the next one is asked for.
    """

    def begin(job: Callable[[Memory], T], memory: Memory) -> Future[T]:
        memory.clear()
        return pool.submit(job, memory)

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for job, memory in zip(jobs, cycle([Memory(), Memory()]), strict=False):
            following = begin(job, memory)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class Reading(ABC):
    """One side's forward pass."""

    def __init__(self, n_layers: int, files: SourceFiles, device: torch.device, dtype: torch.dtype) -> None:
        self.n_layers = n_layers
        self.files = files
        self.device = device
        self.dtype = dtype

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden state before the first layer: [tokens, dim]; only the rows of these tokens are read."""

    @abstractmethod
    def load(self, layer: int, memory: Memory) -> Layer:
        """Read the weights of a layer."""

    @abstractmethod
    def layer(self, weights: Layer, layer: int, hidden: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden state after a layer: [tokens, dim]."""

    @abstractmethod
    def logits_by_blocks(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits of some words after some, [tokens, words], in the order of the vocabulary."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token: [tokens, vocab]."""
        return torch.cat(list(self.logits_by_blocks(hidden)), dim=1)

    @torch.no_grad()
    def hidden(self, tokens: Tensor, progress: Callable[[], None] = lambda: None) -> Tensor:
        """Hidden state after the last layer, of one sequence at positions 0, 1, 2, ...: [tokens, dim]."""
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
        """Rows of a weight, on the device, in its own dtype."""
        rows, columns = matrix_shape(weight.shape)
        stop = rows if stop is None else stop
        row_bytes = columns * weight.dtype.itemsize
        block = memory.take((stop - start) * row_bytes).reshape(stop - start, row_bytes)
        read_rows(self.files, weight, start, stop, block)
        shape = weight.shape if len(weight.shape) < 2 else (stop - start, *weight.shape[1:])
        values = torch.from_numpy(block.reshape(-1)).view(getattr(torch, weight.dtype.name))
        return values.reshape(shape).to(self.device)

    def head_blocks(self, weight: StoredWeight) -> Iterator[Callable[[Memory], Tensor]]:
        """Ways to read an LM head block by block."""
        for start, stop in row_blocks(weight, HEAD_BLOCK):
            yield partial(self.tensor, weight, start=start, stop=stop)


class GatheredRows:
    """Stands for a matrix of which only the rows that are indexed are read."""

    def __init__(self, reading: Reading, weight: StoredWeight) -> None:
        self.shape = weight.shape
        self._reading = reading
        self._weight = weight

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.cat(
            [self._reading.tensor(self._weight, Memory(), row, row + 1) for row in rows.tolist()]
        )


class MetaReading(Reading):
    """Meta's ranks, as stored."""

    def __init__(
        self, checkpoint: MetaCheckpoint, files: SourceFiles, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(checkpoint.config.n_layers, files, device, dtype)
        self.config = checkpoint.config
        self.ranks: list[dict[str, StoredWeight]] = [
            {
                name: StoredWeight(name, tensor.shape, tensor.dtype, (Piece(0, 0, Slab.of(tensor)),))
                for name, tensor in read_torch_file(file).items()
                if len(tensor.shape) in (1, 2)
            }
            for file in checkpoint.folder.rank_files
        ]
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
        """Logits of some words after some: each rank holds some words, and so does each block of it."""
        for rank, head in zip(self.ranks, self.heads, strict=False):
            norm = self.tensor(rank["norm.weight"], Memory())
            for block in one_ahead(self.head_blocks(head)):
                yield meta_logits(self.config, [{"norm.weight": norm, "output.weight": block}], hidden)


class HuggingFaceReading(Reading):
    """The merged model, as Hugging Face defines it."""

    def __init__(
        self, checkpoint: HuggingFaceCheckpoint, files: SourceFiles, device: torch.device, dtype: torch.dtype
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
        """Logits of some words after some; a tied model takes its embedding for the head."""
        norm = self.tensor(self.weights["model.norm.weight"], Memory())
        head = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        for block in one_ahead(self.head_blocks(self.weights[head])):
            yield huggingface_logits(self.config, {"model.norm.weight": norm, head: block}, hidden)


def open_reading(
    checkpoint: MetaCheckpoint | HuggingFaceCheckpoint,
    files: SourceFiles,
    device: torch.device,
    dtype: torch.dtype,
) -> Reading:
    """The reading that a checkpoint's layout calls for."""
    if isinstance(checkpoint, MetaCheckpoint):
        return MetaReading(checkpoint, files, device, dtype)
    return HuggingFaceReading(checkpoint, files, device, dtype)
