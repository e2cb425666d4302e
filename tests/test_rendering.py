"""How it looks: nothing wider than the terminal, no name cut off, plain lines where nobody looks."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from llama_convert.cli.inspect_report import print_result
from llama_convert.cli.messages import finding_lines, verdict
from llama_convert.cli.progress import ConsoleObserver
from llama_convert.cli.verify_report import print_report
from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.findings import Finding
from llama_convert.inspection.compare import compare
from llama_convert.inspection.inspect import inspect
from llama_convert.verification.verify import verify
from tests import plant
from tests.peers import ROOT
from tests.picture import settled
from tests.run import fresh

COMMANDS = ("convert", "shard", "verify", "inspect", "diff")
WIDTHS = (60, 80, 120, 200)
NORM = "model.layers.1.post_attention_layernorm.weight"
SOURCE = ROOT / "fixtures/llama2-mp2"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right conversion."""
    folder = tmp_path_factory.mktemp("look") / "right"
    convert(SOURCE, folder, ConvertOptions())
    return folder


@pytest.fixture(scope="module")
def damaged(output: Path) -> Path:
    """One with a wrong norm, a missing head, and another rope_theta."""
    folder = output.parent / "wrong"
    shutil.copytree(output, folder)
    plant.rewrite(folder, lambda state: (state.update({NORM: state[NORM] * 1.5}), state.pop(plant.HEAD)))
    plant.edit_config(folder, rope_theta=20000.0)
    return folder


class Screen(io.TextIOWrapper):
    """Stdout or stderr, of a terminal or not."""

    def __init__(self, encoding: str = "utf-8", *, watched: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.watched = watched

    def isatty(self) -> bool:
        return self.watched

    def text(self) -> str:
        self.flush()
        content = self.buffer
        assert isinstance(content, io.BytesIO)
        return content.getvalue().decode(self.encoding)


def pages(output: Path, damaged: Path) -> None:
    print_report(verify(str(damaged), str(SOURCE)))
    print_result(inspect(str(damaged), tensors="*", stats=True))
    print_result(inspect(str(output), tensors="*"))
    print_result(inspect(str(SOURCE)))
    print_result(compare(str(damaged), str(output), stats=True))


def shown(monkeypatch: pytest.MonkeyPatch, screen: Screen, output: Path, damaged: Path) -> str:
    monkeypatch.setattr(sys, "stdout", screen)
    pages(output, damaged)
    monkeypatch.undo()
    return screen.text()


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_truncate_no_name(
    monkeypatch: pytest.MonkeyPatch, output: Path, damaged: Path, width: int
) -> None:
    for name, value in {"COLUMNS": str(width), "LINES": "40", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    text = shown(monkeypatch, Screen(), output, damaged)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    folded = re.sub(r"\s+", "", text)
    assert all(name in folded for name in (NORM, plant.HEAD, plant.q(0), "rope_theta"))
    if width >= 80:
        assert NORM in text


@pytest.mark.parametrize("width", WIDTHS[:3])
def test_lines_break_at_spaces(
    monkeypatch: pytest.MonkeyPatch, output: Path, damaged: Path, width: int
) -> None:
    monkeypatch.chdir(output.parent)

    def words(width: int) -> set[str]:
        for name, value in {"COLUMNS": str(width), "LINES": "40", "NO_COLOR": "1", "TERM": "dumb"}.items():
            monkeypatch.setenv(name, value)
        screen = Screen()
        monkeypatch.setattr(sys, "stdout", screen)
        for path in ("right", "wrong"):
            for options in ({}, {"tensors": "*"}, {"stats": True}):
                print_result(inspect(path, **options), verbose=True)  # type: ignore[arg-type]
        for a, b in (("right", "wrong"), ("wrong", "right")):
            print_result(compare(a, b, stats=True))
        return set(screen.text().split())

    assert words(width) - words(400) <= {"A", "B"}  # headings of columns, once per cell


def test_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding("A", "Odd.", "a.json", severity="warning"),
        Finding("B", "Wrong shape.", "b.pth", "norm.weight", "[64]", "[32]", "Download it again."),
        Finding("C", "and 3 more", hint="Download it again."),
    ]
    assert "\n".join(line.plain for line in finding_lines(findings)) == (
        "error: b.pth: norm.weight: Wrong shape.\n"
        "  expected [64], got [32]\n"
        "  hint: Download it again.\n"
        "error: and 3 more\n"
        "  hint: Download it again.\n"
        "warning: a.json: Odd."
    )
    assert verdict(findings).plain == "4 errors, 1 warning"
    assert verdict(findings[:1]).plain == "OK: 1 warning"
    assert verdict([]).plain == "OK: no problems found"


def test_what_is_piped_is_plain_and_whole(
    monkeypatch: pytest.MonkeyPatch, output: Path, damaged: Path
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = shown(monkeypatch, Screen(watched=False), output, damaged).splitlines()
    assert not any(line != line.rstrip() or "\x1b" in line for line in lines)
    assert any(line.startswith(f"{NORM} ") for line in lines)


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252"])
def test_every_encoding_can_print_it(
    monkeypatch: pytest.MonkeyPatch, output: Path, damaged: Path, encoding: str
) -> None:
    text = shown(monkeypatch, Screen(encoding, watched=False), output, damaged)
    assert text.isascii()
    assert "\\u" not in text


def test_old_windows_consoles_get_digits_for_bars(monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    monkeypatch.setattr("llama_convert.cli.inspect_report.page", lambda: Console(legacy_windows=True))
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    print_result(inspect(str(output), tensors="*", stats=True))
    monkeypatch.undo()
    assert screen.text().isascii()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_truncates_nothing(command: str) -> None:
    for width in WIDTHS:
        text = fresh(command, "--help-all", COLUMNS=str(width)).stdout
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
    for width in (80, 120, 200):
        text = fresh(command, "--help", COLUMNS=str(width)).stdout
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        assert "--debug" not in text
        examples = [line for line in text.split("Examples")[1].splitlines() if line.strip()]
        examples = examples[: next(n for n, line in enumerate(examples) if "Arguments" in line)]
        assert len(examples) >= 2
        assert all(line.strip().startswith("llama-convert ") for line in examples)


@pytest.mark.parametrize("width", [40, *WIDTHS])
def test_the_bar_fits_and_leaves_no_trace(width: int) -> None:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=width, legacy_windows=False, color_system=None)
    observer = ConsoleObserver(console)
    observer.start(3_000_000_000)
    observer.advance(1_000_000_000)
    assert observer._live
    observer._live.refresh()
    observer.finish()
    drawn = [line for line in re.split(r"[\r\n]|\x1b\[\??\d*[A-Za-z]", screen.text()) if "1.0/3.0" in line]
    assert drawn
    assert all(len(line.rstrip()) <= width and "…" not in line for line in drawn)
    assert all(line.startswith("Converting 33% 1.0/3.0 GB") for line in drawn)
    assert width < 60 or all("━" in line for line in drawn)


@pytest.mark.parametrize("settings", [{"TERM": "dumb"}, {"FORCE_COLOR": "1"}, {}])
def test_no_bar_where_none_can_be_drawn(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    monkeypatch.setattr("llama_convert.cli.progress._QUIET_SECONDS", 0.0)
    screen = Screen(watched="TERM" in settings)
    console = Console(file=screen, _environ=settings, width=120, height=40, legacy_windows=False)
    observer = ConsoleObserver(console)
    observer.start(2_000_000)
    assert observer._timer
    observer._timer.join()
    observer.advance(1_000_000)
    observer.finish()
    first, last = screen.text().splitlines()
    assert first == "Converting 2.0 MB"
    assert re.fullmatch(r"Converting 50% 1.0/2.0 MB \S+ .B/s in \S+ s", last)
    assert "\x1b" not in screen.text()


def test_the_end_names_the_next_command(tmp_path: Path) -> None:
    run = fresh("convert", SOURCE, tmp_path / "an output")
    *_, done, following = run.stderr.splitlines()
    assert re.fullmatch(r"Wrote 9 files, 392\.\d KB, in \S+ s: .+", done), done
    assert done.endswith(f": {tmp_path / 'an output'}")
    assert following.endswith(f"llama-convert verify '{tmp_path / 'an output'}' --source {SOURCE}")


def test_the_picture_is_small_and_fetches_nothing() -> None:
    svg = (ROOT / "fixtures/conversion.svg").read_text(encoding="utf-8")
    assert len(svg) < 60_000
    assert "@font-face" not in svg
    assert re.findall(r"https?://[^/\"]+", svg) == ["http://www.w3.org"]


def test_the_picture_shows_the_final_screen() -> None:
    received = "one\r\n\x1b[?25l10%\r\x1b[2K20%\r\n\r\x1b[1A\x1b[2K\x1b[?25htwo\r\n"
    assert settled(received) == "one\ntwo\n"
