"""The files that hold a Hugging Face folder's tensors: which holds which, and the index that says so."""

from __future__ import annotations

from llama_convert.checkpoints.json_object import to_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DEFAULT_SHARD_SIZE = "5GB"


def split_into_shards(sizes: dict[str, int], max_shard_size: int) -> dict[str, list[str]]:
    """Which tensor goes into which file, as ``save_pretrained`` has it.

    A shard is filled in model order until the next tensor would pass ``max_shard_size`` bytes; a tensor
    larger than that gets a file of its own, which comes before the shard being filled (huggingface_hub,
    ``serialization/_base.py: split_state_dict_into_shards_factory``).
    """
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if size > max_shard_size:
            shards.append([name])
            continue
        if filled + size > max_shard_size:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += size
    if current:
        shards.append(current)
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    count = len(shards)
    return {f"model-{n:05d}-of-{count:05d}.safetensors": names for n, names in enumerate(shards, start=1)}


def index_json(shards: dict[str, list[str]], total_size: int) -> bytes:
    """``model.safetensors.index.json``; ``total_size`` counts the bytes of all tensors."""
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return to_json(index, sort_keys=True)
