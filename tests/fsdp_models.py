"""Saves a model of transformers with accelerate and FSDP: `python -m tests.fsdp_models SOURCE OUT`.

Two processes without a GPU; needs accelerate and transformers on the path.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from accelerate import FullyShardedDataParallelPlugin, PartialState  # type: ignore[import-not-found]
from accelerate.utils.fsdp_utils import save_fsdp_model  # type: ignore[import-not-found]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import AutoModelForCausalLM  # type: ignore[import-not-found]

from tests.dcp_writer import process_group

PROCESSES = 2
SAVED = {
    "sharded-1": (1, "SHARDED_STATE_DICT"),
    "sharded-2": (2, "SHARDED_STATE_DICT"),
    "whole-2": (2, "FULL_STATE_DICT"),  # of FSDP 1, torch cannot collect it without a GPU
}


def shard(model: torch.nn.Module, version: int) -> torch.nn.Module:
    if version == 1:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def save_on_rank(rank: int, source: Path, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    with process_group(rank, PROCESSES, out / "store"):
        PartialState._shared_state = {"initialized": True, "_cpu": True, "process_index": rank}
        accelerator: Any = SimpleNamespace(process_index=rank, num_processes=PROCESSES)
        for name, (version, kind) in SAVED.items():
            model = shard(AutoModelForCausalLM.from_pretrained(source, dtype="auto"), version)
            plugin = FullyShardedDataParallelPlugin(fsdp_version=version, state_dict_type=kind)
            save_fsdp_model(plugin, accelerator, model, out / name)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
            dcp.save({"optimizer": optimizer.state_dict()}, checkpoint_id=out / name / "optimizer_0")


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), Path(sys.argv[2])
    arguments[1].mkdir(parents=True)
    torch.multiprocessing.start_processes(save_on_rank, arguments, PROCESSES, start_method="fork")
