"""Every key of params.json and config.json is used, harmless, refused by name, or reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_convert.checkpoints.huggingface_config import read_config
from llama_convert.checkpoints.params import read_params
from llama_convert.conversion.convert import convert, shard
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import InputError
from llama_convert.inspection.inspect import inspect
from llama_convert.llama.config import RopeScaling
from tests import plant, synthetic
from tests.peers import Peer
from tests.run import llama_convert
from tests.synthetic import LLAMA2, LLAMA3, Shape
from tests.test_verify_faults import Seen, assert_seen, look

LLAMA31_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def with_params(folder: Path, **changes: Any) -> Path:
    plant.make(folder, LLAMA2)
    plant.edit_json(folder / "params.json", lambda params: params.update(changes))
    return folder


def with_config(folder: Path, **changes: Any) -> Path:
    synthetic.write_huggingface(folder, LLAMA2, plant.trained_like(LLAMA2))
    plant.edit_config(folder, **changes)
    return folder


# Meta's own files.

LLAMA = {"dim": 4096, "n_layers": 32, "n_heads": 32, "norm_eps": 1e-5}
LLAMA_2_70B = {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8}
LLAMA_3 = LLAMA | {
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3,
    "rope_theta": 500000.0,
}
METAS: dict[str, dict[str, Any]] = {
    "LLaMA 1": LLAMA | {"multiple_of": 256, "vocab_size": -1},
    "Llama 2 70B": LLAMA_2_70B | {"n_layers": 80, "norm_eps": 1e-5, "vocab_size": -1},
    "Code Llama": LLAMA | {"multiple_of": 256, "ffn_dim_multiplier": 1.0, "rope_theta": 1000000},
    "Llama Guard 1": {"model": LLAMA | {"multiple_of": 256, "n_kv_heads": None, "ffn_dim_multiplier": None}},
    "Llama 3": LLAMA_3,
    "Llama 3.1": LLAMA_3 | {"use_scaled_rope": True},
    "Guard 3": LLAMA_3 | {"use_scaled_rope": False},
    "every default of llama-models": LLAMA_3
    | {
        "use_scaled_rope": False,
        "max_batch_size": 32,
        "max_seq_len": 2048,
        "vision_chunk_size": -1,
        "vision_max_num_chunks": 4,
        "vision_num_cross_attention_layers": -1,
        "quantization_args": None,
        "lora_args": None,
    },
}


@pytest.mark.parametrize("name", METAS)
def test_metas_files_have_no_unknown_key(tmp_path: Path, name: str) -> None:
    file = tmp_path / "params.json"
    file.write_text(json.dumps(METAS[name]))
    assert read_params(file).warnings == ()


# What is refused, and what is not.

PARAMS_REFUSED: list[dict[str, Any]] = [
    *({"sliding_window": 4096}, {"sliding_window": [4096, None]}, {"_sliding_window": [16]}),
    *({"moe": {"num_experts": 8, "num_experts_per_tok": 2}}, {"moe": True}, {"moe_args": {}}),
    *({"num_experts": 8}, {"quantization": {"qformat_weight": "fp8_e4m3"}}, {"quantization_args": {}}),
    *({"lora_args": {"rank": 16}}, {"lora": {"enable": True}}, {"vision_encoder": {"image_size": 1024}}),
    *({"vision_chunk_size": 448}, {"vision_args": {}}, {"use_qk_norm": True}, {"qk_norm": True}),
    *({"attention_chunk_size": 8192}, {"nope_layer_interval": 4}, {"attn_temperature_tuning": True}),
    *({"yarn": {"factor": 16}}, {"rope_scaling": {"factor": 8}}, {"partial_rotary_factor": 0.5}),
    *({"use_hf_rope": True}, {"attention_qkv_bias": True}, {"attn_bias": True}, {"use_biases": True}),
    *({"softcap": 30.0}, {"attn_logit_softcapping": 50.0}, {"act_fn": "gelu"}, {"model_type": "mamba"}),
    *({"embedding_multiplier": 12.0}, {"residual_multiplier": 0.22}, {"logits_scaling": 8.0}),
    *({"attention_multiplier": 0.0156}, {"causal": False}, {"q_lora_rank": 1536}, {"norm_type": "layernorm"}),
    *({"rope_high_freq_factor": 1.0}, {"apply_output": False}),
]
CONFIG_REFUSED: list[dict[str, Any]] = [
    *({"sliding_window": 4096}, {"sliding_window": 4096, "use_sliding_window": True}),
    *({"num_local_experts": 8}, {"quantization_config": {"bits": 4}}, {"quantization": {"bits": 4}}),
    *({"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}, {"partial_rotary_factor": 0.5}),
    *({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, {"attention_multiplier": 1.0}),
    *({"logit_scale": 0.0625}, {"embedding_multiplier": 12.0}, {"residual_multiplier": 0.22}),
    *({"logits_scaling": 8.0}, {"attn_logit_softcapping": 50.0}, {"final_logit_softcapping": 30.0}),
    *({"query_pre_attn_scalar": 256}, {"use_qk_norm": True}, {"no_rope_layers": [1, 1, 0]}),
    *({"layer_types": ["full_attention", "sliding_attention"]}, {"vision_config": {}}, {"alibi": True}),
    *({"architectures": ["LlamaForSequenceClassification"]}, {"architectures": ["MistralForCausalLM"]}),
    *({"model_type": "mistral"}, {"is_encoder_decoder": True}, {"add_cross_attention": True}),
    *(
        {"parallel_attn": True},
        {"scale_emb": 12},
        {"kv_lora_rank": 512},
        {"use_bidirectional_attention": True},
    ),
]


@pytest.mark.parametrize("params", PARAMS_REFUSED, ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_params_are_refused_by_name(tmp_path: Path, params: dict[str, Any], nested: bool) -> None:
    content = METAS["LLaMA 1"] | params
    file = tmp_path / "params.json"
    file.write_text(json.dumps({"model": content} if nested else content))
    with pytest.raises(InputError, match=f'"{next(iter(params))}" is .*Only dense text Llama') as refused:
        read_params(file)
    assert refused.value.code == "UNSUPPORTED_MODEL"


@pytest.mark.parametrize("config", CONFIG_REFUSED, ids=str)
def test_configs_are_refused_by_name(tmp_path: Path, config: dict[str, Any]) -> None:
    source = with_config(tmp_path / "hf", **config)
    key = "partial_rotary_factor" if "rope_parameters" in config else next(iter(config))
    for command in (["convert", "--to", "meta"], ["shard", "--max-shard-size", "1MB"]):
        run = llama_convert(command[0], source, tmp_path / "out", *command[1:])
        assert run.exit_code == 3
        assert f'"{key}" is ' in run.stderr
        assert not (tmp_path / "out").exists()


SWITCHED_OFF: list[dict[str, Any]] = [
    *({"sliding_window": None}, {"sliding_window": -1}, {"_sliding_window": [None]}, {"moe": False}),
    *({"moe": False, "num_experts": 8, "num_experts_per_tok": 2}, {"num_experts": 0}, {"use_qk_norm": False}),
    *({"attention_bias": False}, {"softcap": 0.0}, {"softcap": None}, {"residual_multiplier": 1.0}),
    *({"partial_rotary_factor": 1.0}, {"act_fn": "silu"}, {"vision_config": None}, {"causal": True}),
    *({"sliding_window": 4096, "use_sliding_window": False}, {"quantization": None}, {"_anything": 1}),
    {"another_key": None},
]


@pytest.mark.parametrize("settings", SWITCHED_OFF, ids=str)
def test_what_is_switched_off_is_harmless(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert read_params(with_params(tmp_path / "meta", **settings) / "params.json").warnings == ()
    assert read_config(with_config(tmp_path / "hf", **settings) / "config.json").warnings == ()


# Unknown keys.


def test_an_unknown_key_is_reported(tmp_path: Path) -> None:
    sources = {
        "params.json": with_params(tmp_path / "meta", rotate_twice=True, zeta=[1]),
        "config.json": with_config(tmp_path / "hf", rotate_twice=True, zeta=[1]),
    }
    ways = [
        ("params.json", ["convert"]),
        ("params.json", ["shard", "--mp", "2"]),
        ("config.json", ["convert", "--to", "meta"]),
        ("config.json", ["shard", "--max-shard-size", "1MB"]),
    ]
    for number, (file, (command, *options)) in enumerate(ways):
        source, out = sources[file], tmp_path / str(number)
        run = llama_convert(command, source, out, *options, "--strict")
        assert run.exit_code == 1
        said = f"{file}: Ignored unknown keys: 'rotate_twice' (True), 'zeta' (a list)."
        assert said in " ".join(run.stderr.split())
        assert not out.exists()
        run = llama_convert(command, source, out, *options)
        assert run.exit_code == 0
    for file, source in sources.items():
        code = f"{file.split('.')[0].upper()}_KEYS"
        assert (code, True) in {(one.code, one.is_warning) for one in inspect(source).findings}
        report = look(source, source, "structure")
        assert report.ok
        assert_seen(report, Seen("structure", code, file, "In the source", warning=True))
        assert_seen(report, Seen("structure", code, file, "Check that", warning=True))


def test_many_unknown_keys_are_counted(tmp_path: Path) -> None:
    unknown = {f"k{number}\x1b[2J": "x" * 999 for number in range(100)}
    (warning,) = read_params(with_params(tmp_path / "meta", **unknown) / "params.json").warnings
    assert warning.message.endswith("and 95 more.")
    assert warning.message.isprintable()
    assert len(warning.message) < 1000


ORDINARY: dict[str, dict[str, Any]] = {
    "LLaMA 1 on the Hub": {"max_sequence_length": 2048, "_name_or_path": "x", "pad_token_id": -1},
    "unsloth": {"unsloth_fixed": True, "unsloth_version": "2024.9", "_attn_implementation_autoset": True},
    "mlx": {"attention_bias": False, "quantization": None, "rope_traditional": None},
    "transformers.js": {"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "axolotl": {"_attn_implementation": "flash_attention_2", "use_cache": False, "neftune_noise_alpha": None},
    "PaddleNLP": {"alibi": False, "paddlenlp_version": None, "use_recompute": False, "dtype": "bfloat16"},
    "a Qwen made a Llama": {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21},
    "a classifier's labels": {"id2label": {"0": "a"}, "label2id": {"a": 0}, "problem_type": None},
    "early 2023": {"architectures": ["LLaMAForCausalLM"], "max_sequence_length": 2048},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_fine_tunes_have_no_unknown_key(tmp_path: Path, name: str) -> None:
    source = with_config(tmp_path / "hf", **ORDINARY[name])
    assert read_config(source / "config.json").warnings == ()


@pytest.mark.parametrize("version", ["4.45", "5"])
def test_what_transformers_writes_has_no_unknown_key(tmp_path: Path, version: str) -> None:
    """Both what it saves and everything that its config class has."""
    peer = Peer(f"transformers-{version}")
    try:
        every_key = peer.run(SAVED, folder=str(tmp_path / "saved"))
    finally:
        peer.close()
    assert read_config(tmp_path / "saved/config.json").warnings == ()
    (tmp_path / "all.json").write_text(json.dumps(every_key))
    assert read_config(tmp_path / "all.json").warnings == ()


SAVED = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=8, vocab_size=80)
model = LlamaForCausalLM(LlamaConfig(**sizes))
model.save_pretrained(folder)
result = model.config.to_dict()
"""


# Settings by other names.


@pytest.mark.parametrize("multiple_of", [None, 4, 256])
def test_hidden_dim_decides_the_width(tmp_path: Path, multiple_of: int | None) -> None:
    changes = {"hidden_dim": LLAMA2.ffn_dim} | ({"multiple_of": multiple_of} if multiple_of else {})
    source = with_params(tmp_path / "meta", **changes)
    assert not convert(source, tmp_path / "out", ConvertOptions(tokenizer=None)).warnings[1:]
    assert read_config(tmp_path / "out/config.json").llama.ffn_dim == LLAMA2.ffn_dim
    shard(source, tmp_path / "two", mp=2)
    for out in ("out", "two"):
        assert look(tmp_path / out, source).ok
    convert(tmp_path / "out", tmp_path / "back", ConvertOptions(to="meta"))
    assert read_params(tmp_path / "back/params.json").ffn_dim == LLAMA2.ffn_dim


def test_another_hidden_dim_is_refused(tmp_path: Path) -> None:
    source = with_params(tmp_path / "meta", hidden_dim=100)
    with pytest.raises(InputError, match=r"number of rows does not match params\.json \(hidden_dim\)"):
        convert(source, tmp_path / "out")


def test_wider_heads_are_refused(tmp_path: Path) -> None:
    """Mistral Nemo's 32 heads of 128 for a dim of 5120."""
    file = tmp_path / "params.json"
    for head_dim, refused in ((128, False), (160, True)):
        file.write_text(json.dumps(METAS["LLaMA 1"] | {"head_dim": head_dim}))
        if refused:
            with pytest.raises(InputError, match="head_dim is not dim 4096 / n_heads 32"):
                read_params(file)
        else:
            assert read_params(file).warnings == ()


def test_rope_by_other_names(tmp_path: Path) -> None:
    file = tmp_path / "params.json"

    def read(**changes: Any) -> tuple[float | None, float | None]:
        file.write_text(json.dumps(METAS["LLaMA 1"] | changes))
        params = read_params(file)
        assert params.warnings == ()
        return params.rope_theta, params.rope_factor

    assert read(rope_freq_base=500000.0) == (500000.0, None)
    assert read(rope_freq_base=500000, rope_theta=500000.0) == (500000.0, None)
    assert read(rope_scaling_factor=32.0, rope_high_freq_factor=4) == (None, 32.0)
    assert read(rope_scale_factor=32) == (None, 32.0)
    with pytest.raises(InputError, match="rope_theta 500000 and rope_freq_base 10000 contradict"):
        read(rope_freq_base=10000.0, rope_theta=500000.0)


def test_a_factor_in_params_is_used(tmp_path: Path) -> None:
    plant.make(tmp_path / "meta", LLAMA3)
    plant.edit_json(tmp_path / "meta/params.json", lambda params: params.update(rope_scaling_factor=16.0))
    convert(tmp_path / "meta", tmp_path / "out")
    assert read_config(tmp_path / "out/config.json").llama.rope_scaling == RopeScaling(factor=16.0)
    assert look(tmp_path / "out", tmp_path / "meta").ok


ROPE: dict[str, dict[str, Any]] = {
    "transformers 4": {"rope_theta": 500000.0, "rope_scaling": LLAMA31_SCALING},
    "transformers 5": {"rope_theta": ..., "rope_parameters": LLAMA31_SCALING | {"rope_theta": 500000.0}},
    "both": {
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA31_SCALING,
        "rope_parameters": LLAMA31_SCALING | {"rope_theta": 500000.0},
    },
    "base above, default below": {"rope_theta": 500000.0, "rope_parameters": {"rope_type": "default"}},
    "empty": {"rope_theta": 500000.0, "rope_scaling": LLAMA31_SCALING, "rope_parameters": {}},
    "null": {"rope_theta": 500000.0, "rope_scaling": LLAMA31_SCALING, "rope_parameters": None},
    "neither": {"rope_theta": ...},
}
CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "two bases": {"rope_theta": 500000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "two scalings": {"rope_scaling": LLAMA31_SCALING, "rope_parameters": {"rope_type": "default"}},
    "two factors": {"rope_scaling": LLAMA31_SCALING, "rope_parameters": LLAMA31_SCALING | {"factor": 32.0}},
}


@pytest.mark.parametrize("name", ROPE)
def test_rope_is_read_as_transformers_5_does(tmp_path: Path, transformers5: Peer, name: str) -> None:
    source = with_config(tmp_path / "hf", max_position_embeddings=131072, **ROPE[name])
    theirs = transformers5.run(PARAMETERS, file=str(source / "config.json"))
    ours = read_config(source / "config.json").llama
    assert ours.rope_theta == theirs["rope_theta"]
    assert (ours.rope_scaling and ours.rope_scaling.factor) == theirs.get("factor")


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_rope_that_two_versions_read_differently_is_refused(tmp_path: Path, name: str) -> None:
    source = with_config(tmp_path / "hf", max_position_embeddings=131072, **CONTRADICTIONS[name])
    with pytest.raises(InputError, match="contradict each other"):
        read_config(source / "config.json")


PARAMETERS = """
import json
from transformers import LlamaConfig
result = LlamaConfig(**json.load(open(file))).rope_parameters
"""


# Who made it.


def test_a_mistral_is_not_called_metas(tmp_path: Path) -> None:
    """Version 0.3 has no sliding window: it computes what a Llama does, and is under another license."""
    shape = Shape(dim=64, n_heads=4, n_kv_heads=2, ffn_dim=224, vocab_size=512)
    plant.make(tmp_path / "mistral-7B-v0.3", shape)
    (tmp_path / "mistral-7B-v0.3/params.json").write_text(
        json.dumps(
            {
                "dim": 64,
                "n_layers": 2,
                "head_dim": 16,
                "hidden_dim": 224,
                "n_heads": 4,
                "n_kv_heads": 2,
                "norm_eps": 1e-5,
                "vocab_size": 512,
                "rope_theta": 1000000.0,
            }
        )
    )
    result = convert(tmp_path / "mistral-7B-v0.3", tmp_path / "out")
    assert result.release.endswith("architecture (custom size)")
    assert len(result.warnings) == 1  # that there is no tokenizer
    assert not (tmp_path / "out/NOTICE").exists()
    card = (tmp_path / "out/README.md").read_text()
    assert "license:" not in card.split("---")[1]
    assert "the license of these weights is not known" in card
    assert read_config(tmp_path / "out/config.json").llama.rope_theta == 1e6
    assert look(tmp_path / "out", tmp_path / "mistral-7B-v0.3").ok
