"""Calls to the operating system that fail, one after the other; two runs at once; sources that change; links.

Whatever fails: a clean exit code, one message, no model or a whole one; a plain rerun makes it whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import invariant
from tests.invariant import (
    CHANGES,
    FAULTS,
    STAGING,
    Case,
    Ended,
    check,
    fail_at,
    fresh_folder,
    read,
    run,
    staged,
)
from tests.limits import HANG
from tests.peers import ROOT

NAMES = tuple(invariant.COMMANDS)
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EACCES")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return invariant.make_cases(tmp_path_factory.mktemp("cases"))


def clean(ended: Ended, out: Path, case: Case) -> None:
    """The run has ended as it should, and the folder is as it should be."""
    state = check(out, case, ended=ended)
    if ended.exit_code == 0:
        assert state == "new"
        return
    assert ended.exit_code in (3, 4), ended
    assert "Traceback" not in ended.stderr
    assert "internal error" not in ended.stderr
    assert ended.message.startswith("error: /"), ended.stderr


def rerun(case: Case, out: Path) -> None:
    ended = run(case.command(out))
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"
    assert not (out / STAGING).exists()


# The nth call fails.


def fail_everywhere(case: Case, out: Path, call: str, faults: list[int | str], step: int = 1) -> int:
    """Let each call of a name fail, with one of the faults in turn, until there are no more."""
    number = fired = 0
    while True:
        number += step
        fresh_folder(out)
        ended = run(case.command(out), fail_at(number, call, faults[fired % len(faults)]), [out])
        clean(ended, out, case)
        if sum(name == call for name, _ in ended.calls) < number:
            return fired
        fired += 1
        rerun(case, out)


@pytest.mark.parametrize("call", [*CHANGES, "preadv"])
def test_each_call_fails(cases: dict[str, Case], tmp_path: Path, call: str) -> None:
    """Each with one of the errors."""
    name = "convert --to meta" if call == "preadv" else "convert two ranks"
    often = {"open": 12, "unlink": 6, "preadv": 30, "pwrite": 9, "write": 9, "fsync": 7, "replace": 4}
    step = often.get(call, 1 if call == "rename" else 3)
    assert fail_everywhere(cases[name], tmp_path / "out", call, [FAULTS[name] for name in ERRORS], step)


@pytest.mark.parametrize("count", [10, pytest.param(None, marks=pytest.mark.slow)])
def test_each_call_of_an_array_task_fails(cases: dict[str, Case], tmp_path: Path, count: int | None) -> None:
    """The last task, which also finishes the output: running it once more is enough.

    A file of the other task that may not be on disk is discarded; then that task must write it again.
    """
    case, out, task = cases["convert two ranks"], tmp_path / "out", ("--array-task", "2/2")

    def others_have_ended() -> None:
        fresh_folder(out)
        assert run(case.command(out, "--array-task", "1/2")).exit_code == 0

    others_have_ended()
    calls = [name for name, _ in run(case.command(out, *task), roots=[out]).calls if name in CHANGES]
    for number in range(1, len(calls) + 1, len(calls) // count if count else 1):
        others_have_ended()
        name = calls[number - 1]
        fault = FAULTS[ERRORS[number % len(ERRORS)]]
        ended = run(case.command(out, *task), fail_at(calls[:number].count(name), name, fault), [out])
        clean(ended, out, case)
        ended = run(case.command(out, *task))
        assert ended.exit_code == 0, (number, ended)
        if check(out, case) != "new":
            assert name in ("open", "fsync"), (number, ended)
            assert run(case.command(out, "--array-task", "1/2")).exit_code == 0
        assert check(out, case) == "new"
        assert not (out / STAGING).exists()


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", [*CHANGES, "preadv"])
def test_each_call_fails_in_each_way(
    cases: dict[str, Case], tmp_path: Path, name: str, call: str, error: str
) -> None:
    assert fail_everywhere(cases[name], tmp_path / "out", call, [FAULTS[error]])


@pytest.mark.parametrize("fault", ["short", "nothing", FAULTS["EINTR"]])
@pytest.mark.parametrize(
    ("name", "call", "step"), [(NAMES[1], "pwrite", 5), (NAMES[1], "write", 8), (NAMES[4], "pwrite", 20)]
)
def test_unusual_writes(
    cases: dict[str, Case], tmp_path: Path, name: str, call: str, step: int, fault: int | str
) -> None:
    if (call, fault) == ("write", "nothing"):
        pytest.skip("a journal's write takes something or fails")
    assert fail_everywhere(cases[name], tmp_path / "out", call, [fault], step)


def test_a_short_write_is_continued(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["convert --to meta"], tmp_path / "out"

    def act(calls: Any, name: str, path: str, real: Any, args: Any, kwargs: Any) -> Any:
        if name in ("pwrite", "write"):
            return real(args[0], args[1][: max(1, len(args[1]) // 3)], *args[2:])
        return real(*args, **kwargs)

    ended = run(case.command(out), act, [out])
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"


@pytest.mark.parametrize("name", [pytest.param(NAMES[1], marks=pytest.mark.slow), NAMES[4]])
def test_a_file_that_was_not_brought_to_disk_is_thrown_away(
    cases: dict[str, Case], tmp_path: Path, name: str
) -> None:
    """And never asked for again: the kernel would say yes, and may have dropped the pages."""
    case, out = cases[name], tmp_path / "out"
    n_fsyncs = sum(name == "fsync" for name, _ in run(case.command(out), roots=[out]).calls)
    for number in range(1, n_fsyncs + 1):
        fresh_folder(out)
        ended = run(case.command(out), fail_at(number, "fsync", errno.EIO), [out])
        clean(ended, out, case)
        synced = [path for name, path in ended.calls if name == "fsync"]
        if len(synced) >= number and not Path(synced[number - 1]).is_dir():
            failed = synced[number - 1]
            assert failed not in synced[number:]
            assert not Path(failed).exists()
        rerun(case, out)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_cannot_be_read(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """EIO in the middle of the weights names the file and the byte."""
    case, out = cases[name], tmp_path / "out"
    for number in (1, 7, 15):
        fresh_folder(out)
        ended = run(case.command(out), fail_at(number, "preadv", errno.EIO), [case.source])
        clean(ended, out, case)
        assert ended.exit_code == 4
        assert "Cannot read at byte" in ended.message
        assert str(case.source) in ended.message
        assert check(out, case) == "none"
        rerun(case, out)


def test_a_source_that_may_not_be_read(cases: dict[str, Case], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    case = cases["convert two ranks"].moved(tmp_path / "llama2-mp2")
    (case.source / "consolidated.01.pth").chmod(0)
    ended = run(case.command(tmp_path / "out"))
    assert ended.exit_code == 3
    assert "consolidated.01.pth: permission denied" in ended.message


# Two at once.


def start(case: Case, out: Path, before: str = "") -> subprocess.Popen[str]:
    arguments = ["llama-convert", *case.command(out), "--quiet"]
    code = f"import sys; sys.argv = {arguments!r}\n{before}\nfrom llama_convert.cli import main; main()"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


SLOWLY = """
import os, time
real = os.pwrite
os.pwrite = lambda *args: (time.sleep(0.005), real(*args))[1]
"""


def race(case: Case, out: Path, before: str) -> list[tuple[int, str]]:
    runs = [start(case, out, before) for _ in range(2)]
    return [(process.wait(60), process.communicate()[1]) for process in runs]


def test_two_at_once(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["convert two ranks"]
    for number in range(10):
        out = tmp_path / str(number)
        ended = race(case, out, SLOWLY)
        codes = sorted(code for code, _ in ended)
        assert codes in ([0, 5], [0, 0]), ended  # both: the second came when all was done
        losers = [error for code, error in ended if code == 5]
        assert all("Being written by" in loser or "holds" in loser for loser in losers)
        assert check(out, case) == "new"
        assert not (out / STAGING).exists()


def test_the_holder_is_named(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["convert two ranks"], tmp_path / "out"
    holder = start(case, out, "import os, time\nos.posix_fallocate = lambda *_: time.sleep(60)")
    deadline = time.monotonic() + HANG
    while not (staged(out) / ".journal").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ended = run(case.command(out))
    assert ended.exit_code == 5
    assert f"Being written by process {holder.pid} on " in ended.message
    holder.kill()
    holder.communicate()
    rerun(case, out)


# Sources that change.


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def replace(file: Path) -> None:
    shutil.copy2(file, file.with_suffix(".copy"))
    os.replace(file.with_suffix(".copy"), file)


SOURCE_CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": lambda file: os.utime(file, (1, 1)),
    "truncated": truncate,
    "replaced": replace,
    "deleted": lambda file: file.unlink(),
}


def change_while_read(
    case: Case, folder: Path, change: Callable[[Path], object], pattern: str, number: int
) -> None:
    """Change the source before the nth write."""
    moved, out = case.moved(folder / case.source.name), folder / "out"

    def act(calls: Any, name: str, path: str, real: Any, args: Any, kwargs: Any) -> Any:
        if name == "pwrite" and calls.count(name) == number:
            change(sorted(moved.source.glob(pattern))[-1])
        return real(*args, **kwargs)

    ended = run(moved.command(out, "--json"), act, [moved.source, out])
    assert ended.exit_code == 3, ended
    assert json.loads(ended.stdout)["code"] == "INPUT_CHANGED"
    assert check(out, case, ended=ended) == "none"
    assert not out.exists()
    shutil.rmtree(moved.source)


@pytest.mark.parametrize("change", SOURCE_CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_changes(cases: dict[str, Case], tmp_path: Path, name: str, change: str) -> None:
    pattern = "*.pth" if cases[name].source.name.startswith("llama") else "*.safetensors"
    for number in (2, 20):
        change_while_read(cases[name], tmp_path, SOURCE_CHANGES[change], pattern, number)


# Modes and links.


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("name", NAMES)
def test_the_umask_decides_the_mode(cases: dict[str, Case], tmp_path: Path, name: str, mask: int) -> None:
    out = tmp_path / "out"
    assert run(cases[name].command(out), setup=lambda: os.umask(mask)).exit_code == 0
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~mask}
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("name", ["convert two ranks", "convert --to meta"])
def test_links_are_not_followed(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """In place of the staging folder, of each file in it, and of each file of the output."""
    case, out, remote_files = cases[name], tmp_path / "out", tmp_path / "elsewhere"
    remote_files.mkdir()
    (remote_files / "file").write_bytes(b"stays")
    out.mkdir()
    (out / STAGING).symlink_to(remote_files)
    ended = run(case.command(out))
    assert ended.exit_code == 5
    assert "or a link to one" in ended.message
    fresh_folder(out)
    (out / STAGING).mkdir(parents=True)
    for file in {*invariant.OURS, *case.whole} - {".lock"}:
        (out / STAGING / file).symlink_to(remote_files / "file")
    rerun_over_links = run(case.command(out))
    assert rerun_over_links.exit_code == 0, rerun_over_links.stderr
    assert check(out, case) == "new"
    fresh_folder(out).mkdir()
    for number, file in enumerate(case.whole):
        (out / file).symlink_to(remote_files / ("file" if number % 2 else "nothing"))
    ended = run(case.command(out, "--overwrite"))
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"
    assert not any(path.is_symlink() for path in out.iterdir())
    assert read(remote_files) == {"file": b"stays"}


@pytest.mark.parametrize("file", [".lock", ".journal", "config.json", "model-00001-of-00004.safetensors"])
def test_a_link_that_comes_later_is_not_followed(cases: dict[str, Case], tmp_path: Path, file: str) -> None:
    """In what a stopped run has left."""
    case, out, remote_files = cases["convert two ranks"], tmp_path / "out", tmp_path / "elsewhere"
    remote_files.write_bytes(b"stays")
    run(case.command(out), invariant.signal_at(2, signal.SIGKILL, ["replace"]), [out])
    place = (out / STAGING if file == ".lock" else staged(out)) / file
    place.unlink()
    place.symlink_to(remote_files)
    ended = run(case.command(out))
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"
    assert remote_files.read_bytes() == b"stays"


# Power cuts.


def check_order(calls: list[tuple[str, str]], out: Path, whole: invariant.Files) -> None:
    """Power may be cut after any call: what it makes visible was brought to disk before."""
    staging = next(path for name, path in calls if path.rpartition("/")[2].startswith("run-"))
    renames = [n for n, (name, path) in enumerate(calls) if name == "replace" and not path.endswith("probe")]
    syncs: dict[str, list[int]] = {}
    writes: dict[str, int] = {}
    for number, (name, path) in enumerate(calls):
        if name == "fsync":
            syncs.setdefault(path, []).append(number)
        elif name in ("pwrite", "write_bytes", "ftruncate", "io_open"):
            writes[path] = number
    assert len(renames) == len(whole)
    listed = syncs[f"{staging}/.finalizing-new"]
    for name in whole:
        synced = syncs[f"{staging}/{name}"][-1]
        assert writes.get(f"{staging}/{name}", -1) < synced < listed[0], name
    assert writes[f"{staging}/.finalizing-new"] < listed[0] < renames[0]
    for folder in (staging, f"{out}/{STAGING}", str(out)):
        assert any(listed[0] < number < renames[0] for number in syncs[folder]), folder
    names = [calls[number][1].rpartition("/")[2] for number in renames]
    first_setting = next(
        number
        for number, name in zip(renames, names, strict=True)
        if name in (*invariant.LOADERS, invariant.MANIFEST)
    )
    last_weight = max(
        number for number, name in zip(renames, names, strict=True) if name.endswith((".safetensors", ".pth"))
    )
    assert any(last_weight < number < first_setting for number in syncs[str(out)])
    assert syncs[str(out)][-1] > renames[-1]
    assert syncs[str(out.parent)][-1] > renames[-1]
    cleared = [
        n for n, (name, path) in enumerate(calls) if name == "unlink" and path == f"{staging}/.finalizing"
    ]
    assert cleared[-1] > syncs[str(out)][-1]


@pytest.mark.parametrize("name", NAMES)
def test_all_is_on_disk_before_it_is_reported(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    case, out = cases[name], tmp_path / "out"
    check_order(run(case.command(out), roots=[tmp_path]).calls, out, case.whole)


def test_everything_is_on_disk_before_a_resume_reports_it(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["convert two ranks"], tmp_path / "out"
    run(case.command(out), invariant.signal_at(5, signal.SIGKILL, ["replace"]), [out])
    calls = run(case.command(out), roots=[tmp_path]).calls
    undone = next(n for n, (name, path) in enumerate(calls) if name == "rename" and path.endswith("-new"))
    assert any(
        name == "replace" and path == f"{out}/{path.rpartition('/')[2]}" for name, path in calls[:undone]
    )
    check_order(calls[undone + 1 :], out, case.whole)
