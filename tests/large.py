"""Checkpoints in real shapes, made without holding them: gigabytes of plausible numbers, never in git.

python -m tests.large FOLDER 3.2-1B|3-8B|70B-slim|3.1-405B
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from llama_convert.formats.torch_reader import read_torch_file
from tests.synthetic import Shape, params

SHAPES = {
    "3.2-1B": Shape(
        dim=2048, n_layers=16, n_heads=32, n_kv_heads=8, ffn_dim=8192, vocab_size=128256, tied=True,
        params={"vocab_size": 128256, "multiple_of": 256, "ffn_dim_multiplier": 1.5, "rope_theta": 500000.0,
                "use_scaled_rope": True},
    ),
    "3-8B": Shape(
        dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, ffn_dim=14336, vocab_size=128256,
        params={"vocab_size": 128256, "multiple_of": 1024, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0},
    ),
    "70B-slim": Shape(
        dim=8192, n_layers=4, n_heads=64, n_kv_heads=8, ffn_dim=28672, vocab_size=128256, ranks=8,
        embedding_cut=0,
        params={"vocab_size": 128256, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0},
    ),
    "3.1-405B": Shape(
        dim=16384, n_layers=126, n_heads=128, n_kv_heads=8, ffn_dim=53248, vocab_size=128256, ranks=16,
        embedding_cut=0, kv_repeats=2,
        params={"vocab_size": 128256, "multiple_of": 4096, "ffn_dim_multiplier": 1.2, "rope_theta": 500000.0,
                "use_scaled_rope": True},
    ),
}  # fmt: skip


def make(folder: Path, shape: Shape, *, fill: bool = True) -> Path:
    """Write the checkpoint; without `fill` the files are sparse, all zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params(shape)))
    torch.serialization.set_crc32_options(False)
    try:
        for rank in range(shape.ranks):
            file = folder / f"consolidated.{rank:02d}.pth"
            with torch.serialization.skip_data():
                torch.save(_rank(shape), file)
            if fill:
                _fill(file, seed=rank)
    finally:
        torch.serialization.set_crc32_options(True)
    return folder


def _rank(shape: Shape) -> dict[str, torch.Tensor]:
    """One rank's tensors, their memory never touched."""
    n, kv = shape.ranks, shape.n_kv_heads * shape.head_dim * shape.kv_repeats

    def empty(rows: int, *columns: int) -> torch.Tensor:
        return torch.empty(rows, *columns, dtype=shape.dtype)

    embedding = (
        (shape.vocab_size // n, shape.dim) if shape.embedding_cut == 0 else (shape.vocab_size, shape.dim // n)
    )
    state = {"tok_embeddings.weight": empty(*embedding)}
    for i in range(shape.n_layers):
        state |= {
            f"layers.{i}.attention.wq.weight": empty(shape.dim // n, shape.dim),
            f"layers.{i}.attention.wk.weight": empty(kv // n, shape.dim),
            f"layers.{i}.attention.wv.weight": empty(kv // n, shape.dim),
            f"layers.{i}.attention.wo.weight": empty(shape.dim, shape.dim // n),
            f"layers.{i}.feed_forward.w1.weight": empty(shape.ffn_dim // n, shape.dim),
            f"layers.{i}.feed_forward.w3.weight": empty(shape.ffn_dim // n, shape.dim),
            f"layers.{i}.feed_forward.w2.weight": empty(shape.dim, shape.ffn_dim // n),
            f"layers.{i}.attention_norm.weight": empty(shape.dim),
            f"layers.{i}.ffn_norm.weight": empty(shape.dim),
        }
    state["norm.weight"] = empty(shape.dim)
    state["output.weight"] = (
        state["tok_embeddings.weight"] if shape.tied else empty(shape.vocab_size // n, shape.dim)
    )
    return state


def _fill(file: Path, seed: int) -> None:
    """Random numbers in every storage; norms alike in all ranks."""
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.randn(4 << 20, generator=generator) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    ones = torch.ones(1 << 16, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    descriptor = os.open(file, os.O_WRONLY)
    try:
        for turn, tensor in enumerate(read_torch_file(file).values()):
            content = ones if len(tensor.shape) == 1 else noise
            shift = 2 * (turn * 7919 % 1000)
            written = 0
            while written < tensor.nbytes:
                piece = content[shift : shift + tensor.nbytes - written]
                written += os.pwrite(descriptor, piece, tensor.offset + written)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    make(Path(sys.argv[1]), SHAPES[sys.argv[2]])
