"""Files that several releases could have: verification reads them as the conversion did."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llama_convert.conversion.convert import convert, shard
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import UsageError
from llama_convert.findings import Finding
from llama_convert.inspection.compare import compare
from llama_convert.inspection.inspect import inspect
from llama_convert.llama.config import RopeScaling
from llama_convert.observer import Observer
from llama_convert.verification.options import VerifyOptions, parse_checks
from llama_convert.verification.report import VerifyReport
from llama_convert.verification.verify import verify
from tests import plant, synthetic
from tests.run import llama_convert
from tests.synthetic import LLAMA2, LLAMA3, Shape
from tests.test_release_folders import CASES

SCALED = LLAMA3.but(vocab_size=128)
TIED = SCALED.but(tied=True)
PLAIN = SCALED.but(params={"rope_theta": 500000.0})
RELEASES: list[tuple[Shape, str]] = [
    (LLAMA2, "1"),
    (LLAMA2, "2"),
    (SCALED, "3.1"),
    (SCALED, "3.2"),
    (SCALED, "Guard-3"),
    (TIED, "3.1"),
    (TIED, "3.2"),
    (PLAIN, "3"),
    (PLAIN, "Guard-2"),
    (PLAIN, "Guard-3"),
]
each_release = pytest.mark.parametrize(
    ("shape", "version"), RELEASES, ids=[f"{version}{' tied' * shape.tied}" for shape, version in RELEASES]
)


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def check(out: Path, source: Path, *levels: str, version: str | None = None) -> tuple[VerifyReport, Notes]:
    notes = Notes()
    options = VerifyOptions(checks=parse_checks(levels), device="cpu", llama_version=version)
    return verify(out, source, options, notes), notes


def all_findings(report: VerifyReport) -> list[Finding]:
    return [finding for level in report.checks for finding in level.findings]


def forget(folder: Path) -> None:
    """As another converter leaves a folder."""
    (folder / "llama-convert.json").unlink()


def factor(folder: Path) -> float | None:
    config = inspect(folder).config
    assert config
    return config["rope_scaling"] and config["rope_scaling"]["factor"]


@each_release
@pytest.mark.parametrize("manifest", [True, False], ids=["manifest", "none"])
def test_a_right_conversion_passes(tmp_path: Path, shape: Shape, version: str, manifest: bool) -> None:
    plant.make(tmp_path / "meta", shape)
    convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(llama_version=version))
    if not manifest:
        forget(tmp_path / "out")
    report, notes = check(tmp_path / "out", tmp_path / "meta")
    assert all_findings(report) == []
    default = check(tmp_path / "meta", tmp_path / "meta")[0].release
    assert len(notes.notes) == (report.release != default)
    assert compare(tmp_path / "meta", tmp_path / "out", stats=True).same
    assert compare(tmp_path / "out", tmp_path / "meta", stats=True).same


@each_release
@pytest.mark.parametrize("manifest", [True, False], ids=["manifest", "none"])
def test_so_does_the_way_back(tmp_path: Path, shape: Shape, version: str, manifest: bool) -> None:
    """Meta's files do not hold the factor of RoPE; the manifest next to them does, or else the source."""
    plant.make(tmp_path / "meta", shape)
    convert(tmp_path / "meta", tmp_path / "hf", ConvertOptions(llama_version=version))
    forget(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", ConvertOptions(to="meta"))
    if manifest:
        assert factor(tmp_path / "back") == factor(tmp_path / "hf")
        shard(tmp_path / "back", tmp_path / "two", mp=2)
        assert factor(tmp_path / "two") == factor(tmp_path / "hf")
    else:
        forget(tmp_path / "back")
    assert [one.code for one in all_findings(check(tmp_path / "back", tmp_path / "hf")[0])] == []
    assert compare(tmp_path / "back", tmp_path / "hf").same


def test_the_note_names_both_releases(tmp_path: Path) -> None:
    plant.make(tmp_path / "meta", SCALED)
    convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(llama_version="3.2"))
    run = llama_convert("verify", tmp_path / "out", "--source", tmp_path / "meta", "--check", "structure")
    assert run.exit_code == 0
    said = " ".join(run.stderr.split())
    assert "Assuming Llama 3.2 architecture (custom size) (recorded in llama-convert.json) instead of" in said
    assert said.count("Use --llama-version to override") == 1


def test_the_flag_wins(tmp_path: Path) -> None:
    plant.make(tmp_path / "meta", SCALED)
    convert(tmp_path / "meta", tmp_path / "out", ConvertOptions(llama_version="3.2"))
    report, notes = check(tmp_path / "out", tmp_path / "meta", "structure", version="3.1")
    assert not notes.notes
    assert [one.message for one in all_findings(report)] == ["factor differs from the source."]
    with pytest.raises(UsageError, match="does not match the files"):
        check(tmp_path / "out", tmp_path / "meta", version="3")


def test_a_release_that_the_files_rule_out_is_not_assumed(tmp_path: Path) -> None:
    """A manifest copied from elsewhere does not choose beyond the readings."""
    plant.make(tmp_path / "meta", PLAIN)
    plant.make(tmp_path / "scaled", SCALED)
    convert(tmp_path / "meta", tmp_path / "out")
    convert(tmp_path / "scaled", tmp_path / "other", ConvertOptions(llama_version="3.2"))
    shutil.copy(tmp_path / "other/llama-convert.json", tmp_path / "out")
    report, notes = check(tmp_path / "out", tmp_path / "meta", "structure")
    assert report.ok
    assert not notes.notes


@pytest.mark.parametrize("manifest", [True, False], ids=["manifest", "none"])
def test_a_wrong_factor_is_found(tmp_path: Path, manifest: bool) -> None:
    """The one that no release has, and with a manifest the one of another release."""
    plant.make(tmp_path / "meta", SCALED)
    convert(tmp_path / "meta", tmp_path / "out")
    if not manifest:
        forget(tmp_path / "out")
    scaling = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": RopeScaling.original_context_length}
    plant.edit_config(tmp_path / "out", rope_scaling=scaling | {"factor": 32.0 if manifest else 16.0})
    report, _ = check(tmp_path / "out", tmp_path / "meta", "structure")
    assert [one.code for one in all_findings(report)] == ["CONFIG_DIFFERS"]


@pytest.mark.parametrize(
    ("version", "instruct", "shape", "expected"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])],
    ids=lambda value: str(value)[:8],
)
def test_with_the_tokenizer(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    version: str,
    instruct: bool | None,
    shape: Any,
    expected: tuple[Any, ...],
) -> None:
    """Special tokens, their ids in the configs and the chat template are those of the release, too."""
    synthetic.make(tmp_path / "meta", shape)
    name = "llama3_tokenizer_model" if shape.vocab_size == 128256 else "llama2_tokenizer_model"
    shutil.copy(request.getfixturevalue(name), tmp_path / "meta")
    out = tmp_path / "out"
    convert(tmp_path / "meta", out, ConvertOptions(llama_version=version, instruct=instruct))
    report, _ = check(out, tmp_path / "meta", "structure", "tokenizer")
    assert all_findings(report) == []


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "fp16"},
        {"special_tokens": ("<|begin_of_text|>", "<|end_of_text|>", "<|mine|>")},
        {"instruct": True},
        {"instruct": False},
        {"max_shard_size": "30KB"},
    ],
    ids=str,
)
def test_other_options_need_not_be_repeated(tmp_path: Path, options: dict[str, Any]) -> None:
    source = Path(__file__).parents[1] / "fixtures/llama3.1-mp2"
    convert(source, tmp_path / "out", ConvertOptions(**options))
    report, _ = check(tmp_path / "out", source, "structure", "weights", "tokenizer")
    assert report.ok
    assert {one.code for one in all_findings(report)} <= {"TOKEN_RENAMED"}  # a warning: names are unusual


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_nor_do_ranks_and_axes(tmp_path: Path, ranks: int, axis: int) -> None:
    plant.make(tmp_path / "meta", SCALED)
    convert(tmp_path / "meta", tmp_path / "hf", ConvertOptions(llama_version="3.2"))
    convert(tmp_path / "hf", tmp_path / "out", ConvertOptions(to="meta", mp=ranks, embedding_axis=axis))
    for source in ("meta", "hf"):
        report, _ = check(tmp_path / "out", tmp_path / source, "structure", "weights")
        assert all_findings(report) == []
