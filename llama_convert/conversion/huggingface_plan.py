"""The plan of a Hugging Face folder: safetensors shards and their index."""

from __future__ import annotations

import math

from llama_convert.checkpoints.shards import INDEX_FILE, index_json, split_into_shards
from llama_convert.checkpoints.source import Checkpoint
from llama_convert.checkpoints.stored_weight import matrix_shape
from llama_convert.conversion.plan import Place, Plan, Task
from llama_convert.dtypes import Dtype
from llama_convert.formats.safetensors import lay_out
from llama_convert.llama.rope import rope_permutation
from llama_convert.llama.weights import huggingface_weights


def plan_huggingface(checkpoint: Checkpoint, dtype: Dtype | None, max_shard_size: int) -> Plan:
    """Return the plan that writes a checkpoint of any format as Hugging Face safetensors.

    Args:
        checkpoint: the source.
        dtype: dtype of the output; None keeps the dtype of each weight.
        max_shard_size: maximum bytes of tensors per file.
    """
    permutation = rope_permutation(checkpoint.row_order, "huggingface", checkpoint.config.head_dim)
    weights = {weight.huggingface_name: weight for weight in huggingface_weights(checkpoint.config)}
    sources = {name: checkpoint.weights[weight] for name, weight in weights.items()}
    dtypes = {name: dtype or source.dtype for name, source in sources.items()}
    sizes = {name: math.prod(source.shape) * dtypes[name].itemsize for name, source in sources.items()}
    shards = split_into_shards(sizes, max_shard_size)
    layouts = {
        file: lay_out((name, dtypes[name], sources[name].shape) for name in names)
        for file, names in shards.items()
    }
    tasks = []
    for file, layout in layouts.items():
        for name, offset in layout.offsets.items():
            rows, columns = matrix_shape(sources[name].shape)
            place = Place(file, name, offset, (0, rows), (0, columns))
            rotary = weights[name].kind.permuted
            tasks.append(Task(name, sources[name], dtypes[name], (place,), permutation if rotary else None))
    index = {INDEX_FILE: index_json(shards, sum(sizes.values()))} if len(shards) > 1 else {}
    return Plan(layouts, tuple(tasks), index)
