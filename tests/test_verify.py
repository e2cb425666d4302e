"""Verification as people and programs meet it: what is right passes, Meta's folders are audited."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import InputError, UsageError
from llama_convert.findings import Finding
from llama_convert.verification.options import VerifyOptions, parse_checks
from llama_convert.verification.report import Check, VerifyReport
from llama_convert.verification.verify import verify
from tests import plant, synthetic
from tests.peers import ROOT
from tests.plant import HEAD, gate, k, q
from tests.run import llama_convert
from tests.synthetic import LLAMA2, LLAMA3, Shape
from tests.test_refusals import Spoil, params, params_text, rank, remove, truncate, void
from tests.test_verify_faults import Seen, assert_seen, findings, look

FIXTURES = sorted(path.parent for path in (ROOT / "fixtures").glob("*/params.json"))
LLAMA31, TIED = ROOT / "fixtures/llama3.1-mp2", ROOT / "fixtures/llama3.2-tied"
each_fixture = pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.name)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small products are quickest so, and two test processes do not wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def statuses(report: VerifyReport) -> dict[str, str]:
    return {level.check.value: level.status.value for level in report.checks}


def all_findings(report: VerifyReport) -> list[Finding]:
    return [finding for level in report.checks for finding in level.findings]


ALL_PASS = {level.value: "pass" for level in Check}


# What is right passes.


class TestRight:
    @each_fixture
    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_a_conversion_passes_all_levels(self, tmp_path: Path, fixture: Path, dtype: str) -> None:
        convert(fixture, tmp_path / "out")
        report = look(tmp_path / "out", fixture, dtype=dtype)
        assert statuses(report) == ALL_PASS
        assert all_findings(report) == []

    @each_fixture
    def test_without_a_source_the_perplexity_is_low(self, tmp_path: Path, fixture: Path) -> None:
        convert(fixture, tmp_path / "out")
        for folder in (fixture, tmp_path / "out"):
            report = look(folder, None)
            assert statuses(report) == {**ALL_PASS, "weights": "skipped"}
            assert all_findings(report) == []

    @each_fixture
    @pytest.mark.parametrize("cast", ["bf16", "fp16", "fp32"])
    def test_so_does_a_cast(self, tmp_path: Path, fixture: Path, cast: str) -> None:
        convert(fixture, tmp_path / "out", ConvertOptions(dtype=cast))
        report = look(tmp_path / "out", fixture)
        assert all_findings(report) == []

    @each_fixture
    def test_either_layout_may_be_the_source(self, tmp_path: Path, fixture: Path) -> None:
        """Meta's folder held against its conversion, and each kind against a copy of itself."""
        out = tmp_path / "out"
        convert(fixture, out)
        for path, source in ((fixture, out), (out, out), (fixture, fixture)):
            report = look(path, source)
            assert report.ok
            assert all_findings(report) == []
            assert statuses(report)["weights"] == statuses(report)["logits"] == "pass"

    def test_a_wrong_meta_folder_is_found_by_its_conversion(self, tmp_path: Path) -> None:
        """Names, and the order of rows, are those of the layout that is looked at."""
        meta = Path(shutil.copytree(LLAMA31, tmp_path / "meta"))
        convert(meta, tmp_path / "out")
        wq = "layers.1.attention.wq.weight"
        for number in range(2):
            rank(number, lambda state: state.update({wq: plant.permuted(state[wq], 16).contiguous()}))(meta)
        report = look(meta, tmp_path / "out")
        assert_seen(
            report,
            Seen(
                "weights",
                "WEIGHTS_DIFFER",
                wq,
                "Q/K weights were not permuted (still in Hugging Face's RoPE order)",
            ),
        )
        assert_seen(report, Seen("logits", "LOGITS_DIFFER", "layers.1", "diverge at layer 1"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: plant.unpermuted(plant.unpermuted(w, 16), 16), "permuted in the wrong direction"),
        (lambda w: plant.permuted(w, 16), "permuted twice"),
        (lambda w: plant.permuted(plant.unpermuted(w, 16), 32), "for heads of 32 rows instead of 16"),
    ],
)
def test_wrong_permutations(tmp_path: Path, change: Any, says: str) -> None:
    """Heads of 16 rows tell all of them apart; of 8 rows, twice is the wrong way round."""
    convert(LLAMA31, tmp_path / "out")
    plant.rewrite(tmp_path / "out", plant.each([q(2)], change))
    report = look(tmp_path / "out", LLAMA31, "weights", "logits")
    assert_seen(report, Seen("weights", "WEIGHTS_DIFFER", q(2), says))
    assert_seen(report, Seen("logits", "LOGITS_DIFFER", "model.layers.2", "diverge at layer 2"))


@dataclass(frozen=True)
class Case:
    shape: Shape
    scale: float
    cast: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Models of at least 16 elements a state, with numbers up to half as large again as trained ones.

    A cast changes each weight a little, and larger random weights make that a large change of what they
    compute: such a model is not the same after it.
    """
    ranks = draw(st.sampled_from([1, 2, 4]))
    kv_repeats = draw(st.sampled_from([1, 1, 2])) if ranks > 1 else 1
    stored_kv = ranks * draw(st.integers(1, 2))
    if stored_kv // kv_repeats < 2:
        kv_repeats = 1
    n_heads = stored_kv * draw(st.integers(1, 3))
    least = -(-8 // n_heads)
    shape = Shape(
        dim=n_heads * 2 * draw(st.integers(least, least + 3)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        n_kv_heads=stored_kv // kv_repeats,
        kv_repeats=kv_repeats,
        ffn_dim=ranks * draw(st.integers(4, 40)),
        vocab_size=ranks * draw(st.integers(4, 40)),
        ranks=ranks,
        embedding_cut=draw(st.integers(0, 1)),
        tied=draw(st.booleans()) and ranks == 1,
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        params=draw(st.sampled_from([{}, {"use_scaled_rope": True}, {"rope_theta": 1e6}])),
    )
    cast = draw(st.sampled_from(["auto", "bf16", "fp16", "fp32"]))
    return Case(shape, draw(st.sampled_from([0.3, 1.0, 1.5])), cast)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), seed=st.integers(0, 99), shard=st.integers(2000, 90000))
def test_no_false_alarm(case: Case, seed: int, shard: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    plant.make(folder / "meta", case.shape, seed, case.scale)
    convert(folder / "meta", folder / "out", ConvertOptions(dtype=case.cast, max_shard_size=str(shard)))
    for dtype in ("fp32", "bf16"):
        report = look(folder / "out", folder / "meta", dtype=dtype)
        assert statuses(report) == {**ALL_PASS, "tokenizer": "skipped"}
        assert all_findings(report) == []
    assert look(folder / "meta", None).ok
    shutil.rmtree(folder)


def test_rounding_that_a_model_amplifies_is_no_failure(tmp_path: Path) -> None:
    """Random layers as large as these turn a cast into another text; each of them is right all the same."""
    plant.make(tmp_path / "meta", LLAMA2.but(n_layers=12, dtype=torch.float32), scale=4.0)
    convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(dtype="fp16"))
    report = look(tmp_path / "out", tmp_path / "meta", "logits")
    assert report.ok
    differing = findings(report, "logits")
    assert {(one.code, one.is_warning) for one in differing} == {("LOGITS_DIFFER", True)}
    assert all("Every layer matches on the same input" in str(one.hint) for one in differing)


# What Meta's folders are looked at for.


def checklist(*names: str) -> Spoil:
    """A right ``checklist.chk``, written before anything is spoilt."""

    def spoil(folder: Path) -> None:
        lines = [f"{hashlib.md5((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        (folder / "checklist.chk").write_text("".join(lines))

    return spoil


def first(*spoils: Spoil) -> Spoil:
    return lambda folder: void([spoil(folder) for spoil in spoils])


def flip(name: str, share: float) -> Spoil:
    return lambda folder: plant.flip_bit(folder / name, int((folder / name).stat().st_size * share))


def add_to(tensor: str, number: int, amount: float, *place: int) -> Spoil:
    def change(state: synthetic.State) -> None:
        state[tensor] = state[tensor].clone()
        state[tensor][place] += amount

    return rank(number, change)


def rank_of_another_model(folder: Path) -> None:
    shape = AUDITED["plain"]
    torch.save(synthetic.cut(shape, plant.trained_like(shape, 1))[1], folder / "consolidated.01.pth")


AUDITED = {
    "plain": LLAMA3.but(ranks=2, dtype=torch.float32),
    "three": LLAMA2.but(ranks=4, dtype=torch.float32),
    "copies": LLAMA3.but(ranks=8, kv_repeats=2),
}
R0, R1 = "consolidated.00.pth", "consolidated.01.pth"
W2, WV, FFN_NORM = (f"layers.1.{part}.weight" for part in ("feed_forward.w2", "attention.wv", "ffn_norm"))
NAN, INF = float("nan"), float("inf")

# What is done to a good folder; the finding it must give.
META_FAULTS: dict[str, tuple[str, Spoil, Seen]] = {
    "MD5": (
        "plain", first(checklist(R0, R1, "params.json"), add_to(W2, 1, 1.0, 0, 0)),
        Seen("values", "INPUT_CHECKLIST", R1, "MD5 does not match checklist.chk. expected "),
    ),
    "file of the checklist missing": (
        "plain", first(checklist(R0, R1), lambda folder: void(
            (folder / "checklist.chk").open("a").write("0" * 32 + "  consolidated.02.pth\n"))),
        Seen("values", "INPUT_CHECKLIST", "consolidated.02.pth", "Listed in checklist.chk, but missing."),
    ),
    "damaged byte": ("plain", flip(R1, 0.5), Seen("values", "INPUT_CRC", R1, "CRC-32")),
    "file cut short": ("plain", truncate(R1, 0.6), Seen("structure", "INPUT_TRUNCATED", R1)),
    "shape against params.json": (
        "plain", params(dim=128), Seen("structure", "RANKS_MISSING", "any", "64 of 128 rows of wq")
    ),
    "heads against params.json": (
        "plain", params(n_kv_heads=3), Seen("structure", "PARAMS_VALUE", "params.json", "does not divide")
    ),
    "layers against params.json": (
        "plain", params(n_layers=3),
        Seen("structure", "PARAMS_TENSORS_DISAGREE", "params.json", "layers.2 is in no file"),
    ),
    "width against params.json": (
        "plain", params(multiple_of=256),
        Seen("structure", "PARAMS_TENSORS_DISAGREE", "layers.0.feed_forward.w1.weight", "does not match"),
    ),
    "vocabulary against params.json": (
        "plain", params(vocab_size=95),
        Seen("structure", "PARAMS_TENSORS_DISAGREE", "output.weight", "rows does not match"),
    ),
    "params.json missing": (
        "plain", remove("params.json"), Seen("structure", "PARAMS_MISSING", "params.json", "Not found")
    ),
    "params.json no JSON": ("plain", params_text(b"{"), Seen("structure", "PARAMS_JSON", "params.json")),
    "norms differ": (
        "plain", add_to(FFN_NORM, 1, 1.0, 5),
        Seen("values", "RANKS_REPLICAS", FFN_NORM, "this tensor must be the same"),
    ),
    "KV heads differ": (
        "copies", add_to(WV, 1, 1.0, 0, 0),
        Seen("values", "RANKS_REPLICAS", WV, "this KV head must be the same"),
    ),
    "NaN": (
        "plain", add_to(W2, 1, NAN, 3, 4),
        Seen("values", "VALUES_NONFINITE", W2, "1 value is NaN or infinite, the first at [3, 52]."),
    ),
    "infinity": ("plain", add_to(W2, 1, INF, 3, 4), Seen("values", "VALUES_NONFINITE", R1)),
    "last rank missing": (
        "plain", remove(R1), Seen("structure", "RANKS_MISSING", "any", "1 of 2 shards are missing")
    ),
    "rank missing": (
        "three", remove("consolidated.02.pth"),
        Seen("structure", "RANKS_MISSING", "any", "Missing shard: consolidated.02.pth"),
    ),
    "rank of another model": (
        "plain", rank_of_another_model, Seen("values", "RANKS_REPLICAS", R1, "shards of two models?")
    ),
    "rank of another size": (
        "plain", rank(1, lambda state: state.update({W2: state[W2][:, :-1].contiguous()})),
        Seen("structure", "RANKS_SHAPES", W2, "The shape differs"),
    ),
    "rank of another dtype": (
        "plain", rank(1, lambda state: state.update({W2: state[W2].half()})),
        Seen("structure", "RANKS_DTYPES", W2, "The dtype differs"),
    ),
    "tensor missing on one rank": (
        "plain", rank(1, lambda state: state.pop(W2)), Seen("structure", "RANKS_NAMES", W2, "Missing")
    ),
    "nothing but zeros": (
        "plain", first(*(rank(n, lambda state: state.update({W2: torch.zeros_like(state[W2])}))
                         for n in range(2))),
        Seen("values", "VALUES_ZERO", W2, "a placeholder"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    for name, shape in AUDITED.items():
        plant.make(folder / name, shape)
    return folder


class TestMeta:
    @pytest.mark.parametrize("name", AUDITED)
    def test_right(self, audited: Path, name: str) -> None:
        report = look(audited / name, None)
        assert statuses(report) == {
            "structure": "pass", "values": "pass", "weights": "skipped", "tokenizer": "skipped",
            "logits": "skipped",
        }  # fmt: skip
        assert all_findings(report) == []

    @pytest.mark.parametrize("fault", META_FAULTS)
    def test_wrong(self, audited: Path, tmp_path: Path, fault: str) -> None:
        base, spoil, seen = META_FAULTS[fault]
        folder = Path(shutil.copytree(audited / base, tmp_path / "any"))
        spoil(folder)
        run = llama_convert("verify", folder, "--json")
        assert run.exit_code == 1, run.stderr
        assert_seen(look(folder, None), seen)

    def test_a_wrong_source_is_reported_as_such(self, audited: Path, tmp_path: Path) -> None:
        convert(audited / "plain", tmp_path / "out")
        source = Path(shutil.copytree(audited / "plain", tmp_path / "any"))
        truncate(R1, 0.6)(source)
        report = look(tmp_path / "out", source)
        assert_seen(report, Seen("structure", "INPUT_TRUNCATED", R1, "In the source: "))
        assert statuses(report)["weights"] == statuses(report)["logits"] == "skipped"

    def test_a_rank_with_a_rounded_norm_causes_a_warning(self, audited: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(audited / "plain", tmp_path / "meta"))
        add_to(FFN_NORM, 1, 2e-7, 5)(folder)
        report = look(folder, None)
        assert report.ok
        assert_seen(report, Seen("values", "RANKS_REPLICAS", FFN_NORM, "by rounding", warning=True))

    def test_a_checklist(self, audited: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(audited / "plain", tmp_path / "meta"))
        checklist(R0, R1, "params.json")(folder)
        report = look(folder, None, "values")
        assert "checklist.chk (3 files)" in report.checks[0].summary
        (folder / "checklist.chk").write_text("what is this\n")
        report = look(folder, None, "values")
        assert report.ok
        assert_seen(report, Seen("values", "INPUT_CHECKLIST", "checklist.chk", "malformed", warning=True))

    def test_a_tokenizer_of_another_model(self, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(TIED, tmp_path / "meta"))
        shutil.copy(LLAMA31 / "tokenizer.model", folder)
        report = look(folder, None)
        assert_seen(report, Seen("tokenizer", "TOKENIZER_SIZE", "tokenizer.model"))


# What a model says by itself, and what a cast does.


class TestSpeech:
    def test_a_model_with_high_perplexity_fails_without_a_source(self, tmp_path: Path) -> None:
        convert(LLAMA31, tmp_path / "out")
        names = [kind(layer) for layer in range(3) for kind in (q, k)]
        plant.rewrite(tmp_path / "out", plant.each(names, lambda w: plant.unpermuted(w, 16)))
        report = look(tmp_path / "out", None, "logits")
        assert_seen(report, Seen("logits", "HIGH_PERPLEXITY", None, "weights are scrambled"))

    def test_a_tokenizer_with_more_tokens_than_the_model(self, tmp_path: Path) -> None:
        convert(LLAMA31, tmp_path / "out")
        plant.rewrite(
            tmp_path / "out",
            plant.each(["model.embed_tokens.weight", HEAD], lambda w: w[:200]),
        )
        plant.edit_config(tmp_path / "out", vocab_size=200)
        report = look(tmp_path / "out", None, "logits")
        assert_seen(report, Seen("logits", "TOKENIZER_MISMATCH", "tokenizer.json", "has 200 rows"))

    def test_source_and_output_complete_alike(self, tmp_path: Path) -> None:
        convert(LLAMA31, tmp_path / "out")
        options = VerifyOptions(parse_checks(["structure"]), prompt="One day", max_new_tokens=4, device="cpu")
        said = verify(tmp_path / "out", LLAMA31, options).completions
        assert said["output"] == said["source"] != ""


def test_overflow(tmp_path: Path) -> None:
    """The conversion counts it and warns, the manifest keeps the count, verification names the place."""
    shape = LLAMA3.but(ranks=2)
    state = plant.trained_like(shape)
    state["layers.1.feed_forward.w1.weight"][60, 7] = 1e5
    synthetic.write(tmp_path / "meta", shape, synthetic.cut(shape, state))
    result = convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(dtype="fp16"))
    assert any("1 of 6144 values overflow" in warning for warning in result.warnings)
    manifest = json.loads((tmp_path / "out/llama-convert.json").read_text())
    assert [counts["overflowed"] for counts in manifest["casts"].values() if counts["overflowed"]] == [1]
    report = look(tmp_path / "out", tmp_path / "meta")
    assert_seen(report, Seen("values", "VALUES_NONFINITE", gate(1), "the first at [60, 7]."))
    assert_seen(report, Seen("values", "VALUES_NONFINITE", gate(1), "Convert with --dtype bf16."))
    assert statuses(report)["weights"] == "pass"  # it is what the source rounds to
    assert_seen(report, Seen("logits", "LOGITS_DIFFER", "model.layers.1", "diverge at layer 1"))


# Checks, exit codes, JSON.


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert(LLAMA31, folder / "out")
    return folder / "out"


class TestExitCodes:
    def test_0_all_right(self, converted: Path) -> None:
        run = llama_convert("verify", converted, "--source", LLAMA31)
        assert run.exit_code == 0, run.stderr

    def test_1_something_wrong(self, converted: Path, tmp_path: Path) -> None:
        out = Path(shutil.copytree(converted, tmp_path / "out"))
        plant.edit_config(out, rope_theta=10000.0)
        run = llama_convert("verify", out, "--source", LLAMA31, "--check", "logits")
        assert run.exit_code == 1
        assert "rope_theta" in run.stdout
        differing = look(out, LLAMA31, "logits")
        assert_seen(
            differing,
            Seen(
                "logits",
                "CONFIG_DIFFERS",
                "config.json",
                "rope_theta differs from the source. expected 500000, got 10000",
            ),
        )
        assert_seen(
            differing,
            Seen("logits", "LOGITS_DIFFER", "model.layers.0", "; rope_theta differs from the source."),
        )

    @pytest.mark.parametrize(
        "arguments",
        [(), ("{out}", "--check", "all"), ("{out}", "--dtype", "fp16"), ("{out}", "--device", "tpu"),
         ("{out}", "--nonsense"), ("{out}", "--positions", "1")],
    )  # fmt: skip
    def test_2_usage(self, converted: Path, arguments: tuple[str, ...]) -> None:
        run = llama_convert("verify", *(one.format(out=converted) for one in arguments))
        assert run.exit_code == 2, run.stderr

    @pytest.mark.parametrize("where", ["nothing", "empty", "file"])
    @pytest.mark.parametrize("side", ["path", "source"])
    def test_3_no_checkpoint(self, converted: Path, tmp_path: Path, where: str, side: str) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("")
        there = tmp_path / where
        sides = [there] if side == "path" else [converted, "--source", there]
        run = llama_convert("verify", *sides, "--json")
        answer = json.loads(run.stdout)
        assert run.exit_code == answer["exit_code"] == 3
        assert answer["code"] == "INPUT_NOT_FOUND"

    def test_library_users_get_exceptions(self, converted: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError):
            verify(tmp_path / "nowhere")
        with pytest.raises(UsageError):
            verify(converted, options=VerifyOptions(dtype="fp8"))


class TestJson:
    def envelope(self, *arguments: Any) -> dict[str, Any]:
        run = llama_convert("verify", *arguments, "--json")
        answer: dict[str, Any] = json.loads(run.stdout)
        assert answer["exit_code"] == run.exit_code
        assert (answer["schema"], answer["command"]) == (2, "verify")
        return answer

    def test_right(self, converted: Path) -> None:
        answer = self.envelope(converted, "--source", LLAMA31)
        assert answer["ok"] is True
        assert (answer["format"], answer["source_format"]) == ("huggingface", "meta")
        assert [(check["check"], check["status"]) for check in answer["checks"]] == list(ALL_PASS.items())
        metrics = answer["checks"][-1]["metrics"]
        assert len(metrics["layers"]) == 3
        assert metrics["top1_agreement"] == 1.0

    def test_wrong(self, converted: Path, tmp_path: Path) -> None:
        out = Path(shutil.copytree(converted, tmp_path / "out"))
        plant.rewrite(out, plant.each([gate(1)], lambda w: plant.with_flipped_bit(w, 2, 3, 4)))
        answer = self.envelope(out, "--source", LLAMA31, "--check", "weights")
        assert answer["ok"] is False
        (check,) = answer["checks"]
        (finding,) = check["findings"]
        assert (check["check"], check["status"]) == ("weights", "fail")
        assert (finding["code"], finding["tensor"], finding["file"]) == (
            "WEIGHTS_DIFFER", gate(1), "model.safetensors",
        )  # fmt: skip
        assert float(finding["expected"]) != float(finding["found"])
        assert "Bit 4 (mantissa) of one element is flipped." in finding["hint"]

    def test_checks_are_chosen(self, converted: Path) -> None:
        answer = self.envelope(converted, "--check", "values,structure")
        assert [check["check"] for check in answer["checks"]] == ["structure", "values"]


class TestConvertVerify:
    def test_all_levels_run(self, tmp_path: Path) -> None:
        run = llama_convert("convert", LLAMA31, tmp_path / "out", "--verify", "--json")
        answer = json.loads(run.stdout)
        assert run.exit_code == answer["exit_code"] == 0, run.stderr
        assert {check["check"]: check["status"] for check in answer["verification"]["checks"]} == ALL_PASS

    def test_it_fails_if_the_conversion_is_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from llama_convert.llama import rope
        from llama_convert.llama.rope import RowTranspose

        wrong = {("meta", "huggingface"): lambda head_dim: RowTranspose(head_dim, 1)}
        monkeypatch.setattr(rope, "_PERMUTATIONS", wrong)
        run = llama_convert("convert", LLAMA31, tmp_path / "out", "--verify", "--json")
        answer = json.loads(run.stdout)
        assert run.exit_code == answer["exit_code"] == 1
        checks = answer["verification"]["checks"]
        failed = [check["check"] for check in checks if check["status"] == "fail"]
        assert failed == ["weights", "logits"]


def test_every_code_is_seen() -> None:
    """Whatever these levels can say, a test makes them say."""
    package = ROOT / "llama_convert"
    names = ["structure", "values", "weights", "logits", "model_comparison"]
    sources = [package / "verification" / f"{name}.py" for name in names]
    sources += [package / "checkpoints" / name for name in ("huggingface.py", "manifest.py")]
    raised = {
        code for file in sources for code in re.findall(r'Error\(\s*"([A-Z_]+)"|Finding\(\s*"([A-Z_]+)"',
                                                        file.read_text())
        for code in code if code
    }  # fmt: skip
    tests = ("test_verify", "test_verify_faults", "test_tied_heads")
    here = "".join((ROOT / "tests" / f"{name}.py").read_text() for name in tests)
    assert len(raised) > 20
    assert {code for code in raised if f'"{code}"' not in here} == set()
