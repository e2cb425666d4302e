"""Whole conversions: bit-exact weights, folders that transformers loads without a word, models that speak."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_convert.checkpoints.meta_folder import find_meta_folder
from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import ConflictError, InputError, RefusedError
from llama_convert.observer import Observer
from tests import synthetic
from tests.peers import ROOT, Peer
from tests.synthetic import LLAMA2, LLAMA3, Shape

FIXTURES = sorted(path.parent for path in (ROOT / "fixtures").glob("*/params.json"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        result |= load_file(file)
    return result


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype, name
        assert torch.equal(found[name], weight), name


LAYOUTS = {
    "1 rank": {"ranks": 1},
    "2 ranks": {"ranks": 2},
    "4 ranks": {"ranks": 4},
    "8 ranks": {"ranks": 8, "n_kv_heads": 8},
    "16 ranks": {"ranks": 16, "n_heads": 16, "n_kv_heads": 16},
    "KV heads twice": {"ranks": 8, "n_kv_heads": 4, "kv_repeats": 2},
    "KV heads twice, 16 ranks": {"ranks": 16, "n_heads": 16, "n_kv_heads": 8, "kv_repeats": 2},
    "KV heads four times": {"ranks": 8, "n_heads": 8, "n_kv_heads": 2, "kv_repeats": 4},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("generation", [LLAMA2, LLAMA3, LLAMA3.but(tied=True)], ids=["2", "3", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_tensor_is_bit_exact(
    tmp_path: Path, generation: Shape, layout: str, dtype: torch.dtype
) -> None:
    shape = generation.but(dtype=dtype, **LAYOUTS[layout])
    state = synthetic.make(tmp_path / "meta", shape)
    convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(max_shard_size="30KB", block_size=700))
    assert_same(tensors(tmp_path / "out"), synthetic.huggingface(shape, state))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_key_value_heads"] == shape.n_kv_heads
    assert config["tie_word_embeddings"] == shape.tied


def test_params_may_give_the_distinct_kv_heads(tmp_path: Path) -> None:
    shape = LLAMA3.but(ranks=8, n_kv_heads=4, kv_repeats=2, params={"n_kv_heads": 4, "use_scaled_rope": True})
    state = synthetic.make(tmp_path / "meta", shape)
    convert(tmp_path / "meta", tmp_path / "out")
    assert_same(tensors(tmp_path / "out"), synthetic.huggingface(shape, state))


def test_kv_heads_that_are_all_alike_are_kept(tmp_path: Path) -> None:
    """As in placeholders filled with one number; Meta repeats heads only where several are distinct."""
    shape = LLAMA3.but(ranks=4)
    state = synthetic.weights(shape)
    for layer in range(shape.n_layers):
        state[f"layers.{layer}.attention.wk.weight"].fill_(0.5)
    synthetic.write(tmp_path / "meta", shape, synthetic.cut(shape, state))
    convert(tmp_path / "meta", tmp_path / "out")
    assert_same(tensors(tmp_path / "out"), synthetic.huggingface(shape, state))


def test_shared_storages_offsets_strides_parameters_and_constants(tmp_path: Path) -> None:
    """FSDP keeps a layer's weights as views into one flat parameter; other savers have other habits."""
    shape = LLAMA2.but(ranks=2)
    state = synthetic.weights(shape)
    ranks = synthetic.cut(shape, state)
    for rank in ranks:
        for layer in range(shape.n_layers):
            names = [name for name in rank if name.startswith(f"layers.{layer}.")]
            flat = torch.cat([torch.zeros(13).bfloat16(), *(rank[name].reshape(-1) for name in names)])
            start = 13
            for name in names:
                size = rank[name].numel()
                rank[name] = flat[start : start + size].view(rank[name].shape)
                start += size
        rank["output.weight"] = rank["output.weight"].t().contiguous().t()
        wide = torch.zeros(shape.vocab_size, 100).bfloat16()
        wide[:, 5 : 5 + shape.dim // 2] = rank["tok_embeddings.weight"]
        rank["tok_embeddings.weight"] = wide[:, 5 : 5 + shape.dim // 2]
        rank["norm.weight"] = torch.nn.Parameter(rank["norm.weight"])
        rank["rope.freqs"] = torch.ones(4)
    synthetic.write(tmp_path / "meta", shape, ranks)
    convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(block_size=500))
    assert_same(tensors(tmp_path / "out"), synthetic.huggingface(shape, state))


def test_more_than_ten_ranks_without_padding_in_their_names(tmp_path: Path) -> None:
    """Sorted as text, 10 comes before 2."""
    shape = LLAMA2.but(ranks=16, n_heads=16, n_kv_heads=16)
    state = synthetic.make(tmp_path / "meta", shape)
    for rank in range(16):
        (tmp_path / "meta" / f"consolidated.{rank:02d}.pth").rename(
            tmp_path / "meta" / f"consolidated.{rank}.pth"
        )
    convert(tmp_path / "meta", tmp_path / "out")
    assert_same(tensors(tmp_path / "out"), synthetic.huggingface(shape, state))


HF_SCRIPT = """
from transformers.models.llama import convert_llama_weights_to_hf as script
script.write_model(out, source, num_shards=ranks, llama_version=version, vocab_size=vocab_size)
"""


@pytest.mark.parametrize(
    ("shape", "version"),
    [
        (LLAMA2, "2"),
        (LLAMA2.but(ranks=4), "2"),
        (LLAMA2.but(ranks=2, n_kv_heads=2), "2"),
        (LLAMA3, "3"),
        (LLAMA3.but(ranks=4), "3"),
        (LLAMA3.but(ranks=8, n_heads=16, n_kv_heads=8), "3"),
    ],
)
def test_same_weights_as_the_hugging_face_script(
    tmp_path: Path, transformers4: Peer, shape: Shape, version: str
) -> None:
    theta = {"rope_theta": 500000.0} if version == "3" else {}
    shape = shape.but(ffn_dim=192, params={"multiple_of": 64, **theta})
    synthetic.make(tmp_path / "meta", shape)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    transformers4.run(
        HF_SCRIPT,
        out=theirs,
        source=tmp_path / "meta",
        ranks=shape.ranks,
        version=version,
        vocab_size=shape.vocab_size,
    )
    convert(tmp_path / "meta", ours)
    assert_same(tensors(ours), tensors(theirs))


LOAD = """
import logging, warnings, io, json, torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

spoken = io.StringIO()
handler = logging.StreamHandler(spoken)
handler.setLevel(logging.WARNING)
logging.getLogger("transformers").addHandler(handler)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model, info = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", output_loading_info=True)
    ids = None
    if prompt_ids:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = model.float()
        output = model.generate(torch.tensor([prompt_ids]), max_new_tokens=count, do_sample=False,
                                max_length=None,
                                temperature=None, top_p=None, eos_token_id=None, pad_token_id=0)
        ids = output[0].tolist()
logging.getLogger("transformers").removeHandler(handler)
# Not about the folder: the argument of this very call, and an announcement made once by 4.45.
ignored = ("torch_dtype` is deprecated", "Starting from v4.46")
result = {
    "ids": ids,
    "problems": {key: [str(item) for item in value] for key, value in info.items() if value},
    "spoken": [line for line in spoken.getvalue().splitlines() if not any(word in line for word in ignored)],
    "warned": [str(warning.message) for warning in caught if "transformers" in warning.filename
               and not any(word in str(warning.message) for word in ignored)],
    "dtype": str(model.dtype),
    "config": json.loads(model.config.to_json_string()),
    "eos": model.generation_config.eos_token_id,
}
"""


def load(peer: Peer, folder: Path, prompt_ids: list[int] | None = None, count: int = 0) -> Any:
    """Load the folder in transformers, and speak; no key may be amiss and no word of complaint be said."""
    answer = peer.run(LOAD, folder=folder, prompt_ids=prompt_ids, count=count)
    assert answer["problems"] == {}
    assert answer["spoken"] == []
    assert answer["warned"] == []
    return answer


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_stories260k_speaks_what_metas_code_wrote(
    tmp_path: Path, transformers: Peer, stories260k: Path, ranks: int
) -> None:
    expected = json.loads((stories260k / "expected.json").read_text())
    source = stories260k
    if ranks > 1:
        shape = Shape(dim=64, n_layers=5, n_heads=8, n_kv_heads=4, ffn_dim=172, vocab_size=512, ranks=ranks)
        source = tmp_path / "cut"
        state = torch.load(stories260k / "consolidated.00.pth", weights_only=True)
        synthetic.write(source, shape, synthetic.cut(shape, state))
        for name in ("params.json", "tokenizer.model"):
            shutil.copy(stories260k / name, source / name)
    convert(source, tmp_path / "out")
    count = len(expected["greedy_ids"]) - len(expected["prompt_ids"])
    answer = load(transformers, tmp_path / "out", expected["prompt_ids"], count)
    assert answer["ids"] == expected["greedy_ids"]


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_fixtures_recite_in_transformers(tmp_path: Path, transformers: Peer, fixture: Path) -> None:
    expected = json.loads((fixture / "expected.json").read_text())
    convert(fixture, tmp_path / "out")
    count = len(expected["greedy_ids"]) - len(expected["prompt_ids"])
    answer = load(transformers, tmp_path / "out", expected["prompt_ids"], count)
    assert answer["ids"] == expected["greedy_ids"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_casts_round_as_torch_does(tmp_path: Path, source: torch.dtype, dtype: str) -> None:
    shape = LLAMA3.but(dtype=source)
    state = synthetic.weights(shape)
    extremes = torch.tensor(
        [0.0, -0.0, 1e-8, 6e-8, 65504.0, 65519.0, -65520.0, 1e30, float("inf"), float("nan")]
    )
    state["norm.weight"][:10] = extremes.to(source)
    synthetic.write(tmp_path / "meta", shape, [state])
    result = convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(dtype=dtype, block_size=999))
    target = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    found = tensors(tmp_path / "out")
    for name, weight in synthetic.huggingface(shape, state).items():
        assert found[name].dtype == target
        assert torch.equal(found[name].nan_to_num(7), weight.to(target).nan_to_num(7)), name
    before, after = state["norm.weight"], state["norm.weight"].to(target)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == str(target).removeprefix("torch.")
    if source != target:
        counts = result.casts["model.norm.weight"]
        assert counts.overflowed == int((after.isinf() & before.isfinite()).sum())
        assert counts.vanished == int(((after == 0) & (before != 0)).sum())


def test_overflow_warns_and_fails_under_strict(tmp_path: Path) -> None:
    shape = LLAMA3
    state = synthetic.weights(shape)
    state["layers.1.feed_forward.w2.weight"][3, 5] = 1e20
    synthetic.write(tmp_path / "meta", shape, [state])
    result = convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(dtype="fp16"))
    assert "model.layers.1.mlp.down_proj.weight: 1 of 6144 values overflow" in result.warnings[-1]
    with pytest.raises(RefusedError):
        convert(tmp_path / "meta", tmp_path / "strict", ConvertOptions(dtype="fp16", strict=True))
    assert not (tmp_path / "strict").exists()


def test_unchanged_dtype_moves_bits(tmp_path: Path) -> None:
    """NaN payloads and signed zeros pass through."""
    state = synthetic.weights(LLAMA2)
    state["output.weight"].view(torch.int16)[:, :] = torch.arange(80 * 64).view(80, 64).to(torch.int16) * 13
    synthetic.write(tmp_path / "meta", LLAMA2, [state])
    convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(dtype="bf16"))
    found = tensors(tmp_path / "out")["lm_head.weight"]
    assert torch.equal(found.view(torch.int16), state["output.weight"].view(torch.int16))


class Notes(Observer):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize(
    ("layout", "model_size"),
    [("flat", None), ("7B", "7B"), ("7B", None), ("original", None), ("original/mp8", None)],
)
def test_folder_layouts(tmp_path: Path, layout: str, model_size: str | None) -> None:
    fixture = FIXTURES[0]
    source = tmp_path / "download"
    inner = source if layout == "flat" else source / layout
    shutil.copytree(fixture, inner)
    if layout == "7B":
        (inner / "tokenizer.model").rename(source / "tokenizer.model")
    convert(source, tmp_path / "out", ConvertOptions(model_size=model_size))
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_several_checkpoints_are_not_guessed_between(tmp_path: Path) -> None:
    for size in ("7B", "13B"):
        shutil.copytree(FIXTURES[0], tmp_path / "LLaMA" / size)
    with pytest.raises(InputError, match="7B, 13B"):
        convert(tmp_path / "LLaMA", tmp_path / "out")
    convert(tmp_path / "LLaMA", tmp_path / "out", ConvertOptions(model_size="13B"))


@pytest.mark.parametrize(
    ("name", "instruct"), [("Llama3.1-8B-Instruct", True), ("llama-2-7b-chat", True), ("llama-2-7b", False)]
)
def test_a_folders_name_hints_at_instruct(tmp_path: Path, name: str, instruct: bool) -> None:
    shutil.copytree(FIXTURES[1], tmp_path / name)
    notes = Notes()
    result = convert(tmp_path / name, tmp_path / "out", observer=notes)
    assert result.instruct == instruct
    assert any("instruct" in text for text in notes.texts)
    tokenizer = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert ("chat_template" in tokenizer) == instruct
    opposite = convert(tmp_path / name, tmp_path / "other", ConvertOptions(instruct=not instruct))
    assert opposite.instruct != instruct


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("models--meta-llama--Llama-3.1-8B-Instruct/snapshots/" + "0a" * 20 + "/original/mp16", 5),
        ("LLaMA/7Bf", 2),
        ("chat/mine", 1),
    ],
)
def test_names_that_are_taken_as_hints(tmp_path: Path, path: str, names: int) -> None:
    shutil.copytree(FIXTURES[0], tmp_path / path)
    assert find_meta_folder(tmp_path / path).names == tuple(reversed(Path(path).parts))[:names]


def test_chat_template_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    convert(FIXTURES[1], tmp_path / "out", ConvertOptions(chat_template=tmp_path / "mine.jinja"))
    tokenizer = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert tokenizer["chat_template"] == "{{ messages[0].content }}"


def test_tokenizer_only(tmp_path: Path) -> None:
    result = convert(FIXTURES[1], tmp_path / "out", ConvertOptions(model_size="tokenizer_only"))
    assert "tokenizer.json" in result.files
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_missing_tokenizer_is_a_warning_and_can_be_named(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "meta", LLAMA2)
    result = convert(tmp_path / "meta", tmp_path / "out")
    assert any("tokenizer" in warning for warning in result.warnings)
    with pytest.raises(InputError, match="80 rows"):
        convert(
            tmp_path / "meta", tmp_path / "other", ConvertOptions(tokenizer=FIXTURES[0] / "tokenizer.model")
        )
    assert not (tmp_path / "other").exists()


def test_output_in_use_and_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(FIXTURES[0], out, ConvertOptions(max_shard_size="30KB"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConflictError):
        convert(FIXTURES[0], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "mine.txt").write_text("stays")
    convert(FIXTURES[0], out, ConvertOptions(overwrite=True))
    assert (out / "mine.txt").read_text() == "stays"
    assert [path.name for path in out.glob("model*")] == ["model.safetensors"]


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    import resource

    shape = LLAMA3.but(n_layers=30)
    state = synthetic.make(tmp_path / "meta", shape)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(max_shard_size="1KB"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 200
    assert_same(tensors(tmp_path / "out"), synthetic.huggingface(shape, state))


def test_two_runs_into_one_folder(tmp_path: Path) -> None:
    """The second is told of the first; what another plan's killed run left is cleared away."""

    class Intruder(Observer):
        def start(self, total: int, verb: str = "written") -> None:
            with pytest.raises(ConflictError, match="is being written by process"):
                convert(FIXTURES[0], tmp_path / "out")
            self.met = True

    intruder = Intruder()
    (tmp_path / "out/.llama-convert").mkdir(parents=True)
    (tmp_path / "out/.llama-convert/.lock").touch()
    (tmp_path / "out/.llama-convert/model-00001-of-00002.safetensors").touch()
    convert(FIXTURES[0], tmp_path / "out", observer=intruder)
    assert intruder.met
    assert not list((tmp_path / "out").glob(".*"))
    assert not (tmp_path / "out/.lock").exists()


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = convert(FIXTURES[0], tmp_path / "out", ConvertOptions(dry_run=True))
    assert not (tmp_path / "out").exists()
    convert(FIXTURES[0], tmp_path / "out")
    assert result.files == {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}


def test_output_has_the_umasks_mode(tmp_path: Path) -> None:
    convert(FIXTURES[0], tmp_path / "out")
    probe = tmp_path / "probe"
    probe.touch()
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {probe.stat().st_mode}
