"""What someone who knows torch well would write: ``python -m tests.bench.savvy SRC DST``.

Files are mapped, not read; tensors are joined and permuted one shard at a time, and saved in 5 GB shards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

NAMES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
OTHERS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def main(source: Path, out: Path) -> None:
    """Convert the weights."""
    params = json.loads((source / "params.json").read_text())
    ranks = [
        torch.load(file, mmap=True, weights_only=True, map_location="cpu")
        for file in sorted(source.glob("*.pth"))
    ]
    head_dim = params["dim"] // params["n_heads"]
    out.mkdir()
    shard: dict[str, torch.Tensor] = {}
    weight_map: dict[str, str] = {}
    size = 0

    def flush() -> None:
        nonlocal shard, size
        file = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(shard, out / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard, size = {}, 0

    tied = ranks[0]["output.weight"].data_ptr() == ranks[0]["tok_embeddings.weight"].data_ptr()
    for key in ranks[0]:
        if key == "output.weight" and tied:
            continue
        parts = [rank[key] for rank in ranks]
        axis = 1 if key.endswith(("wo.weight", "w2.weight")) else 0
        whole = parts[0] if parts[0].dim() == 1 or len(parts) == 1 else torch.cat(parts, axis)
        if key.endswith(("wq.weight", "wk.weight")):
            whole = whole.view(-1, head_dim // 2, 2, whole.shape[1]).transpose(1, 2).reshape(whole.shape)
        if size + whole.nbytes > 5e9:
            flush()
        stem = key.removesuffix(".weight")
        if stem in OTHERS:
            name = OTHERS[stem]
        else:
            _, layer, rest = stem.split(".", 2)
            name = f"model.layers.{layer}.{NAMES[rest]}"
        shard[f"{name}.weight"] = whole.contiguous()
        size += whole.nbytes
    flush()
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
