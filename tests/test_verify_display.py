"""Verification on the screen: rows appear when checks end, one finding per cause, the verdict in one line."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llama_convert.cli.verify_report import VerifyDisplay, print_report
from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.findings import RootCause
from llama_convert.verification import verify as module
from llama_convert.verification.context import SkippedError
from llama_convert.verification.options import VerifyOptions, parse_checks
from llama_convert.verification.report import Check, CheckReport, Outcome, Status, VerifyReport
from llama_convert.verification.verify import verify
from tests import plant
from tests.peers import ROOT
from tests.plant import gate, q, up
from tests.run import llama_convert
from tests.test_rendering import Screen

SOURCE = ROOT / "fixtures/llama3.1-mp2"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("display") / "out"
    convert(SOURCE, folder, ConvertOptions(instruct=True))
    return folder


@pytest.fixture
def output(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "out"))


def look(output: Path, *checks: str) -> VerifyReport:
    return verify(output, SOURCE, VerifyOptions(checks=parse_checks(checks), device="cpu"))


def of(report: VerifyReport, check: str) -> CheckReport:
    return next(each for each in report.checks if each.check.value == check)


# Rows and the live line.


class Spy(VerifyDisplay):
    """Records what is on stdout when each check begins."""

    def __init__(self, screen: Screen, console: Console, **options: Any) -> None:
        super().__init__(console, **options)
        self.screen = screen
        self.before: dict[str, str] = {}

    def check_started(self, check: Check) -> None:
        self.before[check.value] = self.screen.text()
        super().check_started(check)


def slow_outcome(check: Check, _: object) -> Outcome:
    if check is Check.WEIGHTS:
        raise SkippedError("No source")
    time.sleep(0.4)
    return Outcome(f"{check.value} is right")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_each_row_is_printed_when_its_check_ends(
    is_terminal: bool, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_outcome_of", slow_outcome)
    stdout, stderr = Screen(watched=is_terminal), Screen(watched=is_terminal)
    monkeypatch.setattr(sys, "stdout", stdout)
    console = Console(file=stderr, force_terminal=is_terminal, width=100, legacy_windows=False)
    with Spy(stdout, console) as display:
        verify(converted, options=VerifyOptions(checksums=False), observer=display)
    monkeypatch.undo()
    assert "Verifying " in display.before["structure"]
    assert "structure is right" in display.before["values"]
    assert re.search(r"weights +skipped +No source", display.before["tokenizer"])
    assert "tokenizer is right" in display.before["logits"]
    for check in ("structure", "values", "tokenizer", "logits"):
        assert (f"Checking {check} 0:00" in stderr.text()) == is_terminal
    if not is_terminal:
        assert stderr.text() == ""
        assert "\x1b" not in stdout.text()


def test_the_live_line_counts_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Screen()
    console = Console(file=stderr, force_terminal=True, width=100, legacy_windows=False)
    with VerifyDisplay(console):
        time.sleep(1.4)
    assert "Reading headers 0:01" in stderr.text()


def test_official_checksums_and_completions_show_progress(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[str, list[int]] = {}

    class Counter(module.Observer):
        def start(self, total: int | None, label: str = "") -> None:
            self.counts = counted.setdefault(label, [])

        def advance(self, count: int) -> None:
            self.counts.append(count)

    options = VerifyOptions(
        checks=parse_checks(["values"]), checksums=True, prompt="One day", max_new_tokens=2, device="cpu"
    )
    verify(converted, None, options, Counter())
    total = sum(file.stat().st_size for file in converted.iterdir() if file.is_file())
    assert sum(counted["Computing checksums"]) == total
    assert len(counted["Generating"]) == 2 * 3  # tokens, layers


def test_an_error_removes_the_live_line(converted: Path) -> None:
    stderr = Screen()
    console = Console(file=stderr, force_terminal=True, width=100, legacy_windows=False)
    display = VerifyDisplay(console)
    with pytest.raises(RuntimeError), display:
        raise RuntimeError
    assert stderr.text().endswith("\x1b[?25h") or "\x1b[?25h" in stderr.text()
    assert display._live is None


def test_quiet_prints_the_verdict_alone(output: Path) -> None:
    run = llama_convert("verify", output, "--source", SOURCE, "--quiet")
    assert re.fullmatch(r"PASS 5/5 checks in [\d.]+ s\n", run.stdout)
    plant.edit_config(output, rope_theta=10000.0)
    run = llama_convert("verify", output, "--source", SOURCE, "--quiet", "--check", "structure,weights")
    assert run.stdout == "FAIL: structure (1 error)\n"


def test_verbose_adds_details(output: Path) -> None:
    run = llama_convert("verify", output, "--check", "structure,values", "--verbose")
    assert "Names, shapes, dtypes, index and hyper-parameters" in run.stdout
    run = llama_convert("verify", output, "--check", "structure,values")
    assert "Names, shapes" not in run.stdout


def test_level_is_the_hidden_former_name_of_check(output: Path) -> None:
    run = llama_convert("verify", output, "--level", "structure", "--check", "values", "--json")
    assert [check["check"] for check in run.json["checks"]] == ["structure", "values"]
    assert "--level" not in llama_convert("verify", "--help").stdout


# The verdict.


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([("values", Status.PASS, 0, 61.6), ("logits", Status.PASS, 0, 4.0)], "PASS 2/2 checks in 66 s"),
        (
            [("values", Status.PASS, 0, 4.0), ("weights", Status.SKIPPED, 0, 0.0)],
            "PASS 1/2 checks in 4 s (skipped: weights)",
        ),
        ([("values", Status.FAIL, 12, 0.1), ("logits", Status.FAIL, 1, 0.1)],
         "FAIL: values (12 errors), logits (1 error)"),
    ],
)  # fmt: skip
def test_the_verdict_is_one_line(
    checks: list[tuple[str, Status, int, float]], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [
        CheckReport(Check(name), status, "", [], seconds, n_errors=count)
        for name, status, count, seconds in checks
    ]
    print_report(VerifyReport(Path("out"), "meta", None, None, None, reports))
    assert capsys.readouterr().out.splitlines()[-1] == verdict


# One finding per cause.


def test_a_config_difference_is_not_repeated_by_logits(output: Path) -> None:
    plant.edit_config(output, rope_theta=10000.0)
    report = look(output)
    cause = RootCause("structure", "CONFIG_DIFFERS", "rope_theta differs from the source.")
    logits = of(report, "logits")
    assert logits.findings
    assert {finding.explained_by for finding in logits.findings} == {cause}
    assert logits.explanation == "Explained by structure: rope_theta differs from the source"
    assert [finding.explained_by for finding in of(report, "values").findings] == [cause]  # config.json
    assert (logits.status, logits.n_errors, report.ok) == (Status.FAIL, 0, False)
    assert of(report, "structure").n_errors == 1
    run = llama_convert("verify", output, "--source", SOURCE, "--json")
    checks = {check["check"]: check for check in json.loads(run.stdout)["checks"]}
    assert {one["explained_by"]["code"] for one in checks["logits"]["findings"]} == {"CONFIG_DIFFERS"}
    assert {one["explained_by"] for one in checks["structure"]["findings"]} == {None}
    run = llama_convert("verify", output, "--source", SOURCE)
    assert run.exit_code == 1
    assert run.stdout.count("expected 500000, got 10000") == 1
    verdict = "FAIL: structure (1 error), values (explained by structure), logits (explained by structure)"
    assert " ".join(run.stdout.split()).endswith(verdict)


def test_a_swapped_tensor_is_reported_by_weights_alone(output: Path) -> None:
    plant.rewrite(output, plant.swapped((gate(1), up(1))))
    report = look(output)
    (first, second) = of(report, "weights").findings
    assert first.explained_by is second.explained_by is None
    mismatches = of(report, "values").findings
    assert [finding.code for finding in mismatches] == ["MANIFEST_DIFFERS"] * 2
    causes = [finding.explained_by for finding in mismatches]
    assert [(cause and cause.code, cause and cause.tensor) for cause in causes] == [
        ("WEIGHTS_DIFFER", gate(1)), ("WEIGHTS_DIFFER", up(1)),
    ]  # fmt: skip
    assert of(report, "logits").explanation == f"Explained by weights: error in {gate(1)}"
    assert [each.n_errors for each in report.checks] == [0, 0, 2, 0, 0]


def test_without_weights_the_checksum_is_the_cause(output: Path) -> None:
    plant.rewrite(output, plant.swapped((gate(1), up(1))))
    report = look(output, "values", "logits")
    assert of(report, "values").n_errors == 2
    assert all(finding.explained_by is None for finding in of(report, "values").findings)
    assert of(report, "logits").explanation == f"Explained by values: error in {gate(1)}"


def test_another_layer_is_not_explained(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong tensor of layer 2 does not explain why layer 1 differs."""
    plant.rewrite(output, plant.each([q(1)], lambda weight: plant.unpermuted(weight, 16)))
    right = module._outcome_of

    def other_tensor(check: Check, context: Any) -> Outcome:
        outcome = right(check, context)
        if check is Check.WEIGHTS:
            for finding in outcome.findings:
                object.__setattr__(finding, "tensor", q(2))
        return outcome

    monkeypatch.setattr(module, "_outcome_of", other_tensor)
    report = look(output, "weights", "logits")
    layer = next(one for one in of(report, "logits").findings if one.tensor == "model.layers.1")
    assert layer.explained_by is None


def test_many_findings_are_counted_before_they_are_shortened(output: Path) -> None:
    names = [q(layer) for layer in range(3)] + [gate(layer) for layer in range(3)]
    names += [kind(layer) for layer in range(3) for kind in (up, plant.down, plant.o, plant.v)]
    plant.rewrite(output, plant.each(names, lambda weight: weight * 2))
    report = look(output, "weights")
    assert of(report, "weights").n_errors == len(names)
    assert of(report, "weights").findings[-1].message == f"And {len(names) - 10} more."


# Official files.


def test_provenance_is_shown_with_verbose_and_in_json_only(output: Path) -> None:
    line = "special_tokens_map.json matches the official checksum of Llama 3.1 8B Instruct."
    arguments = ("verify", output, "--check", "values")
    plain, verbose = llama_convert(*arguments), llama_convert(*arguments, "--verbose")
    assert line in plain.stdout.splitlines()
    assert line in verbose.stdout.splitlines()
    assert "public source" not in plain.stdout
    assert "public source" in verbose.stdout
    files = llama_convert(*arguments, "--json").json["official_files"]
    provenance = [file["provenance"] for file in files if file["file"] == "special_tokens_map.json"]
    assert "public source" in provenance[0]


def test_a_small_file_of_an_official_size_is_not_listed(output: Path) -> None:
    file = output / "special_tokens_map.json"
    file.write_bytes(file.read_bytes().replace(b"\n", b" ", 1))
    assert "special_tokens_map.json" not in {each.file for each in look(output, "values").files}
