"""Every size of every release, as sparse files: recognised, planned, and its config right, in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.llama.releases import RELEASES
from tests import large
from tests.synthetic import Shape

SIZE = {(release.version, size.label): size for release in RELEASES for size in release.sizes}


def official(version: str, label: str, ranks: int, **changes: Any) -> Shape:
    size = SIZE[version, label]
    tiktoken = version not in ("1", "2", "code", "Guard-1")
    params: dict[str, Any] = {"norm_eps": size.norm_eps[0]}
    if tiktoken:
        params |= {"vocab_size": 128256, "rope_theta": 500000.0}
    if version in ("3.1", "3.2", "3.3", "Guard-3"):
        params["use_scaled_rope"] = True
    if version == "code":
        params["rope_theta"] = 1000000
    return Shape(
        dim=size.dim,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        n_kv_heads=size.n_kv_heads,
        ffn_dim=size.ffn_dim,
        vocab_size=128256 if tiktoken else 32000,
        ranks=ranks,
        embedding_cut=0 if tiktoken else 1,
        params=params | changes.pop("params", {}),
        **changes,
    )


FP16 = torch.float16
R8, R32 = 8.0, 32.0
CODE_70B_INSTRUCT = official("code", "70B", 8, params={"rope_theta": 10000}).but(vocab_size=32016)

# release, size, ranks, how it differs; title; context length, rope factor, rope theta, KV heads, tied.
CASES: list[tuple[Shape, str, tuple[Any, ...]]] = [
    (official("1", "7B", 1, dtype=FP16), "LLaMA 1 7B", (2048, None, 1e4, 32, False)),
    (official("1", "13B", 2, dtype=FP16), "LLaMA 1 13B", (2048, None, 1e4, 40, False)),
    (official("1", "30B", 4, dtype=FP16), "LLaMA 1 30B", (2048, None, 1e4, 52, False)),
    (official("1", "65B", 8, dtype=FP16), "LLaMA 1 65B", (2048, None, 1e4, 64, False)),
    (official("2", "7B", 1), "Llama 2 7B", (4096, None, 1e4, 32, False)),
    (official("2", "13B", 2), "Llama 2 13B", (4096, None, 1e4, 40, False)),
    (official("2", "70B", 8), "Llama 2 70B", (4096, None, 1e4, 8, False)),
    (official("code", "7B", 1), "Code Llama 7B", (16384, None, 1e6, 32, False)),
    (official("code", "34B", 4), "Code Llama 34B", (16384, None, 1e6, 8, False)),
    (CODE_70B_INSTRUCT, "Code Llama 70B", (4096, None, 1e4, 8, False)),
    (official("3", "8B", 1), "Llama 3 8B", (8192, None, 5e5, 8, False)),
    (official("3", "70B", 8), "Llama 3 70B", (8192, None, 5e5, 8, False)),
    (official("3.1", "8B", 1), "Llama 3.1 8B", (131072, R8, 5e5, 8, False)),
    (official("3.1", "70B", 8), "Llama 3.1 70B", (131072, R8, 5e5, 8, False)),
    (official("3.1", "405B", 8), "Llama 3.1 405B", (131072, R8, 5e5, 8, False)),
    (official("3.1", "405B", 16, kv_repeats=2), "Llama 3.1 405B", (131072, R8, 5e5, 8, False)),
    (official("3.2", "1B", 1, tied=True), "Llama 3.2 1B", (131072, R32, 5e5, 8, True)),
    (official("3.2", "3B", 1, tied=True), "Llama 3.2 3B", (131072, R32, 5e5, 8, True)),
    (official("Guard-3", "1B", 1), "Llama Guard 3 1B", (131072, R8, 5e5, 8, False)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "title", "expected"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_official_sizes(tmp_path: Path, shape: Shape, title: str, expected: tuple[Any, ...]) -> None:
    from llama_convert.checkpoints.meta import open_meta
    from llama_convert.checkpoints.meta_folder import find_meta_folder

    checkpoint = open_meta(find_meta_folder(large.make(tmp_path / "meta", shape, fill=False)))
    config = checkpoint.config
    assert checkpoint.detected.title == title
    factor = config.rope_scaling.factor if config.rope_scaling else None
    found = (config.context_length, factor, config.rope_theta, config.n_kv_heads, config.tied)
    assert found == expected
    assert str(checkpoint.dtype) == str(shape.dtype).removeprefix("torch.")
    result = convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(dry_run=True))
    kv = config.n_kv_heads * config.head_dim
    layer = 2 * config.dim**2 + 2 * kv * config.dim + 3 * config.dim * config.ffn_dim + 2 * config.dim
    embeddings = config.vocab_size * config.dim * (1 if config.tied else 2)
    parameters = config.n_layers * layer + config.dim + embeddings
    assert 0 < sum(result.files.values()) - 2 * parameters < 1_000_000


@pytest.mark.parametrize(
    ("version", "label", "flag", "title"),
    [
        ("3.1", "70B", "3.3", "Llama 3.3 70B"),
        ("3", "8B", "Guard-2", "Llama Guard 2 8B"),
        ("3.1", "8B", "Guard-3", "Llama Guard 3 8B"),
    ],
)
def test_flags_choose_between_equals(tmp_path: Path, version: str, label: str, flag: str, title: str) -> None:
    large.make(tmp_path / "meta", official(version, label, 1), fill=False)
    options = ConvertOptions(dry_run=True, llama_version=flag)
    assert convert(tmp_path / "meta", tmp_path / "out", options).release == title


def test_guard_1_keeps_its_params_under_a_key(tmp_path: Path) -> None:
    folder = large.make(tmp_path / "meta", official("2", "7B", 1), fill=False)
    params = json.loads((folder / "params.json").read_text()) | {"n_kv_heads": None}
    (folder / "params.json").write_text(json.dumps({"model": params, "other": 1}))
    assert convert(folder, tmp_path / "out", ConvertOptions(dry_run=True)).release == "Llama Guard 1 7B"
