"""Output files against what the Hub has and what transformers writes: the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from llama_convert.checkpoints.huggingface_config import FORMAT_VERSION, config_json, generation_config_json
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.meta_folder import find_meta_folder
from llama_convert.checkpoints.shards import split_into_shards
from llama_convert.conversion.execute import execute
from llama_convert.conversion.huggingface_plan import plan_huggingface
from llama_convert.conversion.journal import Journal
from llama_convert.conversion.output import on_disk
from llama_convert.dtypes import BFLOAT16, FLOAT16, Dtype
from llama_convert.formats.safetensors import lay_out
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.releases import RELEASES
from llama_convert.llama.weights import huggingface_weights
from tests import synthetic
from tests.peers import Peer
from tests.synthetic import LLAMA2, LLAMA3, Shape

LLAMA3_8B = LlamaConfig(4096, 32, 32, 8, 128, 14336, 128256, 1e-5, 5e5, None, 8192, False)
LLAMA3_70B = LlamaConfig(8192, 80, 64, 8, 128, 28672, 128256, 1e-5, 5e5, None, 8192, False)
LLAMA3_405B = LlamaConfig(16384, 126, 128, 8, 128, 53248, 128256, 1e-5, 5e5, None, 131072, False)
SCALED = RopeScaling(factor=32.0)
LLAMA32_1B = LlamaConfig(2048, 16, 32, 8, 64, 8192, 128256, 1e-5, 5e5, SCALED, 131072, True)
LLAMA32_3B = LlamaConfig(3072, 28, 24, 8, 128, 8192, 128256, 1e-5, 5e5, SCALED, 131072, True)


def layouts(config: LlamaConfig, dtype: Dtype = BFLOAT16) -> list[tuple[bytes, int]]:
    """Header and size of every file, at the Hub's 5 GB."""
    shapes = {weight.huggingface_name: weight.shape(config) for weight in huggingface_weights(config)}
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
    files = [
        lay_out((name, dtype, shapes[name]) for name in names)
        for names in split_into_shards(sizes, 5_000_000_000).values()
    ]
    return [(file.header, file.size) for file in files]


# Sizes of the files in the meta-llama repositories on the Hub.
@pytest.mark.parametrize(
    ("config", "dtype", "sizes"),
    [
        (LLAMA3_8B, BFLOAT16, [4976698672, 4999802720, 4915916176, 1168138808]),
        (LLAMA3_8B, FLOAT16, [4976698592, 4999802616, 4915916080, 1168138808]),
        (LLAMA32_1B, BFLOAT16, [2471645608]),
        (LLAMA32_3B, BFLOAT16, [4965799096, 1459729952]),
    ],
)
def test_official_shard_sizes(config: LlamaConfig, dtype: Dtype, sizes: list[int]) -> None:
    assert [size for _, size in layouts(config, dtype)] == sizes


@pytest.mark.parametrize(
    ("config", "count", "first", "last"),
    [(LLAMA3_70B, 30, 4584408808, 2101346432), (LLAMA3_405B, 191, 4806672880, 4202692736)],
)
def test_official_shard_counts(config: LlamaConfig, count: int, first: int, last: int) -> None:
    files = layouts(config)
    assert len(files) == count
    assert (files[0][1], files[-1][1]) == (first, last)


def test_headers_of_8b_match_the_official_ones() -> None:
    """The JSON headers of Llama-3.1-8B-Instruct's four shards, by the SHA-256 published of them."""
    headers = [header[8:] for header, _ in layouts(LLAMA3_8B)]
    assert [len(header) for header in headers] == [9512, 12120, 11656, 560]
    assert [hashlib.sha256(header).hexdigest()[:16] for header in headers] == [
        "b858d3d845fa68f9",
        "f7e07271e0434668",
        "66a34736c569ccab",
        "bed1eb708f106718",
    ]


RELEASE = {release.version: release for release in RELEASES}
END, END_OF_TURN = 128001, [128001, 128008, 128009]


# SHA-256 of files in the meta-llama repositories; those of other releases were written by other versions.
@pytest.mark.parametrize(
    ("content", "written_by", "digest"),
    [
        (config_json(LLAMA32_1B, BFLOAT16, 128000, END), FORMAT_VERSION, "bfb5d39c327ee5c3a65e"),
        (config_json(LLAMA32_1B, BFLOAT16, 128000, END_OF_TURN), FORMAT_VERSION, "2febf68cea25bf4611be"),
        (config_json(LLAMA32_3B, BFLOAT16, 128000, END_OF_TURN), FORMAT_VERSION, "39fb36dc5416f445ebc4"),
        (generation_config_json(RELEASE["3.2"], 128000, END_OF_TURN), FORMAT_VERSION, "88effbb63300dbbc7390"),
        (generation_config_json(RELEASE["3.1"], 128000, END_OF_TURN), "4.42.3", "189fb0c0d7fd8a527db2"),
        (generation_config_json(RELEASE["2"], 1, 2), "4.32.0.dev0", "4eb769d945b7c9a9d9b5"),
    ],
    ids=[
        "1B",
        "1B-Instruct",
        "3B-Instruct",
        "3.2-Instruct generation",
        "3.1-Instruct generation",
        "2-chat generation",
    ],
)
def test_configs_match_the_official_ones(content: bytes, written_by: str, digest: str) -> None:
    content = content.replace(FORMAT_VERSION.encode(), written_by.encode())
    assert hashlib.sha256(content).hexdigest().startswith(digest)


SAVE_PRETRAINED = """
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(hidden_size=dim, intermediate_size=ffn_dim, num_hidden_layers=n_layers,
    num_attention_heads=n_heads, num_key_value_heads=n_kv_heads, vocab_size=vocab_size,
    tie_word_embeddings=tied)
model = LlamaForCausalLM(config).to(getattr(torch, dtype))
missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
assert not unexpected and missing == (["lm_head.weight"] if tied else []), (missing, unexpected)
model.save_pretrained(out, max_shard_size=max_shard_size)
"""


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB", "30KB", "9KB", "1KB"])
@pytest.mark.parametrize(
    "shape",
    [
        LLAMA2.but(ranks=2),
        LLAMA3.but(n_layers=12, ranks=4),  # layers 10 and 11 sort before layer 2
        LLAMA3.but(tied=True),
        LLAMA2.but(dtype=torch.float32),
    ],
    ids=["llama2", "llama3", "tied", "float32"],
)
def test_same_bytes_as_save_pretrained(
    tmp_path: Path, transformers4: Peer, shape: Shape, max_shard_size: str
) -> None:
    from safetensors.torch import save_file

    from llama_convert.units import parse_size

    state = synthetic.make(tmp_path / "meta", shape)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    plan = plan_huggingface(open_meta(find_meta_folder(tmp_path / "meta")), None, parse_size(max_shard_size))
    ours.mkdir()
    with on_disk(plan, ours, fsync=True) as outputs:
        execute(plan, outputs, Journal(tmp_path / "journal", ""), block_size=4096)
    for name, content in plan.small_files.items():
        (ours / name).write_bytes(content)
    weights = synthetic.huggingface(shape, state)
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()}, tmp_path / "weights.safetensors"
    )
    transformers4.run(
        SAVE_PRETRAINED,
        dim=shape.dim,
        ffn_dim=shape.ffn_dim,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        vocab_size=shape.vocab_size,
        tied=shape.tied,
        dtype=str(shape.dtype).removeprefix("torch."),
        weights=tmp_path / "weights.safetensors",
        out=theirs,
        max_shard_size=max_shard_size,
    )
    names = {path.name for path in theirs.glob("model*")}
    assert {path.name for path in ours.iterdir()} == names
    for name in sorted(names):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for index in plan.small_files.values():
        assert json.loads(index)["metadata"]["total_size"] == sum(
            weight.nbytes for weight in weights.values()
        )
