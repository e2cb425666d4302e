"""Weight files in Hugging Face format: their names, the assignment of tensors to them, and the index."""

from __future__ import annotations

from dataclasses import dataclass

from llama_convert.checkpoints.json_object import to_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class Container:
    """Names of the weight files that transformers loads."""

    single: str
    """The file of a model that is not split."""
    index: str
    """The index of a model that is split."""
    shards: str
    """Pattern of the usual names of files with a part, and of `single`."""


SAFETENSORS = Container(SINGLE_FILE, INDEX_FILE, "model*.safetensors")
BIN = Container("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin")
CONTAINERS = (SAFETENSORS, BIN)
"""In the order in which transformers looks for them."""
DEFAULT_SHARD_SIZE = "5GB"


def split_into_shards(sizes: dict[str, int], max_shard_size: int) -> dict[str, list[str]]:
    """Names of the tensors of each file, assigned like ``save_pretrained`` does.

    Tensors are added to a shard until the next one would exceed ``max_shard_size``.  A larger tensor is alone
    in a shard, which precedes the shard that is being filled (huggingface_hub,
    ``serialization/_base.py: split_state_dict_into_shards_factory``).

    Args:
        sizes: bytes of each tensor, in the order of the model.
        max_shard_size: bytes.
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
    """``model.safetensors.index.json``; ``total_size`` is the bytes of all tensors."""
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return to_json(index, sort_keys=True)
