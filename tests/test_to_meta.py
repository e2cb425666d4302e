"""From Hugging Face's layout to Meta's: files that Meta's own code loads, and speaks with."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import shutil
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llama_convert.checkpoints.params import ffn_width, params_json, width_params
from llama_convert.conversion.convert import convert, shard
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import RefusedError, UsageError
from llama_convert.inspection.inspect import inspect
from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.releases import RELEASES, TokenizerKind
from llama_convert.tokenizers import ranks_of_tokenizer_json
from tests import synthetic
from tests.peers import ROOT, Peer
from tests.run import llama_convert, sizes
from tests.synthetic import LLAMA2, LLAMA3, Shape
from tests.test_convert import FIXTURES
from tests.test_fixtures import CONFIGS
from tests.test_forward_meta_code import (
    EMBEDDINGS,
    ROUNDING,
    ROUNDING_OF_A_TEXT_BY_HEART,
    STORIES,
    TOKENS,
    Processes,
    says_what_it_should,
)

BY_NAME = {path.name: path for path in FIXTURES}
each_fixture = pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)


def to_meta(ranks: int = 1, axis: int | None = None, **options: Any) -> ConvertOptions:
    return ConvertOptions(to="meta", mp=ranks, embedding_axis=axis, **options)


def huggingface(folder: Path, shape: Shape) -> Path:
    return synthetic.write_huggingface(folder, shape, synthetic.weights(shape))


# The files.


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_rank_files_are_as_torch_has_them(tmp_path: Path, ranks: int, tied: bool, axis: int) -> None:
    shape = LLAMA3.but(tied=tied, ranks=ranks, embedding_cut=axis, kv_repeats=max(1, ranks // 4))
    state = synthetic.weights(shape)
    synthetic.write_huggingface(tmp_path / "hf", shape, state)
    convert(tmp_path / "hf", tmp_path / "meta", to_meta(ranks, axis))
    names = [f"consolidated.{rank:02d}.pth" for rank in range(ranks)]
    assert sorted(path.name for path in (tmp_path / "meta").glob("*.pth")) == names
    for mmap in (False, True):
        found = synthetic.read(tmp_path / "meta", mmap=mmap)
        synthetic.assert_ranks(found, synthetic.cut(shape, state))
        for rank in found:
            assert type(rank) is OrderedDict
            assert list(rank) == list(state)
            assert "rope.freqs" not in rank
            one_storage = rank["output.weight"].data_ptr() == rank["tok_embeddings.weight"].data_ptr()
            assert one_storage == (tied and (ranks == 1 or axis == 0))
    for name in names:
        with zipfile.ZipFile(tmp_path / "meta" / name) as archive:
            assert archive.testzip() is None
            assert {entry.filename.split("/")[0] for entry in archive.infolist()} == {name[:-4]}


@pytest.mark.parametrize("ranks", [2, 8])
def test_a_single_kv_head_is_on_every_rank(tmp_path: Path, ranks: int) -> None:
    shape = LLAMA3.but(n_kv_heads=1, ranks=ranks, kv_repeats=ranks)
    convert(huggingface(tmp_path / "hf", shape), tmp_path / "meta", to_meta(ranks))
    synthetic.assert_ranks(synthetic.read(tmp_path / "meta"), synthetic.cut(shape, synthetic.weights(shape)))
    assert json.loads((tmp_path / "meta/params.json").read_text())["n_kv_heads"] == ranks


def test_a_second_run_writes_the_same_bytes(tmp_path: Path) -> None:
    source = huggingface(tmp_path / "hf", LLAMA3)
    convert(source, tmp_path / "one", to_meta(2, workers=1, block_size=100))
    convert(source, tmp_path / "other", to_meta(2, workers=5))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


# Meta's own code.


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("meta"))
    yield processes
    processes.close()


TRANSFORMERS = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(1)
model = LlamaForCausalLM(LlamaConfig(**config)).eval()
for weight in model.parameters():
    weight.data.normal_(0, 0.3)
model.save_pretrained(folder, max_shard_size="100KB")
with torch.no_grad():
    torch.save(model(torch.tensor([tokens])).logits[0], answer)
"""
SAVED = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
}
LLAMA31_ROPE = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SAVED_MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "Llama 2": ({"num_key_value_heads": 8}, 2, 1),
    "Llama 2 70B": ({}, 4, 1),
    "Llama 3": ({"rope_theta": 500000.0}, 2, 0),
    "Llama 3.1": (LLAMA31_ROPE, 4, 0),
    "Llama 3.1, KV heads twice": (LLAMA31_ROPE | {"num_key_value_heads": 2}, 4, 0),
    "tied": (LLAMA31_ROPE | {"tie_word_embeddings": True}, 2, 0),
    "tied, 1 rank": (LLAMA31_ROPE | {"tie_word_embeddings": True}, 1, 0),
    "tied, cut on dim 1": (LLAMA31_ROPE | {"tie_word_embeddings": True}, 2, 1),
}


@pytest.mark.parametrize("name", SAVED_MODELS)
def test_metas_code_computes_what_transformers_does(
    meta: Processes, transformers: Peer, tmp_path: Path, name: str
) -> None:
    """From what transformers saved, with our params.json as it stands: nothing else is told."""
    changes, ranks, axis = SAVED_MODELS[name]
    answer, tokens = tmp_path / "logits", TOKENS.tolist()
    transformers.run(
        TRANSFORMERS, config=SAVED | changes, folder=tmp_path / "hf", tokens=tokens, answer=answer
    )
    convert(tmp_path / "hf", tmp_path / "meta", to_meta(ranks, axis))
    ours = meta.run(tmp_path / "meta", ranks, [tokens], embedding=EMBEDDINGS[axis]).logits
    theirs = torch.load(answer)
    assert theirs.abs().max() > 1
    assert (ours - theirs).abs().max() < 2 * ROUNDING * theirs.abs().max()


@pytest.mark.parametrize(("ranks", "axis"), [(2, 1), (4, 0)])
def test_a_trained_model_has_low_perplexity(
    meta: Processes, stories260k: Path, tmp_path: Path, ranks: int, axis: int
) -> None:
    convert(stories260k, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "meta", to_meta(ranks, axis))
    expected = json.loads((stories260k / "expected.json").read_text())
    says_what_it_should(meta, tmp_path / "meta", STORIES, expected, axis, ROUNDING)


@pytest.mark.parametrize("name", ["llama2-mp2", "llama3.1-mp2"])
def test_fixtures_have_low_perplexity(meta: Processes, tmp_path: Path, name: str) -> None:
    convert(BY_NAME[name], tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "meta", to_meta(2))
    expected = json.loads((BY_NAME[name] / "expected.json").read_text())
    axis = int("llama2" in name)
    says_what_it_should(meta, tmp_path / "meta", CONFIGS[name], expected, axis, ROUNDING_OF_A_TEXT_BY_HEART)


# params.json.

RELEASED_SIZES = {f"{release.title} {size.label}": size for release in RELEASES for size in release.sizes}
OFFICIAL_WIDTHS = {
    "LLaMA 1 30B": (256, None),
    "LLaMA 1 65B": (256, None),
    "Llama 2 7B": (256, None),
    "Llama 2 13B": (256, None),
    "Llama 2 70B": (4096, 1.3),
    "Llama 3 8B": (1024, 1.3),
    "Llama 3.1 405B": (4096, 1.2),
    "Llama 3.2 1B": (256, 1.5),
    "Llama 3.2 3B": (256, 1.0),
}


@pytest.mark.parametrize("name", OFFICIAL_WIDTHS)
def test_widths_of_releases_are_written_as_meta_writes_them(name: str) -> None:
    size = RELEASED_SIZES[name]
    assert width_params(size.dim, size.ffn_dim) == OFFICIAL_WIDTHS[name]


@given(dim=st.integers(1, 10000).map(lambda half: 2 * half), ffn_dim=st.integers(1, 200_000))
@example(dim=2, ffn_dim=1)
@example(dim=2, ffn_dim=200_000)
@example(dim=20_000, ffn_dim=1)
def test_any_width_can_be_written(dim: int, ffn_dim: int) -> None:
    multiple_of, multiplier = width_params(dim, ffn_dim)
    assert ffn_width(dim, multiple_of, multiplier) == ffn_dim
    assert multiple_of > 0
    assert multiplier is None or multiplier > 0


def test_every_released_width_can_be_written() -> None:
    for size in RELEASED_SIZES.values():
        assert ffn_width(size.dim, *width_params(size.dim, size.ffn_dim)) == size.ffn_dim


def config_of(name: str, vocab_size: int, **changes: Any) -> LlamaConfig:
    size = RELEASED_SIZES[name]
    config = LlamaConfig(
        size.dim, size.n_layers, size.n_heads, size.n_kv_heads, size.dim // size.n_heads, size.ffn_dim,
        vocab_size, norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, context_length=4096, tied=False,
    )  # fmt: skip
    return replace(config, **changes)


SCALED = {"rope_theta": 500000.0, "rope_scaling": RopeScaling()}
PUBLISHED: dict[str, tuple[TokenizerKind, LlamaConfig]] = {
    "Llama 2 7B": ("sentencepiece", config_of("Llama 2 7B", 32000)),
    "Llama 2 7B-chat": ("sentencepiece", config_of("Llama 2 7B", 32000, norm_eps=1e-6)),
    "Llama 2 13B": ("sentencepiece", config_of("Llama 2 13B", 32000)),
    "Llama 3.1 8B Instruct": ("tiktoken", config_of("Llama 3.1 8B", 128256, **SCALED)),
    "Llama 3.2 1B Instruct": ("tiktoken", config_of("Llama 3.2 1B", 128256, **SCALED, tied=True)),
}
LLAMA1 = {
    "LLaMA 1 7B": config_of("LLaMA 1 7B", 32000, norm_eps=1e-6),
    "LLaMA 1 13B": config_of("LLaMA 1 13B", 32000, norm_eps=1e-6),
    "LLaMA 1 30B": config_of("LLaMA 1 30B", 32000, norm_eps=1e-6),
    "LLaMA 1 65B": config_of("LLaMA 1 65B", 32000),
}


def published(release: str) -> set[tuple[int, str, str]]:
    """Size, algorithm and digest of a release's ``params.json``."""
    with (ROOT / "llama_convert/verification/official_files.csv").open() as file:
        rows = list(csv.reader(line for line in file if line.startswith("meta,")))
    return {
        (int(size), algorithm, digest)
        for _, title, _, name, size, algorithm, digest, *_ in rows
        if title == release and name.endswith("params.json")
    }


def digests(content: bytes) -> set[tuple[int, str, str]]:
    size = len(content)
    return {(size, name, hashlib.new(name, content).hexdigest()) for name in ("md5", "sha256")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_params_of_releases_match_the_official_bytes(name: str) -> None:
    kind, config = PUBLISHED[name]
    assert published(name)
    assert published(name) <= digests(params_json(config, kind, config.n_kv_heads))


@pytest.mark.parametrize("name", LLAMA1)
def test_params_of_llama_1_are_but_for_the_end_of_the_line(name: str) -> None:
    config = LLAMA1[name]
    assert published(name)
    assert published(name) <= digests(params_json(config, "sentencepiece", config.n_kv_heads).rstrip(b"\n"))


def test_params_of_llama_2_are_as_others_have_seen_them() -> None:
    content = params_json(config_of("Llama 2 7B", 32000), "sentencepiece", 32)
    assert list(json.loads(content)) == [
        "dim",
        "multiple_of",
        "n_heads",
        "n_layers",
        "norm_eps",
        "vocab_size",
    ]
    assert hashlib.md5(content).hexdigest() == "9a3757de7196d1840b551a85b82efbc8"
    content = params_json(config_of("Llama 2 13B", 32000), "sentencepiece", 40)
    assert hashlib.md5(content).hexdigest() == "b54ad5614e2a66c1e6eb3d4d25aa8d94"


ODD = {
    "32016 words without a long theta": (LLAMA2.but(vocab_size=32016, dim=16, n_heads=2, n_kv_heads=2), {}),
    "32000 words and scaled RoPE": (
        LLAMA2.but(vocab_size=32000, dim=16, n_heads=2, n_kv_heads=2, params={"use_scaled_rope": True}),
        {},
    ),
    "a long theta": (LLAMA2.but(params={"rope_theta": 1e6}), {}),
    "Llama 3's theta, scaled": (LLAMA3, {}),
}


@pytest.mark.parametrize("name", ODD)
def test_params_are_read_back(tmp_path: Path, name: str) -> None:
    """Whatever release a reader takes the folder for."""
    shape, _ = ODD[name]
    source = huggingface(tmp_path / "hf", shape)
    convert(source, tmp_path / "meta", to_meta(2))
    convert(tmp_path / "meta", tmp_path / "again")
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "again"))
    assert other["rope_theta"] == one["rope_theta"]
    assert other["rope_scaling"] == one.get("rope_scaling")
    assert other["intermediate_size"] == one["intermediate_size"]


def test_another_factor_is_warned_of(tmp_path: Path) -> None:
    source = huggingface(tmp_path / "hf", LLAMA3)
    change_config(source, rope_scaling=LLAMA31_ROPE["rope_scaling"] | {"factor": 16.0})
    result = convert(source, tmp_path / "meta", to_meta())
    (warning,) = [warning for warning in result.warnings if "RoPE" in warning]
    assert "is 16, " in warning
    assert "use 8." in warning
    with pytest.raises(RefusedError):
        convert(source, tmp_path / "strict", to_meta(strict=True))
    assert not (tmp_path / "strict").exists()


NAMED: dict[str, tuple[Shape, float | None, int, str | None, str]] = {
    "3.1": (LLAMA3, 8.0, 131072, None, "3.1"),
    "3.2": (LLAMA3, 32.0, 131072, None, "3.2"),
    "3.1, tied": (LLAMA3.but(tied=True), 8.0, 131072, None, "3.1"),
    "3.2, tied": (LLAMA3.but(tied=True), 32.0, 131072, None, "3.2"),
    "3": (LLAMA3, None, 8192, None, "3"),
    "2": (LLAMA2, None, 4096, None, "2"),
    "1": (LLAMA2, None, 2048, None, "1"),
    "settings of no release": (LLAMA3, 32.0, 8192, None, "3.1"),
    "by its folder, among those that fit": (LLAMA3, 8.0, 131072, "Llama-3.3-70B-Instruct", "3.3"),
    "not by its folder, where that does not fit": (LLAMA3, 32.0, 131072, "Llama-3.1-8B", "3.2"),
}


@pytest.mark.parametrize("case", NAMED)
def test_the_release_is_detected_by_context_and_factor(tmp_path: Path, case: str) -> None:
    """For a shape that was never released, by convert and shard as by inspect."""
    shape, factor, context, folder, version = NAMED[case]
    source = huggingface(tmp_path / (folder or "hf"), shape)
    scaling = factor and LLAMA31_ROPE["rope_scaling"] | {"factor": factor}
    change_config(source, max_position_embeddings=context, rope_scaling=scaling)
    release = inspect(source).release
    assert release is not None
    assert release.version == version
    assert convert(source, tmp_path / "meta", to_meta()).version == version
    assert shard(source, tmp_path / "shards", max_shard_size="5GB").version == version


@pytest.mark.parametrize(("tied", "factor", "readers"), [(False, 32.0, 8), (True, 8.0, 32)])
def test_a_factor_that_readers_cannot_detect_is_warned_of(
    tmp_path: Path, tied: bool, factor: float, readers: int
) -> None:
    """config.json identifies the release, and params.json does not; the manifest does, while it is there."""
    source = huggingface(tmp_path / "hf", LLAMA3.but(tied=tied))
    scaling = LLAMA31_ROPE["rope_scaling"] | {"factor": factor}
    change_config(source, max_position_embeddings=131072, rope_scaling=scaling)
    (warning,) = [w for w in convert(source, tmp_path / "meta", to_meta()).warnings if "RoPE" in w]
    assert f"is {factor:g}, " in warning
    assert f"use {readers}." in warning
    for number, expected in enumerate((factor, readers)):
        again = tmp_path / f"again{number}"
        convert(tmp_path / "meta", again)
        assert json.loads((again / "config.json").read_text())["rope_scaling"]["factor"] == expected
        (tmp_path / "meta/llama-convert.json").unlink(missing_ok=True)


def test_a_version_that_is_asked_for_wins(tmp_path: Path) -> None:
    """Over the settings, which may be a fine-tuning's; not over what cannot be."""
    source = huggingface(tmp_path / "hf", LLAMA3)
    change_config(source, max_position_embeddings=131072)
    assert convert(source, tmp_path / "meta", to_meta(llama_version="3.2")).version == "3.2"
    with pytest.raises(UsageError, match="does not match the files"):
        convert(source, tmp_path / "other", to_meta(llama_version="2"))


# The tokenizer.


@each_fixture
def test_the_tokenizer_returns(tmp_path: Path, fixture: Path) -> None:
    convert(fixture, tmp_path / "hf", ConvertOptions(instruct=True))
    original = (fixture / "tokenizer.model").read_bytes()
    is_sentencepiece = "llama2" in fixture.name
    assert (tmp_path / "hf/tokenizer.model").exists() == is_sentencepiece
    ranks = ranks_of_tokenizer_json(json.loads((tmp_path / "hf/tokenizer.json").read_bytes()))
    assert ranks == (None if is_sentencepiece else original)
    convert(tmp_path / "hf", tmp_path / "meta", to_meta())
    assert (tmp_path / "meta/tokenizer.model").read_bytes() == original


def test_llama_3s_tokenizer_returns(tmp_path: Path, llama3_tokenizer_model: Path) -> None:
    convert(llama3_tokenizer_model.parent, tmp_path / "hf", ConvertOptions(model_size="tokenizer_only"))
    content = json.loads((tmp_path / "hf/tokenizer.json").read_bytes())
    assert ranks_of_tokenizer_json(content) == llama3_tokenizer_model.read_bytes()
    # With merges in pairs, with words of a fine-tuning, with special tokens among the words: the same ranks.
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
    content["model"]["merges"] = pairs
    content["added_tokens"].append({"id": 128256, "content": "<pad>", "special": True})
    content["model"]["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}
    assert ranks_of_tokenizer_json(content) == llama3_tokenizer_model.read_bytes()


RESAVE = """
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(source).save_pretrained(folder)
"""


@pytest.mark.parametrize("name", ["llama3.1-mp2", "llama3.2-tied"])
def test_a_tokenizer_that_transformers_saved(tmp_path: Path, transformers: Peer, name: str) -> None:
    convert(BY_NAME[name], tmp_path / "hf")
    transformers.run(RESAVE, source=tmp_path / "hf", folder=tmp_path / "saved")
    content = json.loads((tmp_path / "saved/tokenizer.json").read_bytes())
    assert ranks_of_tokenizer_json(content) == (BY_NAME[name] / "tokenizer.model").read_bytes()


def change_tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def do(file: Path) -> None:
        content = json.loads(file.read_bytes())
        change(content)
        file.write_text(json.dumps(content))

    return do


def test_a_token_that_was_added_stays_behind(tmp_path: Path) -> None:
    """Which is said: Meta's form has no place for it."""
    convert(BY_NAME["llama3.1-mp2"], tmp_path / "hf")
    token = {"id": 640, "content": "<pad>", "special": True}
    change_tokenizer(lambda c: c["added_tokens"].append(token))(tmp_path / "hf/tokenizer.json")
    result = convert(tmp_path / "hf", tmp_path / "meta", to_meta())
    assert [warning.rpartition(": ")[2] for warning in result.warnings] == ["'<pad>'."]
    model = (tmp_path / "meta/tokenizer.model").read_bytes()
    assert model == (BY_NAME["llama3.1-mp2"] / "tokenizer.model").read_bytes()


OTHER_TOKENIZERS = {
    "another pattern": change_tokenizer(
        lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\s+")
    ),
    "no pattern": change_tokenizer(lambda c: c.update(pre_tokenizer=None)),
    "a gap": change_tokenizer(lambda c: c["model"]["vocab"].pop("a")),
    "a unigram": change_tokenizer(lambda c: c.update(model={"type": "Unigram", "vocab": [["a", 0.0]]})),
    "sentencepiece's": change_tokenizer(
        lambda c: c["model"]["vocab"].update({"▁a": c["model"]["vocab"].pop("a")})
    ),
}


@pytest.mark.parametrize("name", OTHER_TOKENIZERS)
def test_a_tokenizer_that_meta_has_no_form_for(tmp_path: Path, name: str) -> None:
    """It is warned of, and left out; an option names the right one."""
    fixture = BY_NAME["llama3.1-mp2"]
    convert(fixture, tmp_path / "hf")
    OTHER_TOKENIZERS[name](tmp_path / "hf/tokenizer.json")
    result = convert(tmp_path / "hf", tmp_path / "meta", to_meta())
    (warning,) = result.warnings
    assert "tokenizer.json" in warning
    assert "--tokenizer PATH" in warning
    assert not (tmp_path / "meta/tokenizer.model").exists()
    assert "tokenizer" not in (tmp_path / "meta/checklist.chk").read_text()
    named = convert(tmp_path / "hf", tmp_path / "named", to_meta(tokenizer=fixture / "tokenizer.model"))
    assert named.warnings == []
    assert (tmp_path / "named/tokenizer.model").read_bytes() == (fixture / "tokenizer.model").read_bytes()


def test_sentencepiece_without_its_model(tmp_path: Path) -> None:
    convert(BY_NAME["llama2-mp2"], tmp_path / "hf")
    original = (tmp_path / "hf/tokenizer.model").read_bytes()
    (tmp_path / "hf/tokenizer.model").unlink()
    result = convert(tmp_path / "hf", tmp_path / "meta", to_meta())
    (warning,) = result.warnings
    assert "--tokenizer PATH" in warning
    assert not (tmp_path / "meta/tokenizer.model").exists()
    (tmp_path / "hf/original").mkdir()
    (tmp_path / "hf/original/tokenizer.model").write_bytes(original)
    assert convert(tmp_path / "hf", tmp_path / "found", to_meta()).warnings == []
    assert (tmp_path / "found/tokenizer.model").read_bytes() == original


def test_ranks_are_lines_of_base64() -> None:
    fixture = BY_NAME["llama3.1-mp2"]
    first, *_ = (fixture / "tokenizer.model").read_bytes().splitlines()
    token, rank = first.split()
    assert len(base64.b64decode(token)) == 1
    assert rank == b"0"


# What stands beside the weights.


@pytest.mark.parametrize("ranks", [1, 2])
def test_checklist(tmp_path: Path, ranks: int) -> None:
    convert(BY_NAME["llama3.1-mp2"], tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "meta", to_meta(ranks))
    command = ["md5sum", "-c", "--strict", "checklist.chk"]
    run = subprocess.run(command, cwd=tmp_path / "meta", capture_output=True, text=True, check=True)
    files = [*(f"consolidated.{rank:02d}.pth" for rank in range(ranks)), "params.json", "tokenizer.model"]
    assert run.stdout.split("\n") == [*(f"{file}: OK" for file in files), ""]
    convert(tmp_path / "hf", tmp_path / "bare", to_meta(ranks, checklist=False))
    ours = {"llama-convert.json", "README.md"}
    assert {path.name for path in (tmp_path / "bare").iterdir()} == {*files, *ours}


def test_what_is_carried_over(tmp_path: Path) -> None:
    convert(BY_NAME["llama3.1-mp2"], tmp_path / "hf")
    papers = ("LICENSE", "USE_POLICY.md", "README.md", "LICENSE.txt", "NOTICE")
    left = (
        "checklist.chk",
        "pytorch_model.bin",
        "chat_template.jinja",
        "trainer_state.json",
        ".gitattributes",
    )
    for name in (*papers, *left):
        (tmp_path / "hf" / name).write_text(f"The {name}")
    convert(tmp_path / "hf", tmp_path / "meta", to_meta(checklist=False))
    ours = {"consolidated.00.pth", "params.json", "tokenizer.model", "llama-convert.json"}
    assert {path.name for path in (tmp_path / "meta").iterdir()} == {*ours, *papers}
    for name in papers:
        assert (tmp_path / "meta" / name).read_text() == f"The {name}"
    manifest = json.loads((tmp_path / "meta/llama-convert.json").read_text())
    assert set(manifest["files"]) == {*ours, *papers} - {"llama-convert.json"}
    assert {source["name"] for source in manifest["sources"]} == {"model.safetensors", "config.json"}


def test_dry_run_and_json(tmp_path: Path) -> None:
    convert(BY_NAME["llama3.2-tied"], tmp_path / "hf")
    command = ("convert", tmp_path / "hf", tmp_path / "meta", "--to", "meta", "--mp", "2", "--json")
    dry = json.loads(llama_convert(*command, "--dry-run").stdout)
    assert not (tmp_path / "meta").exists()
    done = json.loads(llama_convert(*command, "--verify").stdout)
    written = {path.name: path.stat().st_size for path in (tmp_path / "meta").iterdir()}
    assert sizes(done) == written
    recorded = {"README.md", "llama-convert.json"}  # where --verify writes its result
    assert sizes(dry).keys() == written.keys()
    assert all(size == written[name] for name, size in sizes(dry).items() if name not in recorded)
    assert (dry["dry_run"], done["dry_run"], done["ok"]) == (True, False, True)
    assert {check["status"] for check in done["verification"]["checks"]} == {"pass"}


# What is refused, with nothing left behind.


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


TO_META = ["--to", "meta"]
ARGUMENTS: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "3 ranks of 4 heads": (
        ["{hf}", "{out}", *TO_META, "--mp", "3"],
        2,
        ("n_heads (4)", "vocab_size (400)"),
    ),
    "0 ranks": (["{hf}", "{out}", *TO_META, "--mp", "0"], 2, ("--mp",)),
    "no such axis": (["{hf}", "{out}", *TO_META, "--embedding-axis", "2"], 2, ("--embedding-axis",)),
    "no such layout": (["{hf}", "{out}", "--to", "gguf"], 2, ("--to gguf", "hf or meta")),
    "ranks of Hugging Face's": (["{meta}", "{out}", "--mp", "2"], 2, ("--mp", "Add --to meta.")),
    "nowhere": (["{nowhere}", "{out}", *TO_META], 3, ("{nowhere}: Not found.",)),
    "a file": (["{hf}/config.json", "{out}", *TO_META], 3, ("{hf}/config.json: This is a file",)),
    "no checkpoint": (["{empty}", "{out}", *TO_META], 3, ("{empty}",)),
    "no tokenizer": (["{hf}", "{out}", *TO_META, "--tokenizer", "/nowhere"], 3, ("/nowhere",)),
    "no dtype": (["{hf}", "{out}", *TO_META, "--dtype", "int4"], 2, ("--dtype int4",)),
    "no version": (["{hf}", "{out}", *TO_META, "--llama-version", "3.1"], 2, ("does not match the files",)),
    "DST is SRC": (["{hf}", "{hf}", *TO_META], 2, ("Is the input folder",)),
    "DST exists": (["{hf}", "{full}", *TO_META], 5, ("{full}: Not empty (holds something).",)),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    result = {name: folder / name for name in ("meta", "hf", "empty", "full", "out", "nowhere")}
    shutil.copytree(BY_NAME["llama2-mp2"], result["meta"])
    convert(result["meta"], result["hf"])
    result["empty"].mkdir()
    result["full"].mkdir()
    (result["full"] / "something").touch()
    return result


def assert_refused(folder: Path, arguments: list[str], exit_code: int, words: list[str]) -> None:
    before = sorted(folder.rglob("*"))
    run = llama_convert("convert", *arguments)
    assert run.exit_code == exit_code, run.stderr
    said = " ".join(run.stderr.replace("│", " ").split())
    for word in words:
        assert word in said
    assert "Traceback" not in run.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_refused(places: dict[str, Path], case: str) -> None:
    arguments, exit_code, words = ARGUMENTS[case]
    typed = [argument.format(**places) for argument in arguments]
    assert_refused(places["hf"].parent, typed, exit_code, [word.format(**places) for word in words])


GROUPED = Shape(dim=48, n_heads=12, n_kv_heads=6, vocab_size=96)
SCALING = LLAMA31_ROPE["rope_scaling"]
MODELS: dict[str, tuple[Shape, dict[str, Any], int, int, tuple[str, ...]]] = {
    "ffn": (LLAMA2.but(ffn_dim=90), {}, 4, 2, ("ffn_dim (90)",)),
    "words": (LLAMA2.but(vocab_size=81), {}, 2, 2, ("vocab_size (81)",)),
    "KV heads": (GROUPED, {}, 4, 2, ("n_kv_heads (6, nor does 6 divide 4)",)),
    "few KV heads": (GROUPED.but(n_kv_heads=4), {}, 6, 2, ("n_kv_heads (4, nor does 4 divide 6)",)),
    "everything": (
        LLAMA2,
        {},
        7,
        2,
        ("n_heads (8)", "ffn_dim (96)", "vocab_size (80)", "dim (64)", "n_kv_heads (8, "),
    ),
    "where scaling begins": (
        LLAMA3,
        {"rope_scaling": SCALING | {"low_freq_factor": 2.0}},
        1,
        3,
        ("config.json", "Meta format cannot express RoPE scaling with low_freq_factor 2."),
    ),
    "the length it was trained on": (
        LLAMA3,
        {"rope_scaling": SCALING | {"original_max_position_embeddings": 4096}},
        1,
        3,
        ("Meta format cannot express RoPE scaling with original_context_length 4096.",),
    ),
    "another scaling": (
        LLAMA3,
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        1,
        3,
        ("rope_type is 'linear'",),
    ),
    "biases": (LLAMA3, {"attention_bias": True}, 1, 3, ("attention_bias",)),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_refused(tmp_path: Path, case: str) -> None:
    shape, changes, ranks, exit_code, words = MODELS[case]
    source = huggingface(tmp_path / "hf", shape)
    change_config(source, **changes)
    arguments = [str(source), str(tmp_path / "out"), *TO_META, "--mp", str(ranks)]
    assert_refused(tmp_path, arguments, exit_code, list(words))


def test_custom_head_widths_are_refused(tmp_path: Path) -> None:
    """Meta's layout takes a head for dim / n_heads."""
    shape = LLAMA2.but(n_heads=4, n_kv_heads=4)
    state = synthetic.huggingface(shape, synthetic.weights(shape))
    source = huggingface(tmp_path / "hf", shape)
    wide = {
        name: torch.cat([weight, weight], dim=1 if "o_proj" in name else 0)
        for name, weight in state.items()
        if "self_attn" in name
    }
    save_file(state | wide, source / "model.safetensors")
    change_config(source, head_dim=32)
    words = ["Meta format requires head_dim = dim / n_heads (64 / 4)."]
    assert_refused(tmp_path, [str(source), str(tmp_path / "out"), *TO_META], 3, words)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    source = huggingface(tmp_path / "hf", LLAMA3)
    (source / "tokenizer.json").write_text('{"model": {}}')
    arguments = [str(source), str(tmp_path / "out"), *TO_META]
    assert_refused(tmp_path, arguments, 3, ["tokenizer.json", "Not a tokenizer.json."])
