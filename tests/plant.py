"""Plants faults in checkpoints: what wrong converters write, and what happens to files afterwards.

Written in a few lines of torch, without the package, as the oracle in `synthetic` is."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import synthetic
from tests.synthetic import Shape, State

Change = Callable[[State], object]
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def q(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj.weight"


def k(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.k_proj.weight"


def v(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.v_proj.weight"


def o(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.o_proj.weight"


def gate(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate_proj.weight"


def up(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj.weight"


def down(layer: int) -> str:
    return f"model.layers.{layer}.mlp.down_proj.weight"


def norms(layer: int) -> tuple[str, str]:
    prefix = f"model.layers.{layer}."
    return f"{prefix}input_layernorm.weight", f"{prefix}post_attention_layernorm.weight"


# Checkpoints.


def trained_like(shape: Shape, seed: int = 0, scale: float = 1.0) -> State:
    """The whole model with numbers about as large as trained ones: norms near 1, outputs as inputs.

    Matrices are `scale` times that."""
    state = synthetic.weights(shape, seed)  # of standard deviation 0.5
    for name, weight in state.items():
        usual = 2 * weight.shape[-1] ** -0.5
        norm = weight.dim() == 1
        values = 1 + 0.2 * weight.float() if norm else scale * usual * weight.float()
        state[name] = values.to(shape.dtype)
    if shape.tied:
        state["output.weight"] = state["tok_embeddings.weight"]
    return state


def make(folder: Path, shape: Shape, seed: int = 0, scale: float = 1.0) -> State:
    """Write a checkpoint in Meta's layout; returns the whole model."""
    state = trained_like(shape, seed, scale)
    synthetic.write(folder, shape, synthetic.cut(shape, state))
    return state


# Files.


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def tensors(folder: Path) -> State:
    return {name: tensor for file in shards(folder) for name, tensor in load_file(file).items()}


def rewrite(folder: Path, change: Change) -> None:
    """Change tensors by name, and leave each in the file that it was in."""
    states = {file: load_file(file) for file in shards(folder)}
    whole = {name: tensor for state in states.values() for name, tensor in state.items()}
    before = dict(whole)
    change(whole)
    for file, state in states.items():
        kept = {name: whole[name].contiguous() for name in state if name in whole}
        if any(name not in whole or whole[name] is not before[name] for name in state):
            save_file({name: tensor.clone() for name, tensor in kept.items()}, file, {"format": "pt"})


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=2))


def edit_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; `...` removes one."""

    def change(content: dict[str, Any]) -> None:
        for key, value in changes.items():
            content.pop(key, None)
            if value is not ...:
                content[key] = value

    edit_json(folder / "config.json", change)


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(folder / "model.safetensors.index.json", change)


def edit_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a safetensors header, and leave the bytes behind it alone."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def flip_bit(file: Path, position: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


# Tensors.


@dataclass(frozen=True)
class Model:
    """What a wrong converter would have known of the model."""

    n_layers: int
    head_dim: int
    ranks: int
    embedding_cut: int

    def all_layers(self, *kinds: Callable[[int], str]) -> list[str]:
        return [kind(layer) for layer in range(self.n_layers) for kind in kinds]


def permuted(weight: Tensor, head_dim: int) -> Tensor:
    """From Meta's order of rows to Hugging Face's."""
    paired = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return paired.transpose(1, 2).reshape(weight.shape)


def unpermuted(weight: Tensor, head_dim: int) -> Tensor:
    """From Hugging Face's order of rows to Meta's."""
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def each(names: list[str], what: Callable[[Tensor], Tensor]) -> Change:
    return lambda state: state.update({name: what(state[name]) for name in names})


def swapped(*pairs: tuple[str, str]) -> Change:
    def change(state: State) -> None:
        for one, other in pairs:
            state[one], state[other] = state[other], state[one]

    return change


def blocks(weight: Tensor, count: int, order: list[int], axis: int = 0) -> Tensor:
    """Cut into blocks, put together in another order."""
    parts = weight.chunk(count, axis)
    return torch.cat([parts[place] for place in order], axis)


def first_two_swapped(count: int) -> list[int]:
    return [1, 0, *range(2, count)]


def joined_on_the_wrong_axis(weight: Tensor, count: int, right: int) -> Tensor:
    """Cut along one axis and joined along the other, the result taken for the right shape."""
    return torch.cat(weight.chunk(count, right), 1 - right).reshape(weight.shape)


def shifted(weight: Tensor) -> Tensor:
    return torch.roll(weight, 1, 0)


def through_half(weight: Tensor) -> Tensor:
    return weight.half().to(weight.dtype)


def truncated_to_bfloat16(weight: Tensor) -> Tensor:
    """The upper half of each float32, the lower thrown away instead of rounded."""
    bits = weight.float().view(torch.int32) & -0x10000
    return bits.view(torch.float32).bfloat16()


def with_flipped_bit(weight: Tensor, row: int, column: int, bit: int) -> Tensor:
    result = weight.clone()
    code = torch.int32 if weight.element_size() == 4 else torch.int16
    result.view(code)[row, column] ^= 1 << bit
    return result


def with_value(weight: Tensor, value: float, *place: int) -> Tensor:
    result = weight.clone()
    result[place] = value
    return result
