"""Cutting a checkpoint anew in the layout it has: other ranks, other files, the same numbers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_convert.checkpoints.params import read_params
from llama_convert.conversion.convert import convert, shard
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import UsageError
from tests import large, synthetic
from tests.peers import ROOT
from tests.run import llama_convert, peak_memory, sizes
from tests.synthetic import LLAMA2, LLAMA3, Shape, assert_ranks
from tests.test_convert import FIXTURES
from tests.test_fixtures import CONFIGS
from tests.test_forward_meta_code import (
    EMBEDDINGS,
    ROUNDING,
    ROUNDING_OF_A_TEXT_BY_HEART,
    STORIES,
    Processes,
    says_what_it_should,
)

LLAMA31 = ROOT / "fixtures/llama3.1-mp2"
MIB = 1 << 20


def cut_into(shape: Shape, ranks: int) -> Shape:
    return shape.but(ranks=ranks, kv_repeats=max(1, ranks // shape.n_kv_heads))


# Ranks.

MODELS = {
    "Llama 2": LLAMA2,
    "Llama 2 70B": LLAMA2.but(n_kv_heads=4),
    "Llama 3.1": LLAMA3,
    "Llama 3.2": LLAMA3.but(tied=True),
    "fp16": LLAMA2.but(dtype=torch.float16),
    "fp32": LLAMA3.but(dtype=torch.float32),
    "two KV heads": LLAMA3.but(n_kv_heads=2),
}
WAYS = [(4, 2), (2, 4), (4, 1), (1, 4), (1, 8), (8, 1), (8, 2), (2, 2)]


@pytest.mark.parametrize(("before", "after"), WAYS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("model", MODELS)
def test_ranks_hold_what_they_should(tmp_path: Path, model: str, axis: int, before: int, after: int) -> None:
    shape = cut_into(MODELS[model].but(embedding_cut=axis), before)
    state = synthetic.make(tmp_path / "meta", shape)
    options = ConvertOptions(embedding_axis=axis) if before == 1 else None
    shard(tmp_path / "meta", tmp_path / "out", mp=after, options=options)
    wanted = cut_into(shape, after)
    assert_ranks(synthetic.read(tmp_path / "out"), synthetic.cut(wanted, state))
    params = read_params(tmp_path / "out/params.json")
    assert (params.n_kv_heads or params.n_heads) == wanted.n_kv_heads * wanted.kv_repeats


@pytest.mark.parametrize(("ranks", "between"), [(4, [2]), (8, [1]), (8, [2, 4]), (2, [8, 1, 4])])
@pytest.mark.parametrize("model", MODELS)
def test_ranks_return(tmp_path: Path, model: str, ranks: int, between: list[int]) -> None:
    """MP8 of fewer KV heads stores them repeated, as 405B's MP16 does."""
    shape = cut_into(MODELS[model], ranks)
    synthetic.make(tmp_path / "0", shape)
    for turn, number in enumerate([*between, ranks]):
        options = ConvertOptions(embedding_axis=shape.embedding_cut)
        shard(tmp_path / str(turn), tmp_path / str(turn + 1), mp=number, options=options)
    assert_ranks(synthetic.read(tmp_path / str(len(between) + 1)), synthetic.read(tmp_path / "0"))


@pytest.mark.parametrize("axis", [0, 1])
def test_the_embedding_is_split_along_the_given_dim(tmp_path: Path, axis: int) -> None:
    """And by default as it is; what has one rank tells nothing, and is cut as its release."""
    for generation in (LLAMA2, LLAMA3):
        folder = tmp_path / str(generation.embedding_cut)
        shape = generation.but(ranks=2, embedding_cut=axis)
        state = synthetic.make(folder / "meta", shape)
        shard(folder / "meta", folder / "kept", mp=4)
        assert_ranks(synthetic.read(folder / "kept"), synthetic.cut(shape.but(ranks=4), state))
        options = ConvertOptions(embedding_axis=1 - axis)
        shard(folder / "meta", folder / "turned", mp=4, options=options)
        turned = shape.but(ranks=4, embedding_cut=1 - axis)
        assert_ranks(synthetic.read(folder / "turned"), synthetic.cut(turned, state))
        shard(folder / "meta", folder / "one", mp=1)
        shard(folder / "one", folder / "again", mp=2)
        released = shape.but(embedding_cut=generation.embedding_cut)
        assert_ranks(synthetic.read(folder / "again"), synthetic.cut(released, state))


@st.composite
def shapes_and_ranks(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """A shape cut in one way and in another."""
    before, after = draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.sampled_from([1, 2, 3, 4, 6]))
    both = math.lcm(before, after)
    possible = [
        n
        for n in range(2, both + 1)
        if both % n == 0 and all(n % ranks == 0 or ranks % n == 0 for ranks in (before, after))
    ]
    shape = draw(synthetic.shapes(both, draw(st.sampled_from(possible or [1]))))
    return cut_into(shape, before), cut_into(shape, after)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shapes=shapes_and_ranks(),
    seed=st.integers(0, 99),
    axis=st.integers(0, 1),
    block_size=st.integers(1, 5000),
    workers=st.integers(1, 5),
)
def test_any_shape_into_any_ranks(
    shapes: tuple[Shape, Shape],
    seed: int,
    axis: int,
    block_size: int,
    workers: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    before, after = shapes
    state = synthetic.make(folder / "meta", before, seed)
    options = ConvertOptions(embedding_axis=axis, block_size=block_size, workers=workers)
    shard(folder / "meta", folder / "out", mp=after.ranks, options=options)
    assert_ranks(synthetic.read(folder / "out"), synthetic.cut(after.but(embedding_cut=axis), state))


@pytest.mark.parametrize("ranks", [1, 4])
def test_files_next_to_the_weights(tmp_path: Path, ranks: int) -> None:
    source = Path(shutil.copytree(LLAMA31, tmp_path / "meta"))
    for name in ("LICENSE", "USE_POLICY.md", "README.md", "Notice.txt"):
        (source / name).write_text(f"The {name}")
    for name in ("checklist.chk", "llama-convert.json", "other.safetensors", "model.safetensors.bak.bin"):
        (source / name).write_text("of the old files")
    (source / "other.safetensors").unlink()
    shard(source, tmp_path / "out", mp=ranks)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    new = {"checklist.chk", "llama-convert.json", *(f"consolidated.{n:02d}.pth" for n in range(ranks))}
    carried = {"LICENSE", "USE_POLICY.md", "README.md", "Notice.txt", "tokenizer.model", "expected.json"}
    assert found == {*new, *carried, "params.json"}
    for name in carried:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    for name in ("checklist.chk", "llama-convert.json"):
        assert (tmp_path / "out" / name).read_text() != "of the old files"


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)
def test_params_are_not_touched_without_need(tmp_path: Path, fixture: Path) -> None:
    shard(fixture, tmp_path / "out", mp=2)
    assert (tmp_path / "out/params.json").read_bytes() == (fixture / "params.json").read_bytes()


def test_params_change_in_one_place(tmp_path: Path) -> None:
    """Ranks that outnumber KV heads: only the number of heads that are stored."""
    shard(LLAMA31, tmp_path / "out", mp=4)
    before, after = (json.loads((f / "params.json").read_text()) for f in (LLAMA31, tmp_path / "out"))
    assert after == before | {"n_kv_heads": 4}
    assert list(after) == list(before)


def test_params_below_a_key(tmp_path: Path) -> None:
    """As Llama Guard 1 has them."""
    shape = LLAMA2.but(n_kv_heads=4)
    synthetic.make(tmp_path / "meta", shape)
    params = tmp_path / "meta/params.json"
    nested = {"model": json.loads(params.read_text()), "more": {"things": 1}}
    params.write_text(json.dumps(nested))
    shard(tmp_path / "meta", tmp_path / "out", mp=8)
    nested["model"]["n_kv_heads"] = 8
    assert json.loads((tmp_path / "out/params.json").read_text()) == nested


def test_a_tokenizer_from_another_folder(tmp_path: Path) -> None:
    """One folder up, as LLaMA 1 came, or where an option says, even if there is another."""
    other = (ROOT / "fixtures/llama3.2-tied/tokenizer.model").read_bytes()
    shutil.copytree(LLAMA31, tmp_path / "around/meta")
    remote_files = tmp_path / "elsewhere/tokenizer.model"
    remote_files.parent.mkdir()
    remote_files.write_bytes(other)
    shard(tmp_path / "around/meta", tmp_path / "1", mp=1, options=ConvertOptions(tokenizer=remote_files))
    assert (tmp_path / "1/tokenizer.model").read_bytes() == other
    own = tmp_path / "around/meta/tokenizer.model"
    original = own.read_bytes()
    own.rename(tmp_path / "around/tokenizer.model")
    shard(tmp_path / "around/meta", tmp_path / "2", mp=1)
    assert (tmp_path / "2/tokenizer.model").read_bytes() == original


# Meta's own code runs the ranks that we cut.


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("meta"))
    yield processes
    processes.close()


@pytest.mark.parametrize(("ranks", "axis"), [(2, 0), (4, 1)])
def test_a_trained_model_has_low_perplexity(
    meta: Processes, stories260k: Path, tmp_path: Path, ranks: int, axis: int
) -> None:
    shard(stories260k, tmp_path / "out", mp=ranks, options=ConvertOptions(embedding_axis=axis))
    expected = json.loads((stories260k / "expected.json").read_text())
    says_what_it_should(meta, tmp_path / "out", STORIES, expected, axis, ROUNDING)


@pytest.mark.parametrize(("name", "ranks"), [("llama2-mp2", 1), ("llama3.1-mp2", 1), ("llama3.1-mp2", 4)])
def test_fixtures_have_low_perplexity(meta: Processes, tmp_path: Path, name: str, ranks: int) -> None:
    """In 4 ranks with each of their KV heads twice."""
    shard(ROOT / "fixtures" / name, tmp_path / "out", mp=ranks)
    expected = json.loads((ROOT / "fixtures" / name / "expected.json").read_text())
    axis = int("llama2" in name)
    says_what_it_should(meta, tmp_path / "out", CONFIGS[name], expected, axis, ROUNDING_OF_A_TEXT_BY_HEART)


def test_a_tied_model_computes_the_same_in_any_ranks(meta: Processes, tmp_path: Path) -> None:
    source = ROOT / "fixtures/llama3.2-tied"
    text = json.loads((source / "expected.json").read_text())["greedy_ids"]
    theirs = meta.run(source, 1, [text]).logits
    for axis in (0, 1):
        out = tmp_path / str(axis)
        shard(source, out, mp=2, options=ConvertOptions(embedding_axis=axis))
        ours = meta.run(out, 2, [text], embedding=EMBEDDINGS[axis]).logits
        assert (ours - theirs).abs().max() < ROUNDING * theirs.abs().max()


# Hugging Face's files.

SIZES = ["2KB", "10KB", "50KB", "1MB", "5GB"]


def weight_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model*")}


@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("after", SIZES)
@pytest.mark.parametrize("model", ["Llama 2 70B", "Llama 3.2"])
def test_files_are_those_of_a_direct_conversion(tmp_path: Path, model: str, before: str, after: str) -> None:
    synthetic.make(tmp_path / "meta", MODELS[model].but(ranks=2))
    convert(tmp_path / "meta", tmp_path / "hf", ConvertOptions(max_shard_size=before))
    convert(tmp_path / "meta", tmp_path / "direct", ConvertOptions(max_shard_size=after))
    shard(tmp_path / "hf", tmp_path / "out", max_shard_size=after)
    assert weight_files(tmp_path / "out") == weight_files(tmp_path / "direct")
    rest = {path.name for path in (tmp_path / "hf").glob("*.json")} - {"model.safetensors.index.json"}
    for name in rest - {"llama-convert.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shapes=shapes_and_ranks(),
    sizes=st.tuples(st.integers(100, 40000), st.integers(100, 40000)),
    block_size=st.integers(1, 5000),
    workers=st.integers(1, 5),
)
def test_any_shape_into_any_files(
    shapes: tuple[Shape, Shape],
    sizes: tuple[int, int],
    block_size: int,
    workers: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    synthetic.make(folder / "meta", shapes[0])
    before, after = (ConvertOptions(max_shard_size=str(size)) for size in sizes)
    convert(folder / "meta", folder / "hf", before)
    convert(folder / "meta", folder / "direct", after)
    options = ConvertOptions(block_size=block_size, workers=workers)
    shard(folder / "hf", folder / "out", max_shard_size=after.max_shard_size, options=options)
    assert weight_files(folder / "out") == weight_files(folder / "direct")


def test_files_next_to_the_shards(tmp_path: Path) -> None:
    convert(LLAMA31, tmp_path / "hf", ConvertOptions(max_shard_size="100KB"))
    stale = {"model.safetensors.index.json", "llama-convert.json"}
    for name in ("LICENSE", "USE_POLICY.md", "README.md", "chat_template.jinja"):
        (tmp_path / "hf" / name).write_text(f"The {name}")
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", ".gitattributes"):
        (tmp_path / "hf" / name).write_text("{}")
    shard(tmp_path / "hf", tmp_path / "out", max_shard_size="5GB")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    small = {path.name for path in (tmp_path / "hf").iterdir() if path.suffix != ".safetensors"}
    carried = {name for name in small - stale if not name.startswith(("pytorch_model", "."))}
    assert found == {*carried, "model.safetensors", "llama-convert.json"}
    manifest = json.loads((tmp_path / "out/llama-convert.json").read_text())
    assert set(manifest["files"]) == found - {"llama-convert.json"}


# What it says.


def run_json(*arguments: Any) -> dict[str, Any]:
    run = llama_convert(*arguments, "--json")
    answer: dict[str, Any] = json.loads(run.stdout)
    assert run.exit_code == 0, run.stderr
    return answer


CUTS = {"mp": ("meta", ["--mp", "4"]), "files": ("hf", ["--max-shard-size", "100KB"])}


@pytest.mark.parametrize("cut", CUTS)
def test_dry_run_and_json(tmp_path: Path, cut: str) -> None:
    layout, arguments = CUTS[cut]
    shutil.copytree(LLAMA31, tmp_path / "meta")
    convert(LLAMA31, tmp_path / "hf")
    source, out = tmp_path / layout, tmp_path / "out"
    dry = run_json("shard", source, out, *arguments, "--dry-run")
    printed = llama_convert("shard", source, out, *arguments, "--dry-run")
    assert not out.exists()
    done = run_json("shard", source, out, *arguments)
    written = {path.name: path.stat().st_size for path in out.iterdir()}
    assert (dry["command"], dry["dry_run"], done["dry_run"], done["ok"]) == ("shard", True, False, True)
    assert sizes(done) == written
    assert sizes(dry) == written
    lines = [line.split() for line in printed.stdout.splitlines()]
    assert {name: int(size.replace(",", "")) for size, name in lines} == written
    assert dry["release"]["title"] == done["release"]["title"] == "Llama 3.1 architecture (custom size)"


def test_verified_at_once(tmp_path: Path) -> None:
    answer = run_json("shard", LLAMA31, tmp_path / "out", "--mp", "1", "--verify")
    assert {check["status"] for check in answer["verification"]["checks"]} == {"pass"}


# What is refused, with nothing left behind.

REFUSALS: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "neither option": (["{meta}", "{out}"], 2, ("--mp N", "--max-shard-size SIZE")),
    "both options": (["{meta}", "{out}", "--mp", "2", "--max-shard-size", "2GB"], 2, ("either",)),
    "no DST": (["{meta}", "--mp", "2"], 2, ("DST is missing",)),
    "no SRC": (["--mp", "2"], 2, ("SRC is missing",)),
    "ranks of files": (["{hf}", "{out}", "--mp", "2"], 2, ("{hf}", "--to meta --mp 2")),
    "files of ranks": (
        ["{meta}", "{out}", "--max-shard-size", "2GB"],
        2,
        ("{meta}", "convert {meta} {out} --max-shard-size 2GB"),
    ),
    "no ranks": (["{meta}", "{out}", "--mp", "0"], 2, ("--mp",)),
    "no size": (["{hf}", "{out}", "--max-shard-size", "many"], 2, ("'many' is not a size",)),
    "heads": (["{meta}", "{out}", "--mp", "3"], 2, ("3 does not divide", "n_heads (4)", "vocab_size (400)")),
    "more than heads": (["{meta}", "{out}", "--mp", "8"], 2, ("8 does not divide n_heads (4)",)),
    "no such axis": (["{meta}", "{out}", "--mp", "2", "--embedding-axis", "2"], 2, ("--embedding-axis",)),
    "nowhere, ranks": (["{nowhere}", "{out}", "--mp", "2"], 3, ("{nowhere}: Not found.",)),
    "nowhere, files": (["{nowhere}", "{out}", "--max-shard-size", "2GB"], 3, ("{nowhere}: Not found.",)),
    "a file, ranks": (["{meta}/params.json", "{out}", "--mp", "2"], 3, ("a file",)),
    "a file, files": (["{hf}/config.json", "{out}", "--max-shard-size", "2GB"], 3, ("a file",)),
    "nothing there": (["{empty}", "{out}", "--max-shard-size", "2GB"], 3, ("{empty}",)),
    "DST is SRC": (["{meta}", "{meta}", "--mp", "1"], 2, ("Is the input folder",)),
    "DST exists": (["{meta}", "{full}", "--mp", "1"], 5, ("{full}: Not empty (holds",)),
    "DST exists, files": (
        ["{hf}", "{full}", "--max-shard-size", "2GB"],
        5,
        ("{full}: Not empty (holds something).",),
    ),
    "a warning": (["{bare}", "{out}", "--mp", "1", "--strict", "--tokenizer", "/nowhere"], 3, ("/nowhere",)),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    names = ("meta", "hf", "bare", "empty", "full", "out", "nowhere")
    result = {name: folder / name for name in names}
    fixture = ROOT / "fixtures/llama2-mp2"
    shutil.copytree(fixture, result["meta"])
    convert(fixture, result["hf"])
    synthetic.make(result["bare"], LLAMA2)
    result["empty"].mkdir()
    result["full"].mkdir()
    (result["full"] / "something").touch()
    return result


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(places: dict[str, Path], case: str) -> None:
    arguments, exit_code, words = REFUSALS[case]
    before = sorted(places["meta"].parent.rglob("*"))
    run = llama_convert("shard", *(argument.format(**places) for argument in arguments))
    assert run.exit_code == exit_code, run.stderr
    said = " ".join(run.stderr.replace("│", " ").split())
    for word in words:
        assert word.format(**places) in said
    assert "Traceback" not in run.stderr
    assert sorted(places["meta"].parent.rglob("*")) == before


UNEVEN = {
    "ffn": (LLAMA2.but(ffn_dim=90), 4, ["ffn_dim (90)"]),
    "words": (LLAMA2.but(vocab_size=81), 2, ["vocab_size (81)"]),
    "KV heads": (
        Shape(dim=48, n_heads=12, n_kv_heads=6, vocab_size=96),
        4,
        ["(6, nor does 6 divide 4)"],
    ),
    "KV heads, few": (Shape(dim=48, n_heads=12, n_kv_heads=4, vocab_size=96), 6, ["n_kv_heads (4, "]),
    "all": (LLAMA2, 7, ["n_heads (8)", "ffn_dim (96)", "vocab_size (80)", "dim (64)", "n_kv_heads (8, "]),
}


@pytest.mark.parametrize("case", UNEVEN)
def test_ranks_must_divide(tmp_path: Path, case: str) -> None:
    shape, ranks, words = UNEVEN[case]
    synthetic.make(tmp_path / "meta", shape)
    before = sorted(tmp_path.rglob("*"))
    run = llama_convert("shard", tmp_path / "meta", tmp_path / "out", "--mp", ranks)
    assert run.exit_code == 2, run.stderr
    for word in [f"--mp {ranks}: {ranks} does not divide", *words]:
        assert word in run.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_damage_is_found_and_nothing_left_behind(tmp_path: Path) -> None:
    """By the CRC-32 in a rank file; a safetensors file tells of its length alone."""
    source = Path(shutil.copytree(LLAMA31, tmp_path / "meta"))
    convert(source, tmp_path / "hf")
    weight = torch.load(source / "consolidated.01.pth", weights_only=True)["layers.2.feed_forward.w2.weight"]
    content = weight.contiguous().view(torch.uint8).numpy().tobytes()
    damaged = (source / "consolidated.01.pth").read_bytes().replace(content, content[:-1] + b"?")
    (source / "consolidated.01.pth").write_bytes(damaged)
    with (tmp_path / "hf/model.safetensors").open("r+b") as file:
        file.truncate(400_000)
    before = sorted(tmp_path.rglob("*"))
    run = llama_convert("shard", source, tmp_path / "out", "--mp", "1")
    assert run.exit_code == 3, run.stderr
    assert "consolidated.01.pth: layers.2.feed_forward.w2.weight" in run.stderr
    run = llama_convert("shard", tmp_path / "hf", tmp_path / "out", "--max-shard-size", "2GB")
    assert run.exit_code == 3, run.stderr
    assert "model.safetensors" in run.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_fewer_files_over_more(tmp_path: Path) -> None:
    """No file of the older model stays."""
    convert(LLAMA31, tmp_path / "hf")
    for ranks, size in ((4, "50KB"), (2, "5GB")):
        options = ConvertOptions(overwrite=True)
        shard(LLAMA31, tmp_path / "cut", mp=ranks, options=options)
        shard(tmp_path / "hf", tmp_path / "files", max_shard_size=size, options=options)
    assert len(list((tmp_path / "cut").glob("*.pth"))) == 2
    assert [path.name for path in (tmp_path / "files").glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("ranks", [0, -2])
def test_less_than_one_rank(tmp_path: Path, ranks: int) -> None:
    with pytest.raises(UsageError, match=f"--mp {ranks}"):
        shard(LLAMA31, tmp_path / "out", mp=ranks)
    assert not (tmp_path / "out").exists()


# Memory.


def test_memory_does_not_depend_on_the_model(tmp_path: Path) -> None:
    source = tmp_path / "meta"
    if shutil.disk_usage(tmp_path).free < 8 << 30:
        pytest.skip("needs 8 GB of disk")
    try:
        large.make(source, large.SHAPES["3.2-1B"].but(n_layers=6))
        convert(source, tmp_path / "hf")
        back = ("convert", tmp_path / "hf", tmp_path / "back", "--to", "meta", "--mp", "2", "--no-checklist")
        assert peak_memory(*back) < 128 * MIB
        shutil.rmtree(tmp_path / "hf")
        cut = ("shard", tmp_path / "back", tmp_path / "cut", "--mp", "4", "--no-checklist")
        assert peak_memory(*cut) < 128 * MIB
    finally:
        shutil.rmtree(tmp_path)
