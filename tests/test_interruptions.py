"""Runs that are killed, stopped and left without room at any moment; and what the next run makes of it.

A run that a signal meets before its nth call that changes anything on disk has done n - 1 of them, so all
moments that differ are a matter of counting."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tests import invariant
from tests.invariant import (
    CHANGES,
    STAGING,
    Case,
    Ended,
    check,
    fresh_folder,
    read,
    run,
    signal_at,
    staged,
)
from tests.peers import ROOT
from tests.schema import check_output

NAMES = tuple(invariant.COMMANDS)
KILL = signal.SIGKILL
FOUND_GOOD = "Resumed: reused "
GOES_ON = "Run the same command to resume."


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return invariant.make_cases(tmp_path_factory.mktemp("cases"))


def n_calls(case: Case, out: Path, *more: str, names: tuple[str, ...] = CHANGES) -> int:
    """How many of these calls an unbroken run makes."""
    ended = run(case.command(out, *more), roots=[out])
    assert ended.exit_code == 0, ended.stderr
    return sum(name in names for name, _ in ended.calls)


def journaled(out: Path) -> int:
    """How many weights the journal calls finished."""
    journal = staged(out) / ".journal"
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def go_on(case: Case, out: Path, *more: str, others: invariant.Files | None = None) -> Ended:
    """Run the same command again: the output is whole, and what was kept is told."""
    finished, was_whole = journaled(out), check(out, case, others=others) == "new"
    ended = run(case.command(out, *more))
    assert check(out, case, others=others, ended=ended) == "new", ended.stderr
    assert ended.exit_code == 0, ended.stderr
    assert (FOUND_GOOD in ended.stderr) == bool(finished) or was_whole, (finished, ended.stderr)
    assert not (out / STAGING).exists()
    return ended


def spread(total: int, count: int) -> list[int]:
    """So many of the numbers up to ``total``, evenly."""
    return sorted({1 + (total - 1) * i // max(1, count - 1) for i in range(count)})


# Kills.


def kill_everywhere(
    case: Case, out: Path, count: int | None, names: tuple[str, ...] = CHANGES, *, torn: bool = False
) -> int:
    """Kill a run before each of its calls, or before so many of them, and go on each time."""
    total = n_calls(case, out, names=names)
    for number in spread(total, count or total):
        fresh_folder(out)
        ended = run(case.command(out), signal_at(number, KILL, names, torn=torn), [out])
        assert ended.exit_code in (-KILL, 0), (number, ended)  # threads: it may be one call fewer
        check(out, case, ended=(number, ended))
        go_on(case, out)
    return total


@pytest.mark.parametrize("name", NAMES)
def test_killed(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    kill_everywhere(cases[name], tmp_path / "out", 7)


@pytest.mark.parametrize("name", NAMES)
def test_killed_in_the_middle_of_a_write(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    kill_everywhere(cases[name], tmp_path / "out", 3, ("write", "pwrite", "write_bytes"), torn=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_call(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    assert kill_everywhere(cases[name], tmp_path / "out", None) > 80


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_in_the_middle_of_every_write(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    kill_everywhere(cases[name], tmp_path / "out", None, ("write", "pwrite", "write_bytes"), torn=True)


@pytest.mark.parametrize("name", [NAMES[1], pytest.param(NAMES[4], marks=pytest.mark.slow)])
def test_killed_while_it_finalizes(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """At every rename; what had begun is undone, looked at, and done again."""
    assert kill_everywhere(cases[name], tmp_path / "out", None, ("replace",)) == len(cases[name].whole) + 1


@pytest.mark.parametrize("name", NAMES)
def test_killed_again_and_again(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """Each resume is killed before its fourth finished weight."""
    case, out, kills = cases[name], tmp_path / "out", 0
    while (ended := run(case.command(out), signal_at(5, KILL, ["write"]), [out])).exit_code == -KILL:
        check(out, case, ended=ended)
        kills += 1
    assert kills >= 4
    assert ended.exit_code == 0
    assert FOUND_GOOD in ended.stderr
    assert check(out, case) == "new"


def changes_of(calls: list[tuple[str, str]]) -> list[str]:
    """The names of the calls that change what is on disk."""
    return [name for name, _ in calls if name in CHANGES]


def clean_up_of(calls: list[tuple[str, str]]) -> range:
    """The numbers of a run's calls after the last file is in its place."""
    names = changes_of(calls)
    return range(len(names) - names[::-1].index("replace") + 1, len(names) + 1)


@pytest.mark.parametrize("name", [NAMES[1], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)])
def test_killed_in_its_last_clean_up(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """The output is complete: the same command says so, and another one is refused."""
    case, out = cases[name], tmp_path / "out"
    numbers = clean_up_of(run(case.command(out), roots=[out]).calls)
    assert len(numbers) > 5
    for number in numbers if name == NAMES[1] else numbers[::4]:
        fresh_folder(out)
        assert run(case.command(out), signal_at(number, KILL), [out]).exit_code == -KILL
        assert check(out, case) == "new"
        if name == NAMES[1]:
            assert run(case.command(out, "--dtype", "fp32")).exit_code == 5
            assert check(out, case) == "new"
        go_on(case, out)


@pytest.mark.parametrize("count", [12, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [NAMES[1], pytest.param(NAMES[2], marks=pytest.mark.slow)])
def test_an_array_task_is_killed(
    cases: dict[str, Case], tmp_path: Path, name: str, count: int | None
) -> None:
    """The last task, which also finishes the output: running it once more is enough."""
    case, out, task = cases[name], tmp_path / "out", ("--array-task", "2/2")

    def others_have_ended() -> None:
        fresh_folder(out)
        assert run(case.command(out, "--array-task", "1/2")).exit_code == 0

    others_have_ended()
    total = len(changes_of(run(case.command(out, *task), roots=[out]).calls))
    for number in spread(total, count or total):
        others_have_ended()
        ended = run(case.command(out, *task), signal_at(number, KILL), [out])
        assert ended.exit_code in (-KILL, 0), (number, ended)
        check(out, case, ended=(number, ended))
        ended = run(case.command(out, *task))
        assert ended.exit_code == 0, (number, ended)
        assert check(out, case, ended=(number, ended)) == "new"
        assert not (out / STAGING).exists()


def kill_at_random_times(case: Case, out: Path, rounds: int, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(rounds):
        fresh_folder(out)
        command = [sys.executable, "-m", "llama_convert", *case.command(out), "--quiet"]
        process = subprocess.Popen(command, cwd=ROOT)
        time.sleep(generator.uniform(0.1, 0.4))
        process.kill()
        process.wait()
        check(out, case)
        go_on(case, out)


@pytest.mark.parametrize("name", NAMES[1:2])
def test_killed_at_a_random_time(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    kill_at_random_times(cases[name], tmp_path / "out", 5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_many_random_times(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    kill_at_random_times(cases[name], tmp_path / "out", 60, seed=NAMES.index(name))


# Over an older model.

OVER = [("convert two ranks", "convert one rank"), ("shard --mp", "convert --to meta")]
NOTES = {"notes.txt": b"mine"}


def put(out: Path, files: invariant.Files) -> None:
    fresh_folder(out).mkdir()
    for name, content in files.items():
        (out / name).write_bytes(content)


def kill_over_an_older_model(case: Case, older: Case, out: Path, names: tuple[str, ...]) -> set[str]:
    put(out, older.whole | NOTES)
    states = set()
    for number in range(1, n_calls(case, out, "--overwrite", names=names) + 1):
        put(out, older.whole | NOTES)
        ended = run(case.command(out, "--overwrite"), signal_at(number, KILL, names), [out])
        states.add(check(out, case, others=NOTES, older=older.whole, ended=(number, ended)))
        ended = run(case.command(out, "--overwrite"))
        assert ended.exit_code == 0, ended.stderr
        assert check(out, case, others=NOTES, ended=ended) == "new"
        assert not (out / STAGING).exists()
    return states


@pytest.mark.parametrize(("new", "old"), [pytest.param(*OVER[0], marks=pytest.mark.slow), OVER[1]])
def test_killed_while_it_replaces_a_model(cases: dict[str, Case], tmp_path: Path, new: str, old: str) -> None:
    states = kill_over_an_older_model(cases[new], cases[old], tmp_path / "out", ("replace", "unlink"))
    assert states == {"old", "none", "new"}


@pytest.mark.slow
@pytest.mark.parametrize(("new", "old"), [*OVER, *((old, new) for new, old in OVER)])
def test_killed_at_every_call_over_a_model(
    cases: dict[str, Case], tmp_path: Path, new: str, old: str
) -> None:
    kill_over_an_older_model(cases[new], cases[old], tmp_path / "out", CHANGES)


# Signals that can be answered.

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def stopped(case: Case, out: Path, number: int, what: signal.Signals, *, often: bool = False) -> Ended:
    """Send a signal before a call, and then, if often, before all others too."""

    def act(calls: Any, name: str, path: str, real: Any, args: Any, kwargs: Any) -> Any:
        count = calls.count(*CHANGES)
        if name in CHANGES and (count == number or (often and count > number)):
            os.kill(os.getpid(), what)
        return real(*args, **kwargs)

    ended = run(case.command(out, "--json"), act, [out])
    state = check(out, case, ended=(number, ended))
    if ended.exit_code == 0:
        assert state == "new"
        return ended
    assert ended.exit_code == 128 + what, (number, ended)
    assert "Traceback" not in ended.stderr
    assert ended.message.startswith("Interrupted. "), ended.stderr
    report = json.loads(ended.stdout)
    check_output(report)
    assert report["code"] == "INTERRUPTED"
    assert report["resumable"] == (GOES_ON in ended.message or ended.message.endswith("is complete."))
    if journaled(out):
        assert ended.message.startswith("Interrupted. Saved ")
    if state == "none" and not report["resumable"]:
        assert ended.message.endswith("Nothing to resume."), (number, ended.stderr)
        assert not journaled(out)
    return ended


@pytest.mark.parametrize("what", SIGNALS)
@pytest.mark.parametrize("name", [NAMES[1], NAMES[4]])
def test_interrupted(cases: dict[str, Case], tmp_path: Path, name: str, what: signal.Signals) -> None:
    case, out = cases[name], tmp_path / "out"
    for number in spread(n_calls(case, out), 6):
        fresh_folder(out)
        stopped(case, out, number, what)
        go_on(case, out)


@pytest.mark.slow
@pytest.mark.parametrize("what", SIGNALS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("often", [False, True], ids=["once", "often"])
def test_interrupted_at_every_call(
    cases: dict[str, Case], tmp_path: Path, name: str, what: signal.Signals, often: bool
) -> None:
    case, out = cases[name], tmp_path / "out"
    for number in range(1, n_calls(case, out) + 1):
        fresh_folder(out)
        stopped(case, out, number, what, often=often)
        go_on(case, out)


@pytest.mark.parametrize("what", SIGNALS)
def test_interrupted_again_and_again(cases: dict[str, Case], tmp_path: Path, what: signal.Signals) -> None:
    """Whoever presses Ctrl-C twice does no harm."""
    case, out = cases["convert two ranks"], tmp_path / "out"
    for number in spread(n_calls(case, out), 5):
        fresh_folder(out)
        stopped(case, out, number, what, often=True)
        go_on(case, out)


def test_nothing_is_left_of_a_run_that_had_finished_nothing(cases: dict[str, Case], tmp_path: Path) -> None:
    ended = stopped(cases["convert two ranks"], tmp_path / "out", 25, signal.SIGINT)
    assert ended.exit_code == 130
    assert not (tmp_path / "out").exists()


def test_documented_ignored_keys_are_ignored(cases: dict[str, Case], tmp_path: Path) -> None:
    """As nohup does with SIGHUP."""
    case, out = cases["convert two ranks"], tmp_path / "out"

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    ended = run(case.command(out), signal_at(40, signal.SIGHUP), [out], nohup)
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"


# What another plan has left.


def stop_halfway(case: Case, out: Path) -> int:
    """Leave a staging folder with some finished weights; says how many."""
    ended = run(case.command(out), signal_at(13, KILL, ["write"]), [out])
    assert ended.exit_code == -KILL
    return journaled(out)


def stop_before_publishing(case: Case, out: Path) -> int:
    """Leave a staging folder with everything in it, and the list of what is to be renamed."""
    assert run(case.command(out), signal_at(2, KILL, ["replace"]), [out]).exit_code == -KILL
    assert (staged(out) / ".finalizing").exists()
    return journaled(out)


STOPS = [stop_halfway, stop_before_publishing]


def touch(case: Case) -> None:
    os.utime(case.source / "consolidated.01.pth", (1, 1))


def replace_by_a_copy(case: Case) -> None:
    file = case.source / "consolidated.00.pth"
    copy = shutil.copy2(file, file.with_suffix(".copy"))
    os.replace(copy, file)


def say_it_otherwise(case: Case) -> None:
    file = case.source / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))


OTHERS: dict[str, Callable[[Case], object] | list[str]] = {
    "dtype": ["--dtype", "fp16"],
    "file size": ["--max-shard-size", "50KB"],
    "no resume": ["--no-resume"],
    "instruct": ["--instruct"],
    "touched": touch,
    "replaced": replace_by_a_copy,
    "params": say_it_otherwise,
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("other", OTHERS)
def test_another_plan_starts_over(
    cases: dict[str, Case], tmp_path: Path, other: str, stop: Callable[[Case, Path], int]
) -> None:
    case, out = cases["convert two ranks"].moved(tmp_path / "llama2-mp2"), tmp_path / "out"
    n_weights = stop(case, out)
    change = OTHERS[other]
    more = change if isinstance(change, list) else []
    if callable(change):
        change(case)
    assert run(case.command(tmp_path / "unbroken", *more)).exit_code == 0
    ended = run(case.command(out, *more))
    assert ended.exit_code == 0, ended.stderr
    assert f"Discarded {n_weights} weights of the previous run" in ended.stderr
    assert FOUND_GOOD not in ended.stderr
    assert read(out) == read(tmp_path / "unbroken")
    assert not (out / STAGING).exists()


def test_another_source_starts_over(cases: dict[str, Case], tmp_path: Path) -> None:
    n_weights = stop_halfway(cases["convert one rank"], tmp_path / "out")
    ended = run(cases["convert two ranks"].command(tmp_path / "out"))
    assert f"Discarded {n_weights} weights of the previous run" in ended.stderr
    assert check(tmp_path / "out", cases["convert two ranks"]) == "new"


def test_number_of_workers_and_block_size_are_no_other_plan(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["convert two ranks"]
    stop_halfway(case, tmp_path / "out")
    ended = run(case.command(tmp_path / "out", "--workers", "1", "--block-size", "1KB", "--strict"))
    assert FOUND_GOOD in ended.stderr
    assert check(tmp_path / "out", case) == "new"


def test_a_finalized_but_unreported_model_is_kept(cases: dict[str, Case], tmp_path: Path) -> None:
    """Killed as the staging folder is cleared, with everything published."""
    case, out = cases["convert two ranks"], tmp_path / "out"
    calls = run(case.command(out), roots=[out]).calls
    first = [name for name, _ in calls if name == "unlink"]
    fresh_folder(out)
    ended = run(case.command(out), signal_at(len(first) - 2, KILL, ["unlink"]), [out])
    assert ended.exit_code == -KILL
    assert check(out, case) == "new"
    assert (staged(out) / ".finalizing").exists()
    ended = run(case.command(out, "--dtype", "fp16"))
    assert ended.exit_code == 5, ended.stderr
    assert check(out, case) == "new"
    ended = run(case.command(out))
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"
    assert not (out / STAGING).exists()


# What has been damaged since.


def weights_in(out: Path) -> list[Path]:
    return sorted([*staged(out).glob("*.safetensors"), *staged(out).glob("*.pth")])


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def edit_journal(out: Path, change: Callable[[list[bytes]], object]) -> None:
    journal = staged(out) / ".journal"
    lines = journal.read_bytes().splitlines()
    change(lines)
    journal.write_bytes(b"\n".join(lines) + b"\n")


def believable(line: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A line of the journal that says something else, with the digest that belongs to it."""
    content = json.loads(line.split(b" ", 1)[1])
    change(content)
    text = json.dumps(content, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text


def as_link(file: Path) -> None:
    remote_files = file.parents[3] / "elsewhere"
    os.replace(file, remote_files)
    file.symlink_to(remote_files)


def as_folder(file: Path) -> None:
    file.unlink()
    (file / "deep").mkdir(parents=True)


def as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def change_a_digest(lines: list[bytes]) -> None:
    lines[2] = believable(lines[2], lambda entry: entry.update(hashes=["0" * 32] * len(entry["hashes"])))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first byte": lambda out: flip(weights_in(out)[0], 0),
    "middle": lambda out: flip(weights_in(out)[0], weights_in(out)[0].stat().st_size // 2),
    "last byte": lambda out: flip(weights_in(out)[-1], -1),
    "truncated": lambda out: os.truncate(weights_in(out)[0], 1000),
    "emptied": lambda out: os.truncate(weights_in(out)[0], 0),
    "longer": lambda out: os.truncate(weights_in(out)[0], 1_000_000),
    "deleted": lambda out: weights_in(out)[0].unlink(),
    "a weight's file a link": lambda out: as_link(weights_in(out)[0]),
    "a weight's file a folder": lambda out: as_folder(weights_in(out)[0]),
    "settings flipped": lambda out: flip(next(staged(out).glob("*s.json")), 5),
    "settings deleted": lambda out: next(staged(out).glob("*s.json")).unlink(),
    "stranger": lambda out: (staged(out) / "LICENSE").write_text("not ours"),
    "journal torn": lambda out: os.truncate(
        staged(out) / ".journal", (staged(out) / ".journal").stat().st_size - 9
    ),
    "journal without its end": lambda out: os.truncate(
        staged(out) / ".journal", (staged(out) / ".journal").stat().st_size - 1
    ),
    "journal with garbage": lambda out: edit_journal(out, lambda lines: lines.insert(2, b"\xff\0{]")),
    "journal with another's line": lambda out: edit_journal(out, lambda lines: lines.insert(2, b'{"a": 1}')),
    "journal with a wrong digest": lambda out: edit_journal(out, change_a_digest),
    "journal flipped": lambda out: flip(staged(out) / ".journal", 400),
    "journal beheaded": lambda out: edit_journal(out, lambda lines: lines.pop(0)),
    "journal emptied": lambda out: os.truncate(staged(out) / ".journal", 0),
    "journal deleted": lambda out: (staged(out) / ".journal").unlink(),
    "journal a pipe": lambda out: as_pipe(staged(out) / ".journal"),
    "journal a folder": lambda out: as_folder(staged(out) / ".journal"),
    "list garbled": lambda out: (staged(out) / ".finalizing").write_bytes(b"\xff"),
    "list of other places": lambda out: (staged(out) / ".finalizing").write_text(
        json.dumps({"plan": "", "files": ["../elsewhere"], "older": ["../elsewhere"]})
    ),
}


def damage_and_go_on(case: Case, out: Path, damage: str, stop: Callable[[Case, Path], int]) -> None:
    stop(case, out)
    remote_files = out.parent / "elsewhere"
    remote_files.write_bytes(b"stays")
    with contextlib.suppress(StopIteration):  # there are no settings yet
        DAMAGES[damage](out)
    before = remote_files.read_bytes()
    ended = run(case.command(out))
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case, ended=ended) == "new"
    assert not (out / STAGING).exists()
    assert remote_files.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stop", STOPS)
def test_damaged_since(
    cases: dict[str, Case], tmp_path: Path, damage: str, stop: Callable[[Case, Path], int]
) -> None:
    damage_and_go_on(cases["convert two ranks"], tmp_path / "out", damage, stop)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "convert two ranks"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("stop", STOPS)
def test_damaged_since_of_all(
    cases: dict[str, Case], tmp_path: Path, name: str, damage: str, stop: Callable[[Case, Path], int]
) -> None:
    damage_and_go_on(cases[name], tmp_path / "out", damage, stop)


def test_a_removed_file_of_a_half_finalized_output(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["convert two ranks"], tmp_path / "out"
    assert run(case.command(out), signal_at(6, KILL, ["replace"]), [out]).exit_code == -KILL
    published = [path for path in out.iterdir() if path.is_file()]
    assert len(published) == 4
    weights = [path for path in published if path.suffix == ".safetensors"]
    weights[0].unlink()
    flip(weights[1], 3000)
    ended = run(case.command(out))
    assert ended.exit_code == 0, ended.stderr
    assert FOUND_GOOD in ended.stderr
    assert check(out, case) == "new"


@pytest.mark.parametrize("name", ["convert two ranks", "shard --mp"])
def test_only_what_is_damaged_is_done_again(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    case, out = cases[name], tmp_path / "out"
    stop_before_publishing(case, out)
    for position in range(20_000, 30_000, 500):
        flip(weights_in(out)[0], position)
    ended = go_on(case, out)
    kept, total = next(line for line in ended.stderr.splitlines() if FOUND_GOOD in line).split(" of ")
    assert 0.5 < float(kept.split()[-1]) / float(total.split()[0]) < 1


# Room.


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def make_room(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=80m", disk], check=True)


def no_room(case: Case, out: Path, ended: Ended) -> None:
    """It says so in numbers, and has published nothing."""
    assert ended.exit_code == 4, ended
    assert " free" in ended.message or "No space left" in ended.message, ended.stderr
    assert check(out, case, ended=ended) == "none"
    assert not [name for name in read(out) if not name.startswith(STAGING)]


POINTS = 20


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_too_small(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """From a page to just less than needed; more room, and the same command makes it."""
    case = cases[name]
    needed = sum(map(len, case.whole.values()))
    sizes = [4096 * (1 + needed * i // 4096 // POINTS) for i in range(POINTS)]
    for size in sizes if name == "convert two ranks" else sizes[::5]:
        with small_disk(tmp_path / "disk", size) as disk:
            ended = run(case.command(disk / "out", "--json"))
            no_room(case, disk / "out", ended)
            make_room(disk)
            go_on(case, disk / "out")


def fill(disk: Path) -> None:
    descriptor, size = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT), 0
    for step in (1 << 20, 1 << 12):
        with contextlib.suppress(OSError):
            while True:
                os.posix_fallocate(descriptor, size, step)
                size += step
    os.close(descriptor)


@pytest.mark.parametrize("reserves", [True, False])
@pytest.mark.parametrize("name", ["convert two ranks", "convert --to meta"])
def test_a_disk_that_others_fill(cases: dict[str, Case], tmp_path: Path, name: str, reserves: bool) -> None:
    """At 20 points of the run; the file system may have no way to reserve space."""
    case = cases[name]
    with small_disk(tmp_path / "disk", 80 << 20) as disk:
        out = disk / "out"
        kept = 0
        for number in spread(n_calls(case, out), POINTS):
            fresh_folder(out)

            def act(
                calls: Any, name: str, path: str, real: Any, args: Any, kwargs: Any, n: int = number
            ) -> Any:
                if name in CHANGES and calls.count(*CHANGES) == n:
                    fill(disk)
                if name == "posix_fallocate" and not reserves:
                    raise OSError(95, "Operation not supported")
                return real(*args, **kwargs)

            ended = run(case.command(out, "--json"), act, [out])
            if ended.exit_code:
                no_room(case, out, ended)
                kept += journaled(out) > 0
                assert json.loads(ended.stdout)["resumable"] == (journaled(out) > 0)
            (disk / "filler").unlink(missing_ok=True)
            if not ended.exit_code:
                fresh_folder(out)
            go_on(case, out)
        assert kept > 2


@pytest.mark.parametrize("limit", [2000, 20_000, 50_000, 90_000])
def test_a_limit_on_file_sizes(cases: dict[str, Case], tmp_path: Path, limit: int) -> None:
    import resource

    case, out = cases["convert two ranks"], tmp_path / "out"

    def setup() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    # what the run says goes to files of this process, which the limit is of as well
    ended = run([*case.command(out), "--quiet"], setup=setup)
    assert ended.exit_code == 4, ended
    assert check(out, case) == "none"
    go_on(case, out)
