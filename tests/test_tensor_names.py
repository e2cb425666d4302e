"""Names with the prefixes of wrappers, and the three formats of names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_convert.checkpoints.tensor_names import TensorNames, resolve_tensor_names
from llama_convert.errors import InputError
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.weights import (
    LLAMA,
    RECOMPUTED,
    model_weights,
    parse_meta_name,
    parse_torchtune_name,
)
from tests.limits import cpu_limit

CONFIG = LlamaConfig(64, 12, 8, 4, 8, 96, 80, 1e-5, 1e4, None, 4096, False)
WEIGHTS = list(model_weights(CONFIG))
META = [weight.meta_name for weight in WEIGHTS]
HUGGINGFACE = [weight.huggingface_name for weight in WEIGHTS]
TORCHTUNE = [weight.kind.torchtune.format(layer=weight.layer) for weight in WEIGHTS]
FORMATS = {"meta": META, "huggingface": HUGGINGFACE, "torchtune": TORCHTUNE}
LAYER = "layers.3.attention.wq.weight"


def resolve(names: list[str]) -> TensorNames:
    return resolve_tensor_names(names, Path("x.pth"))


def assert_resolved(names: list[str], name_format: str, prefixes: tuple[str, ...] = ()) -> None:
    found = resolve(names)
    assert found.format == name_format
    assert found.weights == dict(zip(names, WEIGHTS, strict=True))
    assert found.prefixes == prefixes
    assert not found.unknown
    assert not found.adapters


@pytest.mark.parametrize("name_format", FORMATS)
def test_plain_names(name_format: str) -> None:
    assert_resolved(FORMATS[name_format], name_format)


def test_torchtune_names_by_hand() -> None:
    """As in torchtune's own table of Meta names."""
    names = {
        "tok_embeddings.weight": "tok_embeddings.weight",
        "norm.scale": "norm.weight",
        "output.weight": "output.weight",
        "layers.7.attn.q_proj.weight": "layers.7.attention.wq.weight",
        "layers.7.attn.k_proj.weight": "layers.7.attention.wk.weight",
        "layers.7.attn.v_proj.weight": "layers.7.attention.wv.weight",
        "layers.7.attn.output_proj.weight": "layers.7.attention.wo.weight",
        "layers.7.mlp.w1.weight": "layers.7.feed_forward.w1.weight",
        "layers.7.mlp.w2.weight": "layers.7.feed_forward.w2.weight",
        "layers.7.mlp.w3.weight": "layers.7.feed_forward.w3.weight",
        "layers.7.sa_norm.scale": "layers.7.attention_norm.weight",
        "layers.7.mlp_norm.scale": "layers.7.ffn_norm.weight",
    }
    assert len(names) == len(LLAMA)
    for name, meta_name in names.items():
        assert parse_torchtune_name(name) == parse_meta_name(meta_name) is not None
    assert parse_torchtune_name("norm.weight") is None


@pytest.mark.parametrize("name_format", FORMATS)
@pytest.mark.parametrize(
    "prefixes",
    [
        ("module.",),
        ("_orig_mod.",),
        ("_orig_mod.", "module."),
        ("model.",),
        ("module.", "model."),
        ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."),
        ("policy.net.",),
        ("layers.0.",),
    ],
)
def test_prefixes_of_all_names(name_format: str, prefixes: tuple[str, ...]) -> None:
    assert_resolved(["".join(prefixes) + name for name in FORMATS[name_format]], name_format, prefixes)


def test_model_before_meta_names_only() -> None:
    assert_resolved([f"model.{name}" for name in META], "meta", ("model.",))
    assert_resolved(HUGGINGFACE, "huggingface")
    without_head = [name for name in HUGGINGFACE if name.startswith("model.")]
    assert resolve(without_head).format == "huggingface"
    assert resolve(without_head).prefixes == ()
    assert resolve(["model.norm.weight"]).format == "huggingface"
    assert resolve([f"model.{name}" for name in without_head]).prefixes == ("model.",)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    name_format=st.sampled_from(sorted(FORMATS)),
    wrappers=st.lists(
        st.sampled_from(["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]),
        max_size=6,
    ),
)
def test_wrappers_in_any_place(data: st.DataObject, name_format: str, wrappers: list[str]) -> None:
    names = []
    for name in FORMATS[name_format]:
        parts = name.split(".")
        for wrapper in wrappers:
            parts.insert(data.draw(st.integers(0, len(parts) - 1)), wrapper)
        names.append(".".join(parts))
    found = resolve(names)
    assert found.weights == dict(zip(names, WEIGHTS, strict=True))
    assert set(found.prefixes) == {f"{wrapper}." for wrapper in wrappers}


class Model(torch.nn.Module):
    """Modules with Meta's names."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = torch.nn.Embedding(4, 2)
        self.norm = torch.nn.RMSNorm(2)
        self.output = torch.nn.Linear(2, 4, bias=False)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(CONFIG.n_layers))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = self._linears("wq", "wk", "wv", "wo")
        self.feed_forward = self._linears("w1", "w2", "w3")
        self.attention_norm = torch.nn.RMSNorm(2)
        self.ffn_norm = torch.nn.RMSNorm(2)

    def _linears(self, *names: str) -> torch.nn.ModuleDict:
        return torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in names})


def test_the_wrappers_of_torch() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    compiled = torch.compile(Model())
    layerwise = Model()
    for number, layer in enumerate(layerwise.layers):
        wrapped = checkpoint_wrapper(layer)
        layerwise.layers[number] = torch.compile(wrapped) if number % 2 else wrapped  # type: ignore[assignment]
    cases: list[tuple[torch.nn.Module, set[str]]] = [
        (Model(), set()),
        (compiled, {"_orig_mod."}),  # type: ignore[list-item]
        (torch.nn.DataParallel(Model()), {"module."}),
        (torch.nn.DataParallel(compiled), {"module.", "_orig_mod."}),  # type: ignore[arg-type]
        (layerwise, {"_orig_mod.", "_checkpoint_wrapped_module."}),
        (torch.nn.ModuleDict({"model": Model()}), {"model."}),
    ]
    for module, prefixes in cases:
        names = [name for name, _ in module.named_parameters()]
        found = resolve(names)
        assert found.format == "meta"
        assert set(found.prefixes) == prefixes
        assert {weight.meta_name for weight in found.weights.values()} == set(META)


@pytest.mark.parametrize(
    "names",
    [
        [LAYER, f"module.{LAYER}"],
        ["module.norm.weight", "norm._orig_mod.weight"],
        ["x.y", "module.x.y"],
    ],
)
def test_names_that_differ_only_in_prefixes(names: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve([*META[:5], *names])
    assert caught.value.code == "TENSOR_DUPLICATE"
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "rope.freqs",
        "freqs_cis",
        "model.freqs_cis",
        "module._orig_mod.freqs_cis",
        "layers.0.attention.inner_attention.rope.freqs",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
    ],
)
def test_constants_of_rope(name: str) -> None:
    """Also when no other name has their prefix, and with and without the prefix of a wrapper."""
    assert RECOMPUTED.fullmatch(name)
    found = resolve([*META, name, f"module.{name}"])
    assert found.recomputed == (name, f"module.{name}")
    assert found.weights == dict(zip(META, WEIGHTS, strict=True))


@pytest.mark.parametrize(
    "name", ["my_rope.freqs", "freqs_cis.weight", "inv_freq", "layers.0.freqs", "xfreqs_cis"]
)
def test_other_names_are_no_constants(name: str) -> None:
    assert not RECOMPUTED.fullmatch(name)
    assert resolve([*META, name]).unknown == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.attn.q_proj.lora_a.weight",
        "layers.0.attn.q_proj.lora_b.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "model.embed_tokens.lora_embedding_A",
    ],
)
def test_adapters(name: str) -> None:
    found = resolve([*TORCHTUNE, name])
    assert found.adapters == (name,)
    assert len(found.weights) == len(TORCHTUNE)


def test_unknown_names() -> None:
    assert resolve([]) == TensorNames(None, {}, (), (), (), ())
    assert resolve(["a", "b.weight"]).unknown == ("a", "b.weight")
    found = resolve([*(f"model.{name}" for name in META), "model.layers.0.attention.wq.bias"])
    assert found.unknown == ("model.layers.0.attention.wq.bias",)
    assert len(found.weights) == len(META)


def test_one_name_is_enough() -> None:
    for name_format, names in FORMATS.items():
        for name, weight in zip(names[1:10], WEIGHTS[1:10], strict=True):  # of a layer: in one format
            assert resolve([f"model.{name}"]).weights == {f"model.{name}": weight}
            assert resolve([name]).format == name_format


def test_a_prefix_of_some_names_is_kept() -> None:
    """A part of another model is not the Llama."""
    vision = [f"vision.{name}" for name in META]
    assert resolve([*META, *vision]).unknown == tuple(vision)
    found = resolve([f"language_model.{name}" for name in HUGGINGFACE] + ["vision_tower.norm.weight"])
    assert found.format is None
    assert not found.weights
    assert resolve(["a.norm.weight", "b.output.weight"]).weights == {}


def test_names_in_both_formats() -> None:
    shared = ["tok_embeddings.weight", "output.weight"]
    assert resolve(shared).format == "meta"
    assert resolve([*shared, "norm.scale"]).format == "torchtune"
    assert resolve(["norm.scale", "norm.weight"]).format == "meta"
    assert resolve([*META, "lm_head.weight"]).unknown == ("lm_head.weight",)


def test_many_long_names() -> None:
    with cpu_limit(20.0):
        resolve([f"x{number}.model.layers.0.self_attn.q_proj.weight" for number in range(20_000)])
        resolve(["a." * 200 + f"layers.{number}.attn.q_proj.weight" for number in range(4_000)])
        resolve(["module." * 60 + f"x{number}" for number in range(4_000)])
