"""The two readings, held against code we did not write and against each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.forward import (
    attention,
    causal,
    greedy,
    huggingface_forward,
    meta_embed,
    meta_forward,
    meta_layer,
    meta_logits,
    rope_frequencies,
)
from tests.peers import Peer

LLAMA2 = LlamaConfig(
    dim=48,
    n_layers=2,
    n_heads=6,
    n_kv_heads=6,
    head_dim=8,
    ffn_dim=40,
    vocab_size=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    context_length=4096,
    tied=False,
)
LLAMA31 = replace(
    LLAMA2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=12,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(),
    context_length=131072,
)
LLAMA32 = replace(LLAMA31, rope_scaling=RopeScaling(factor=32.0), tied=True)
MULTI_QUERY = replace(LLAMA2, n_kv_heads=1, norm_eps=1e-2, rope_theta=1e6)
WIDE_HEADS = replace(LLAMA2, n_heads=2, n_kv_heads=2, head_dim=64, ffn_dim=24)

CUTTABLE = {"llama2": LLAMA2, "llama3.1": LLAMA31, "llama3.2": LLAMA32, "wide-heads": WIDE_HEADS}
ALL = CUTTABLE | {"multi-query": MULTI_QUERY}  # its one KV head cannot be cut
CONFIGS = pytest.mark.parametrize("config", ALL.values(), ids=ALL.keys())
CUTTABLE_CONFIGS = pytest.mark.parametrize("config", CUTTABLE.values(), ids=CUTTABLE.keys())
TOKENS = torch.tensor([1, 63, 5, 5, 32, 31, 7, 0, 12, 40])
SPREAD = torch.tensor([0, 1, 2, 17, 400, 2047, 2048, 5000, 8192, 131071])


def random_meta_weights(config: LlamaConfig, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * 1.5 / columns**0.5

    def norm() -> Tensor:
        return 0.5 + torch.rand(config.dim, generator=generator)

    weights = {"tok_embeddings.weight": matrix(config.vocab_size, config.dim), "norm.weight": norm()}
    weights["output.weight"] = (
        weights["tok_embeddings.weight"] if config.tied else matrix(config.vocab_size, config.dim)
    )
    for layer in range(config.n_layers):
        weights |= {
            f"layers.{layer}.attention.wq.weight": matrix(config.n_heads * config.head_dim, config.dim),
            f"layers.{layer}.attention.wk.weight": matrix(config.n_kv_heads * config.head_dim, config.dim),
            f"layers.{layer}.attention.wv.weight": matrix(config.n_kv_heads * config.head_dim, config.dim),
            f"layers.{layer}.attention.wo.weight": matrix(config.dim, config.n_heads * config.head_dim),
            f"layers.{layer}.feed_forward.w1.weight": matrix(config.ffn_dim, config.dim),
            f"layers.{layer}.feed_forward.w2.weight": matrix(config.dim, config.ffn_dim),
            f"layers.{layer}.feed_forward.w3.weight": matrix(config.ffn_dim, config.dim),
            f"layers.{layer}.attention_norm.weight": norm(),
            f"layers.{layer}.ffn_norm.weight": norm(),
        }
    return weights


def cut(weights: dict[str, Tensor], n_ranks: int, embedding_dim: int) -> list[dict[str, Tensor]]:
    """Slices by torch.chunk: rows, but for the two projections back to the residual stream."""
    dims = {"wo": 1, "w2": 1, "tok_embeddings": embedding_dim}
    ranks: list[dict[str, Tensor]] = [{} for _ in range(n_ranks)]
    for name, weight in weights.items():
        kind = name.split(".")[-2]
        slices = [weight] * n_ranks if "norm" in kind else weight.chunk(n_ranks, dims.get(kind, 0))
        for rank, part in zip(ranks, slices, strict=True):
            rank[name] = part
    return ranks


def halved(weight: Tensor, config: LlamaConfig) -> Tensor:
    """Rows of each head: the even ones first, then the odd ones."""
    heads = weight.split(config.head_dim)
    return torch.cat([rows for head in heads for rows in (head[0::2], head[1::2])])


def to_huggingface(weights: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    theirs = {
        "model.embed_tokens.weight": weights["tok_embeddings.weight"],
        "model.norm.weight": weights["norm.weight"],
    }
    if not config.tied:
        theirs["lm_head.weight"] = weights["output.weight"]
    for layer in range(config.n_layers):
        source = {
            name.removeprefix(f"layers.{layer}.").removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        theirs |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "self_attn.q_proj": halved(source["attention.wq"], config),
                "self_attn.k_proj": halved(source["attention.wk"], config),
                "self_attn.v_proj": source["attention.wv"],
                "self_attn.o_proj": source["attention.wo"],
                "mlp.gate_proj": source["feed_forward.w1"],
                "mlp.up_proj": source["feed_forward.w3"],
                "mlp.down_proj": source["feed_forward.w2"],
                "input_layernorm": source["attention_norm"],
                "post_attention_layernorm": source["ffn_norm"],
            }.items()
        }
    return theirs


class TestMetaReading:
    @pytest.mark.parametrize(
        ("n_ranks", "embedding_dim"), [(1, 0), (2, 0), (2, 1), (4, 0), (4, 1)], ids=lambda n: str(n)
    )
    def test_generates_the_text_of_metas_code(
        self, stories260k: Path, n_ranks: int, embedding_dim: int
    ) -> None:
        expected = json.loads((stories260k / "expected.json").read_text())
        config = LlamaConfig(
            dim=64,
            n_layers=5,
            n_heads=8,
            n_kv_heads=4,
            head_dim=8,
            ffn_dim=172,
            vocab_size=512,
            norm_eps=1e-5,
            rope_theta=10000.0,
            rope_scaling=None,
            context_length=512,
            tied=False,
        )
        ranks = cut(torch.load(stories260k / "consolidated.00.pth"), n_ranks, embedding_dim)

        logits = meta_forward(config, ranks, torch.tensor(expected["prompt_ids"]))[-1]
        assert (logits - torch.tensor(expected["prompt_last_logits"])).abs().max() < 5e-5

        said = torch.tensor(expected["greedy_ids"])
        chosen = meta_forward(config, ranks, said[:-1]).argmax(-1)
        answer_from = len(expected["prompt_ids"]) - 1
        assert chosen[answer_from:].tolist() == said[answer_from + 1 :].tolist()

    @CUTTABLE_CONFIGS
    @pytest.mark.parametrize("embedding_dim", [0, 1])
    def test_ranks_together_are_the_whole(self, config: LlamaConfig, embedding_dim: int) -> None:
        weights = random_meta_weights(config)
        whole = meta_forward(config, [weights], TOKENS, SPREAD, torch.float64)
        parts = meta_forward(config, cut(weights, 2, embedding_dim), TOKENS, SPREAD, torch.float64)
        assert (whole - parts).abs().max() < 1e-12

    def test_kv_heads_are_counted_in_each_rank(self) -> None:
        """Ranks in excess of KV heads each hold a copy; every rank is right by itself."""
        weights = random_meta_weights(LLAMA31)
        doubled = {
            name: weight.view(2, 12, 48).repeat_interleave(2, 0).reshape(48, 48)
            if name.endswith(("wk.weight", "wv.weight"))
            else weight
            for name, weight in weights.items()
        }
        whole = meta_forward(LLAMA31, [weights], TOKENS, dtype=torch.float64)
        parts = meta_forward(LLAMA31, cut(doubled, 4, 0), TOKENS, dtype=torch.float64)
        assert (whole - parts).abs().max() < 1e-12

    def test_a_layer_needs_no_other_layer(self) -> None:
        weights = random_meta_weights(LLAMA2)
        hidden = meta_embed(LLAMA2, [weights], TOKENS)
        for layer in range(LLAMA2.n_layers):
            own = {name: weight for name, weight in weights.items() if name.startswith(f"layers.{layer}.")}
            hidden = meta_layer(LLAMA2, [own], layer, hidden, torch.arange(len(TOKENS)))
        logits = meta_logits(LLAMA2, [weights], hidden)
        assert torch.equal(logits, meta_forward(LLAMA2, [weights], TOKENS))


class TestHuggingFaceReading:
    @CONFIGS
    @pytest.mark.parametrize("positions", [torch.arange(len(TOKENS)), SPREAD], ids=["near", "spread"])
    def test_equals_transformers(
        self, transformers: Peer, config: LlamaConfig, positions: Tensor, tmp_path: Path
    ) -> None:
        weights = to_huggingface(random_meta_weights(config, seed=1), config)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, tmp_path / "weights")
        scaling = config.rope_scaling
        missing = transformers.run(
            """
            import torch
            from safetensors.torch import load_file, save_file
            from transformers import LlamaConfig, LlamaForCausalLM

            torch.set_num_threads(1)
            model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).eval()
            keys = model.load_state_dict(load_file(folder + "/weights"), strict=False)
            assert not keys.unexpected_keys, keys
            with torch.no_grad():
                ids = torch.tensor([tokens])
                answer = model(
                    input_ids=ids, position_ids=torch.tensor([positions]), attention_mask=torch.ones_like(ids)
                )
            save_file({"logits": answer.logits[0].contiguous()}, folder + "/logits")
            result = keys.missing_keys
            """,
            config={
                "hidden_size": config.dim,
                "num_hidden_layers": config.n_layers,
                "num_attention_heads": config.n_heads,
                "num_key_value_heads": config.n_kv_heads,
                "head_dim": config.head_dim,
                "intermediate_size": config.ffn_dim,
                "vocab_size": config.vocab_size,
                "rms_norm_eps": config.norm_eps,
                "rope_theta": config.rope_theta,
                "rope_scaling": None
                if scaling is None
                else {
                    "factor": scaling.factor,
                    "low_freq_factor": scaling.low_freq_factor,
                    "high_freq_factor": scaling.high_freq_factor,
                    "original_max_position_embeddings": scaling.original_context_length,
                    "rope_type": "llama3",
                },
                "max_position_embeddings": config.context_length,
                "tie_word_embeddings": config.tied,
            },
            folder=str(tmp_path),
            tokens=TOKENS.tolist(),
            positions=positions.tolist(),
        )
        assert missing == (["lm_head.weight"] if config.tied else [])
        theirs = load_file(tmp_path / "logits")["logits"]
        ours = huggingface_forward(config, weights, TOKENS, positions)
        assert theirs.abs().max() > 1
        assert (ours - theirs).abs().max() < 1e-5


class TestBothReadings:
    @CONFIGS
    def test_agree(self, config: LlamaConfig) -> None:
        weights = random_meta_weights(config, seed=2)
        source = meta_forward(config, [weights], TOKENS, SPREAD)
        output = huggingface_forward(config, to_huggingface(weights, config), TOKENS, SPREAD)
        assert source.dtype == output.dtype == torch.float32
        assert source.shape == (len(TOKENS), config.vocab_size)
        assert (source - output).abs().max() < 1e-5

    @CONFIGS
    def test_differ_if_the_rows_are_left_as_they_are(self, config: LlamaConfig) -> None:
        weights = random_meta_weights(config, seed=2)
        wrong = to_huggingface(weights, config)
        wrong["model.layers.0.self_attn.q_proj.weight"] = weights["layers.0.attention.wq.weight"]
        source = meta_forward(config, [weights], TOKENS)
        output = huggingface_forward(config, wrong, TOKENS)
        assert (source - output).abs().max() > 1e-2

    def test_weights_may_be_bfloat16(self) -> None:
        weights = {name: weight.bfloat16() for name, weight in random_meta_weights(LLAMA31).items()}
        widened = {name: weight.float() for name, weight in weights.items()}
        source = meta_forward(LLAMA31, [weights], TOKENS)
        assert source.dtype == torch.float32
        assert torch.equal(source, meta_forward(LLAMA31, [widened], TOKENS))
        output = huggingface_forward(LLAMA31, to_huggingface(weights, LLAMA31), TOKENS)
        assert (source - output).abs().max() < 1e-5

    def test_are_causal(self) -> None:
        weights = random_meta_weights(LLAMA31)
        other = to_huggingface(weights, LLAMA31)
        start = TOKENS[:6]
        assert torch.allclose(
            meta_forward(LLAMA31, [weights], TOKENS)[:6],
            meta_forward(LLAMA31, [weights], start),
            atol=1e-5,
        )
        assert torch.allclose(
            huggingface_forward(LLAMA31, other, TOKENS)[:6],
            huggingface_forward(LLAMA31, other, start),
            atol=1e-5,
        )

    def test_see_distances_and_not_places(self) -> None:
        """RoPE is relative: moving the whole text changes nothing, stretching it does."""
        weights = random_meta_weights(LLAMA2)
        near = torch.arange(len(TOKENS))
        here = meta_forward(LLAMA2, [weights], TOKENS, near)
        assert torch.allclose(here, meta_forward(LLAMA2, [weights], TOKENS, near + 100), atol=1e-4)
        assert (here - meta_forward(LLAMA2, [weights], TOKENS, near * 2)).abs().max() > 1e-2


class TestPieces:
    def test_frequencies_of_llama3(self) -> None:
        """Meta's formula, pair by pair in Python's floats."""
        config = replace(LLAMA31, head_dim=128)
        expected = []
        for i in range(64):
            frequency = 500000.0 ** (-2 * i / 128)
            wavelength = 2 * torch.pi / frequency
            if wavelength > 8192:
                frequency = frequency / 8
            elif wavelength >= 2048:
                smooth = (8192 / wavelength - 1) / (4 - 1)
                frequency = (1 - smooth) * frequency / 8 + smooth * frequency
            expected.append(frequency)
        frequencies = rope_frequencies(config)
        assert frequencies.dtype == torch.float32
        assert torch.allclose(frequencies.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6)

    def test_attention_looks_back_by_position(self) -> None:
        """Each token sees those whose position is not above its own, wherever they stand in the row."""
        v = torch.eye(3)[:, None, :]
        flat = torch.zeros(3, 1, 3)
        seen = attention(flat, flat, v, causal(torch.tensor([9, 4, 70]))) > 0
        assert seen.tolist() == [[True, True, False], [False, True, False], [True, True, True]]

    def test_greedy_generates_the_most_likely_token(self) -> None:
        def forward(tokens: Tensor) -> Tensor:
            return torch.nn.functional.one_hot((tokens + 1) % 5, 5).float()

        assert greedy(forward, [2, 3], 4) == [2, 3, 4, 0, 1, 2]
        assert greedy(forward, [2, 3], 0) == [2, 3]
