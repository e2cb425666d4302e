"""The check of wording finds what it should, and only in prose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import style


def faults(file: Path, text: str) -> list[str]:
    file.write_text(text, encoding="utf-8")
    check = style.faults_of_document if file.suffix == ".md" else style.faults_of_strings
    return [fault.message.partition(":")[0] for fault in check(file)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The folder stands there.", ["'stands'"]),
        ("Nobody is told.", ["'told'", "'Nobody'"]),
        ("It holds the file against the list.", ["'holds the file against'"]),
        ("at least one", []),
        ("the password", []),
        ("files published on the Hub", []),
        ("The output is published.", ["'published'"]),
        ("`it stands there`", []),
        ("```text\nit stands there\n```", []),
        ("[a page](stands.md)", []),
        ("It stands there. <!-- style: stands -->", []),
        ("### STOPPED", []),
        ("<!-- computed: x -->\n| it stands |\n<!-- end of computed part -->", []),
    ],
)
def test_documents(tmp_path: Path, text: str, found: list[str]) -> None:
    assert faults(tmp_path / "page.md", text) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('message = "the file stands there"', ["'stands'"]),
        ('message = f"the file {name} stands there"', ["'stands'"]),
        ('key = "stands"', []),
        ('"""What stands there."""', []),
        ('def verify_command():\n    """Find what stands there."""', ["'stands'"]),
        ('message = "one thing; another; a third"', ["more than one semicolon in a message"]),
        ('message = "the file stands there"  # style: stands', []),
    ],
)
def test_strings(tmp_path: Path, code: str, found: list[str]) -> None:
    assert faults(tmp_path / "module.py", code) == found


def test_nothing_is_found_here() -> None:
    assert list(map(str, style.all_faults())) == []


def test_test_names(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "def test_what_stands_there() -> None: ...\n\n\ndef stands() -> None: ...\n"
    )
    assert [fault.line for fault in style.faults_of_test_names(tmp_path / "test_x.py")] == [1]
