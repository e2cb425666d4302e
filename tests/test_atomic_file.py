"""Files written next to files of others: results of `verify --record`, pages of `verify --report`."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_convert import convert
from llama_convert.checkpoints.manifest import read_manifest
from llama_convert.conversion.atomic_file import write_atomically
from llama_convert.conversion.model_card import is_unedited
from tests.invariant import CHANGES, FAULTS, fail_at, run, signal_at
from tests.peers import ROOT
from tests.run import llama_convert

LLAMA31 = ROOT / "fixtures/llama3.1-mp2"
PRECIOUS = b"years of work"
PAGE = b'<!DOCTYPE html>\n<html lang="en">\n<meta name="generator" content="llama-convert 1.0">\n'


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


# The function.


def test_a_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"new" * 1000)
    finally:
        os.umask(old)
    assert (tmp_path / "file").read_bytes() == b"new" * 1000
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert (tmp_path / "file").stat().st_nlink == 1
    assert names(tmp_path) == {"file"}


def test_an_old_file_passes_its_permissions_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o604)
    (tmp_path / "other").hardlink_to(tmp_path / "file")
    write_atomically(tmp_path / "file", b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o604
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "other").read_bytes() == b"old"


def test_what_may_not_be_replaced_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(PRECIOUS)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"new", may_replace=lambda _: False)
    assert (tmp_path / "file").read_bytes() == PRECIOUS
    assert names(tmp_path) == {"file"}


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Created by another process between the check and the renaming."""
    real = os.link

    def link(*args: object, **kwargs: object) -> None:
        (tmp_path / "file").write_bytes(PRECIOUS)
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"new", may_replace=lambda _: False)
    assert (tmp_path / "file").read_bytes() == PRECIOUS
    assert names(tmp_path) == {"file"}


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "as FAT has it")

    monkeypatch.setattr(os, "link", link)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == {"file"}


def test_leftovers_are_removed_but_for_those_of_runs_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover, link = (tmp_path / f".llama-convert-{digit * 32}.new" for digit in "0a")
    users = tmp_path / ".llama-convert-notes.new"
    leftover.touch()
    users.touch()
    link.symlink_to(users)
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", real)
        write_atomically(tmp_path / "other", b"another run's")
        assert source.exists()
        real(source, target)

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "file", b"new")
    assert names(tmp_path) == {"file", "other", users.name, link.name}


# verify --record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(LLAMA31, out)
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


RECORD = ("--check", "structure", "--record", "-q")


@pytest.mark.parametrize(
    "name",
    [
        ".README.md.new",
        ".llama-convert.json.new",
        "README.md.new",
        ".llama-convert.json.tmp",
        "llama-convert.json",
        "README.md",
    ],
)
@pytest.mark.parametrize("content", [None, PRECIOUS])
def test_no_link_is_written_through(out: Path, name: str, content: bytes | None) -> None:
    """Neither temporary names, which are unpredictable, nor the files themselves."""
    victim = out.parent / "victim"
    if (out / name).exists():
        content = (out / name).read_bytes()
        (out / name).unlink()
    if content is not None:
        victim.write_bytes(content)
    (out / name).symlink_to("../victim")
    assert llama_convert("verify", out, *RECORD).exit_code == 0
    assert (victim.read_bytes() if victim.exists() else None) == content
    manifest = read_manifest(out)
    assert manifest
    assert manifest["verification"]["ok"]
    assert not (out / "llama-convert.json").is_symlink()


def _ends(out: Path) -> Iterator[tuple[Callable[..., object], str]]:
    """A kill before each call, and a failure of each that is not for reading."""
    calls = run(["verify", str(out), *RECORD], roots=[out]).calls
    changes = [name for name, _ in calls if name in CHANGES]
    for number in range(1, len(changes) + 1):
        yield signal_at(number, signal.SIGKILL, torn=True), f"killed at {number}"
    for place, (name, path) in enumerate(calls):
        if name in CHANGES and (name != "open" or ".llama-convert-" in path):
            number = [name for name, _ in calls[: place + 1]].count(name)
            yield fail_at(number, name, FAULTS["ENOSPC"]), f"{name} {number} fails"


def test_killed_or_failing_anywhere(whole: Path, tmp_path: Path) -> None:
    """Each file is the old one or the new one; the next run makes both new and leaves nothing else."""
    shutil.copytree(whole, tmp_path / "scratch")
    shutil.copytree(whole, tmp_path / "recorded")
    assert llama_convert("verify", tmp_path / "recorded", *RECORD).exit_code == 0
    ends = list(_ends(tmp_path / "scratch"))
    assert len(ends) > 20
    for number, (act, what) in enumerate(ends):
        out = tmp_path / str(number)
        shutil.copytree(whole, out)
        ended = run(["verify", str(out), *RECORD], act, [out])  # type: ignore[arg-type]
        assert ended.exit_code in (0, 4, -signal.SIGKILL), (what, ended.stderr)
        for name in ("README.md", "llama-convert.json"):
            states = [(folder / name).read_bytes() for folder in (whole, tmp_path / "recorded")]
            assert (out / name).read_bytes() in states, what
        assert is_unedited(out / "README.md")
        if ended.exit_code == 4:
            assert names(out) == names(whole), what
        assert run(["verify", str(out), *RECORD]).exit_code == 0, what
        assert names(out) == names(whole), what
        assert (out / "README.md").read_bytes() == (tmp_path / "recorded/README.md").read_bytes()
        shutil.rmtree(out)


# verify --report


def report(out: Path, file: Path) -> tuple[int, str]:
    ended = llama_convert("verify", out, "--check", "structure", "--report", file, "--json")
    return ended.exit_code, ended.json.get("code", "")


def test_a_report_is_written_and_replaced(out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("new.html", "new.html", "empty"):
        assert report(out, tmp_path / name) == (0, "")
        assert b"<h1>" in (tmp_path / name).read_bytes()
    assert names(tmp_path) == {"out", "new.html", "empty"}


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "llama-convert.json", "config.json"])
def test_no_file_of_a_checkpoint_is_replaced_by_a_report(out: Path, name: str) -> None:
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert report(out, out / name) == (5, "OUTPUT_EXISTS")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.write_bytes(PRECIOUS),
        lambda file: file.write_bytes(b"<!DOCTYPE html><title>mine</title>"),
        lambda file: file.write_bytes(b" " * 1000 + PAGE),
        lambda file: file.symlink_to("victim"),
        lambda file: file.symlink_to("nowhere"),
        lambda file: file.symlink_to("/dev/null"),
        lambda file: file.symlink_to(file.name),
        os.mkfifo,
        lambda file: file.mkdir(),
    ],
    ids=["text", "html", "marker-late", "link", "dangling", "device", "loop", "fifo", "folder"],
)
def test_nothing_but_a_report_is_replaced_by_one(
    out: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """Nor is what a link leads to, were it a report; and it is said before anything is verified."""
    (tmp_path / "victim").write_bytes(PAGE)
    file = tmp_path / "report.html"
    make(file)
    before = file.lstat()
    shutil.rmtree(out)  # anything read of it would be the first error
    assert report(out, file) == (5, "OUTPUT_EXISTS")
    after = file.lstat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )
    assert (tmp_path / "victim").read_bytes() == PAGE
    assert names(tmp_path) == {"victim", "report.html"}


def test_a_file_that_appears_while_verifying_stays(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_convert.verification import verify as verification

    real, file = verification.verify, tmp_path / "report.html"

    def verify(*args: object) -> object:
        file.write_bytes(PRECIOUS)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(verification, "verify", verify)
    assert report(out, file) == (5, "OUTPUT_EXISTS")
    assert file.read_bytes() == PRECIOUS


def test_a_report_that_cannot_be_written(out: Path, tmp_path: Path) -> None:
    assert report(out, tmp_path / ("n" * 300)) == (4, "OUTPUT_IO")
    assert report(out, tmp_path / "missing/report.html") == (2, "BAD_REPORT")
    assert names(tmp_path) == {"out"}
