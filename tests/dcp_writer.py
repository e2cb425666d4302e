"""Writes checkpoints with torch.distributed.checkpoint: `python -m tests.dcp_writer FOLDER RANKS`.

The whole tensors are saved as truth.pt next to the folder's `.metadata`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing

TRUTH = "truth.pt"
SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype, int | None]] = {
    "tok_embeddings.weight": ((7, 8), torch.bfloat16, 0),  # uneven on 2 and 3 ranks
    "layers.0.attention.wo.weight": ((4, 7), torch.bfloat16, 1),
    "layers.0.attention.wq.weight": ((6, 4), torch.float16, 0),
    "layers.0.ffn_norm.weight": ((10,), torch.float32, 0),
    "layers.0.attention_norm.weight": ((9,), torch.bfloat16, None),
    "layers.0.one.weight": ((1, 5), torch.float32, 0),  # fewer rows than ranks
    "layers.0.column.weight": ((5, 2), torch.float32, 1),
    "layers.0.experts.weight": ((3, 4, 2), torch.float32, 1),
    "output.weight": ((7, 8), torch.float32, None),
}
"""Shape, dtype, and the dimension that is sharded (None: replicated)."""


def truth() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, (shape, dtype, _) in SHAPES.items()
    }


def state_dict(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
    """A training checkpoint: model, AdamW after a step, and other objects."""
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=0.0, foreach=False)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    model = {name: parameter.detach() for name, parameter in parameters.items()}
    return {"model": model, "optimizer": optimizer.state_dict(), "step": 3, "extra": [{"lr": 0.1}]}


def save_alone(folder: Path, **options: Any) -> None:
    """Save without process groups."""
    parameters = {name: torch.nn.Parameter(value) for name, value in truth().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state_dict(parameters), checkpoint_id=folder, no_dist=True, **options)
    torch.save(truth(), folder / TRUTH)


@contextmanager
def process_group(rank: int, ranks: int, store: Path) -> Iterator[None]:
    """One of so many processes, which find each other by a new file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), ranks), rank=rank, world_size=ranks)
    yield
    dist.barrier()
    dist.destroy_process_group()


def sharded(tensors: dict[str, torch.Tensor], dims: dict[str, int | None]) -> dict[str, torch.nn.Parameter]:
    """Parameters, each sharded over the ranks along a dimension (None: replicated)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    placements = {name: Replicate() if dim is None else Shard(dim) for name, dim in dims.items()}
    return {
        name: torch.nn.Parameter(distribute_tensor(value, mesh, [placements[name]]))
        for name, value in tensors.items()
    }


def save_on_rank(rank: int, folder: Path, ranks: int) -> None:
    with process_group(rank, ranks, Path(f"{folder}.store")):
        dims = {name: dim for name, (_, _, dim) in SHAPES.items()}
        dcp.save(state_dict(sharded(truth(), dims)), checkpoint_id=folder)
        if rank == 0:
            torch.save(truth(), folder / TRUTH)


if __name__ == "__main__":
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    torch.multiprocessing.start_processes(save_on_rank, (place, count), count, start_method="fork")
