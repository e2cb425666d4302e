"""Tied checkpoints whose files hold an LM head: the tensors decide, and no loss goes unnoticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_convert import open_checkpoint
from llama_convert.checkpoints import row_reader
from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.huggingface_config import edited_config, read_config
from llama_convert.conversion.convert import convert, shard
from llama_convert.conversion.options import ConvertOptions
from llama_convert.dtypes import BFLOAT16
from llama_convert.errors import InputError, RefusedError
from llama_convert.inspection.compare import compare
from llama_convert.inspection.inspect import inspect
from tests import plant, synthetic
from tests.peers import Peer
from tests.plant import EMBED, HEAD, NORM, down, k, q
from tests.run import llama_convert
from tests.synthetic import LLAMA3, State
from tests.test_verify_faults import Seen, assert_seen, look

SHAPE = LLAMA3.but(tied=True)
META_HEAD = "output.weight"


def tied(folder: Path, head: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A checkpoint that config.json calls tied, with an LM head made of its embedding."""
    state = plant.trained_like(SHAPE)
    synthetic.write_huggingface(folder, SHAPE, state)
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    plant.edit_config(folder, max_position_embeddings=131072, rope_scaling=scaling)
    tensors = load_file(folder / "model.safetensors")
    assert HEAD not in tensors
    tensors[HEAD] = head(tensors[EMBED])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def trained_apart(embedding: torch.Tensor) -> torch.Tensor:
    """As merging LoRA adapters with `modules_to_save` leaves it: the first rows are alike."""
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(1))
    noise[: len(noise) // 2] = 0
    return (embedding + 0.01 * noise).to(embedding.dtype)


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    return tied(tmp_path / "merged", trained_apart)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


# The stored head is kept in every direction.


@pytest.mark.parametrize("ranks", [1, 2])
def test_to_meta(merged: Path, tmp_path: Path, ranks: int) -> None:
    result = convert(merged, tmp_path / "meta", ConvertOptions(to="meta", mp=ranks))
    found = torch.cat([rank[META_HEAD] for rank in synthetic.read(tmp_path / "meta")])
    assert equal(found, plant.tensors(merged)[HEAD])
    assert sum("tie_word_embeddings" in warning for warning in result.warnings) == 1
    convert(tmp_path / "meta", tmp_path / "back")
    assert plant.tensors(tmp_path / "back").keys() == plant.tensors(merged).keys()
    assert json.loads((tmp_path / "back/config.json").read_text())["tie_word_embeddings"] is False
    for out in ("meta", "back"):
        report = look(tmp_path / out, merged)
        assert report.ok
        assert_seen(report, Seen("structure", "CONFIG_TENSORS_DISAGREE", HEAD, "In the source", warning=True))


def test_shard(merged: Path, tmp_path: Path) -> None:
    result = shard(merged, tmp_path / "out", max_shard_size="20KB")
    assert len(result.warnings) == 1
    before, after = plant.tensors(merged), plant.tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(equal(before[name], after[name]) for name in before)
    text = (merged / "config.json").read_text()
    edited = text.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    assert (tmp_path / "out/config.json").read_text() == edited != text
    assert look(tmp_path / "out", merged).ok
    assert look(tmp_path / "out", None, "structure", "values").ok
    assert not open_huggingface(tmp_path / "out").warnings


@pytest.mark.parametrize("version", ["4.45", "5"])
def test_both_versions_of_transformers_load_what_shard_writes(
    merged: Path, tmp_path: Path, version: str
) -> None:
    """Of the source, version 4 loads one tensor into both places."""
    shard(merged, tmp_path / "out", max_shard_size="5GB")
    peer = Peer(f"transformers-{version}")
    try:
        right = {name: peer.run(LOADED, folder=tmp_path / name) for name in ("merged", "out")}
    finally:
        peer.close()
    assert right["out"] == {HEAD: True, EMBED: True}
    assert sum(right["merged"].values()) == (1 if version == "4.45" else 2)


LOADED = """
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
stored = load_file(folder + "/model.safetensors")
used = {"lm_head.weight": model.lm_head.weight, "model.embed_tokens.weight": model.model.embed_tokens.weight}
result = {name: torch.equal(weight, stored[name]) for name, weight in used.items()}
"""


@pytest.mark.parametrize("command", [("convert", "--to", "meta"), ("shard", "--max-shard-size", "20KB")])
def test_strict_refuses(merged: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    run = llama_convert(command[0], merged, tmp_path / "out", *command[1:], "--strict")
    assert run.exit_code == 1
    assert f'{HEAD}: "tie_word_embeddings" is true, but the LM head differs' in " ".join(run.stderr.split())
    assert not (tmp_path / "out").exists()


def test_read_by_name(merged: Path) -> None:
    stored = plant.tensors(merged)
    for layout, head, embedding in (
        ("huggingface", HEAD, EMBED),
        ("meta", META_HEAD, "tok_embeddings.weight"),
    ):
        with open_checkpoint(merged, layout=layout) as weights:  # type: ignore[arg-type]
            assert not weights.config.tied
            assert equal(weights[head].torch(), stored[HEAD])
            assert equal(weights[embedding].torch(), stored[EMBED])
            assert len(weights.warnings) == 1


def test_inspect(merged: Path, tmp_path: Path) -> None:
    report = inspect(merged)
    assert report.ok
    (disagreement,) = (one for one in report.findings if one.code == "CONFIG_TENSORS_DISAGREE")
    assert disagreement.is_warning
    assert report.config
    assert report.config["tied"] is False
    assert report.parameters.head == SHAPE.vocab_size * SHAPE.dim
    dropped = tied(tmp_path / "dropped", lambda embedding: embedding.clone())
    plant.rewrite(dropped, lambda state: state.pop(HEAD))
    comparison = compare(merged, dropped)
    assert comparison.only_in_a == (HEAD,)
    assert [one.name for one in comparison.config] == ["tied"]
    assert llama_convert("inspect", merged, dropped).exit_code == 1


def test_alone_it_fails(merged: Path) -> None:
    """The versions of transformers compute different models from it."""
    report = look(merged, None, "structure")
    assert not report.ok
    assert_seen(report, Seen("structure", "CONFIG_TENSORS_DISAGREE", HEAD, "transformers 4"))


# When is it tied?


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(lambda embedding: embedding.clone(), id="equal"),
        pytest.param(lambda embedding: embedding.float(), id="equal in float32"),
    ],
)
def test_an_equal_head_is_the_embedding(tmp_path: Path, head: Callable[[torch.Tensor], torch.Tensor]) -> None:
    source = tied(tmp_path / "hf", head)
    assert convert(source, tmp_path / "meta", ConvertOptions(to="meta")).warnings == [
        f"{source}: No tokenizer found. The output has no tokenizer. Use --tokenizer PATH to add one."
    ]
    (rank,) = synthetic.read(tmp_path / "meta")
    assert rank[META_HEAD].data_ptr() == rank["tok_embeddings.weight"].data_ptr()
    assert not shard(source, tmp_path / "out", max_shard_size="5GB").warnings
    assert HEAD not in plant.tensors(tmp_path / "out")
    for out in ("meta", "out"):
        assert look(tmp_path / out, source).ok


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(torch.zeros_like, id="zeros"),
        pytest.param(lambda embedding: embedding.float() * (1 + 2**-20), id="finer than bfloat16"),
        pytest.param(lambda embedding: embedding.half() * 2, id="float16"),
        pytest.param(lambda embedding: plant.with_flipped_bit(embedding, 95, 63, 0), id="the last bit"),
    ],
)
def test_any_other_head_is_kept(tmp_path: Path, head: Callable[[torch.Tensor], torch.Tensor]) -> None:
    source = tied(tmp_path / "hf", head)
    shard(source, tmp_path / "out", max_shard_size="20KB")
    convert(source, tmp_path / "meta", ConvertOptions(to="meta"))
    (rank,) = synthetic.read(tmp_path / "meta")
    for found in (plant.tensors(tmp_path / "out")[HEAD], rank[META_HEAD]):
        assert equal(found, plant.tensors(source)[HEAD])


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    """As transformers refuses it."""
    source = tied(tmp_path / "hf", lambda embedding: embedding[:50].clone())
    with pytest.raises(InputError, match=r"lm_head\.weight: The shape does not match"):
        convert(source, tmp_path / "meta", ConvertOptions(to="meta"))


def test_the_one_matrix_may_be_stored_as_the_head(tmp_path: Path) -> None:
    """As `safetensors.torch.save_model` stores it, which keeps the first name of several."""
    source = tied(tmp_path / "hf", lambda embedding: embedding.clone())
    embedding = plant.tensors(source)[EMBED]
    plant.rewrite(source, lambda state: state.pop(EMBED))
    convert(source, tmp_path / "meta", ConvertOptions(to="meta"))
    (rank,) = synthetic.read(tmp_path / "meta")
    assert equal(rank["tok_embeddings.weight"], embedding)
    shard(source, tmp_path / "out", max_shard_size="5GB")
    assert equal(plant.tensors(tmp_path / "out")[EMBED], embedding)
    assert look(tmp_path / "out", source).ok


def test_the_first_difference_ends_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    rows_of = row_reader.rows_of
    monkeypatch.setattr(row_reader, "_COMPARED_BYTES", 512)
    monkeypatch.setattr(row_reader, "rows_of", lambda *args: read.append(args) or rows_of(*args))
    open_huggingface(tied(tmp_path / "first", lambda embedding: embedding + 1))
    assert len(read) == 2
    read.clear()
    open_huggingface(tied(tmp_path / "equal", lambda embedding: embedding.clone()))
    assert len(read) == 2 * SHAPE.vocab_size // 4


def edited(file: Path, *, tied: bool) -> bytes:
    return edited_config(read_config(file), tied=tied, dtype=BFLOAT16)


@pytest.mark.parametrize(
    "text",
    [
        '{\r\n\t"tie_word_embeddings" :  true,\r\n\t"a": {"tie_word_embeddings": true}, %s}',
        '{"a": {"tie_word_embeddings": true}, "tie_word_embeddings": true, %s}',
        '{"_b": "\\"tie_word_embeddings\\": true", "tie_word_embeddings":true, "c": null, %s}',
    ],
)
def test_one_value_of_the_config_changes(tmp_path: Path, text: str) -> None:
    rest = (
        '"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2, "intermediate_size": 96, '
        '"vocab_size": 96, "rms_norm_eps": 1E-5'
    )
    file = tmp_path / "config.json"
    file.write_bytes((text % rest).encode())
    before, after = file.read_bytes(), edited(file, tied=False)
    assert json.loads(after) == {**json.loads(before), "tie_word_embeddings": False}
    assert len(after) == len(before) + 1
    assert edited(file, tied=True) == before


def test_an_escaped_key_of_the_config_changes(tmp_path: Path) -> None:
    source = tied(tmp_path / "hf", trained_apart)
    file = source / "config.json"
    file.write_text(file.read_text().replace('"tie_word_', r'"tie\u005fword_'))
    after = json.loads(edited(file, tied=False))
    assert after == {**json.loads(file.read_text()), "tie_word_embeddings": False}


# No tensor is lost without a finding.

WEIGHTS = [HEAD, EMBED, NORM, q(0), k(1), down(1)]
NAMES = dict(
    zip(
        WEIGHTS,
        [
            *(META_HEAD, "tok_embeddings.weight", "norm.weight", "layers.0.attention.wq.weight"),
            *("layers.1.attention.wk.weight", "layers.1.feed_forward.w2.weight"),
        ],
        strict=True,
    )
)


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    """One model in both layouts."""
    state = plant.make(tmp_path / "meta-source", LLAMA3)
    synthetic.write_huggingface(tmp_path / "hf-source", LLAMA3, state)
    return tmp_path


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("before", ["hf", "meta"])
@pytest.mark.parametrize("after", ["hf", "meta"])
def test_a_lost_tensor_is_found(untied: Path, before: str, after: str, name: str) -> None:
    source, out = untied / f"{before}-source", untied / "out"
    if before == after == "hf":
        shard(source, out, max_shard_size="20KB")
    elif before == after:
        shard(source, out, mp=2)
    else:
        convert(source, out, ConvertOptions(to=after))  # type: ignore[arg-type]
    assert look(out, source, "structure", "weights").ok
    if after == "hf":
        plant.rewrite(out, lambda state: state.pop(name))
    else:
        for file in out.glob("*.pth"):
            state: State = torch.load(file, weights_only=True)
            del state[NAMES[name]]
            torch.save(state, file)
    report = look(out, source, "structure", "weights")
    assert not report.ok
    lost = NAMES[name] if after == "meta" else name
    # Without its head a Meta folder can be read, as tied: only the source shows that it is lost.
    level = "weights" if lost == META_HEAD else "structure"
    assert_seen(report, Seen(level, "TENSOR_MISSING", lost))


@pytest.mark.parametrize("before", ["hf", "meta"])
def test_a_head_lost_with_a_config_that_explains_it(untied: Path, before: str) -> None:
    """As a converter drops it that believes in ties alone."""
    out = untied / "out"
    shard(untied / "hf-source", out, max_shard_size="20KB")
    plant.rewrite(out, lambda state: state.pop(HEAD))
    plant.edit_config(out, tie_word_embeddings=True)
    for level in ("structure", "weights"):
        assert not look(out, untied / f"{before}-source", level).ok, level


def test_a_head_lost_from_a_tied_source(merged: Path, tmp_path: Path) -> None:
    shard(merged, tmp_path / "out", max_shard_size="20KB")
    plant.rewrite(tmp_path / "out", lambda state: state.pop(HEAD))
    plant.edit_config(tmp_path / "out", tie_word_embeddings=True)
    report = look(tmp_path / "out", merged, "weights")
    assert_seen(report, Seen("weights", "TENSOR_MISSING", HEAD, "The source has this tensor"))


def test_an_embedding_in_place_of_the_head(merged: Path, tmp_path: Path) -> None:
    """In Meta's layout, which always stores a head."""
    convert(merged, tmp_path / "meta", ConvertOptions(to="meta"))
    (state,) = synthetic.read(tmp_path / "meta", mmap=False)
    state[META_HEAD] = state["tok_embeddings.weight"]
    torch.save(state, tmp_path / "meta/consolidated.00.pth")
    report = look(tmp_path / "meta", merged, "structure", "weights")
    assert_seen(report, Seen("weights", "WEIGHTS_DIFFER", META_HEAD))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"vocab_size": 80}])
def test_weights_alone_see_what_has_no_counterpart(untied: Path, change: dict[str, int]) -> None:
    """Fewer layers, or rows: in either direction, whichever of the two is verified."""
    small, whole = untied / "small", untied / "hf-source"
    layers, rows = change.get("num_hidden_layers", 2), change.get("vocab_size", 96)
    state = plant.trained_like(LLAMA3)
    state = {name: weight for name, weight in state.items() if f"layers.{layers}." not in name}
    state |= {name: state[name][:rows] for name in ("tok_embeddings.weight", META_HEAD)}
    synthetic.write_huggingface(small, LLAMA3.but(n_layers=layers, vocab_size=rows), state)
    if "num_hidden_layers" in change:
        assert_seen(look(small, whole, "weights"), Seen("weights", "TENSOR_MISSING", q(1)))
        assert_seen(
            look(whole, small, "weights"),
            Seen("weights", "TENSOR_EXTRA", q(1), "The source does not have this tensor"),
        )
    else:
        for one, other in ((small, whole), (whole, small)):
            assert_seen(look(one, other, "weights"), Seen("weights", "TENSOR_SHAPE", EMBED, "Shape differs"))


def test_an_untied_head_may_equal_the_embedding(tmp_path: Path) -> None:
    """Meta's layout does not say whether it is tied, so nothing differs."""
    source = tied(tmp_path / "hf", lambda embedding: embedding.clone())
    plant.edit_config(source, tie_word_embeddings=False)
    convert(source, tmp_path / "meta", ConvertOptions(to="meta"))
    shard(source, tmp_path / "out", max_shard_size="20KB")
    assert HEAD in plant.tensors(tmp_path / "out")
    for out in ("meta", "out"):
        report = look(tmp_path / out, source)
        assert report.ok
        assert not any(level.findings for level in report.checks)
        assert compare(source, tmp_path / out, stats=True).same


def test_a_refused_conversion_names_the_head(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        convert(merged, tmp_path / "out", ConvertOptions(to="meta", strict=True))
