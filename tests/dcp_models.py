"""Saves state dicts with torch.distributed.checkpoint on several ranks: `python -m tests.dcp_models FOLDER`.

FOLDER has ``states.pt`` with the state dicts; see `tests.samples.dcp_samples`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import torch.distributed.tensor  # before the forks
import torch.multiprocessing

from tests.dcp_writer import process_group, sharded, state_dict
from tests.samples import RANKS, shard_dims


def save_on_rank(rank: int, folder: Path, ranks: int) -> None:
    content = torch.load(folder / "states.pt")
    with process_group(rank, ranks, folder / f"store-{ranks}"):
        for name, state in content["states"].items():
            checkpoint = state_dict(sharded(state, shard_dims(state)))
            if name == "titan":  # its model is not nested, and keeps a buffer
                checkpoint |= checkpoint.pop("model") | {"freqs_cis": content["freqs_cis"]}
            dcp.save(checkpoint, checkpoint_id=folder / f"{name}-{ranks}")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for count in RANKS:
        torch.multiprocessing.start_processes(save_on_rank, (place, count), count, start_method="fork")
