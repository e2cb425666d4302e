"""Two runs into one folder where locks do nothing: one pauses before a call, the other does all it wants.

However they meet, the folder holds one whole model or none that loads, and a run that has lost the folder
changes nothing more in it and reports a conflict.
"""

from __future__ import annotations

import faulthandler
import fcntl
import signal
from itertools import product
from pathlib import Path

import pytest

from tests import invariant
from tests.invariant import STAGING, Case, Child, Ended, check, fresh_folder, pause_at, run, signal_at

NAMES = tuple(invariant.COMMANDS)
OTHER = ("--dtype", "fp32")
SECOND: dict[str, tuple[str, ...]] = {
    "same": (),
    "same, overwrites": ("--overwrite",),
    "other": OTHER,
    "other, overwrites": (*OTHER, "--overwrite"),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return invariant.make_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def others(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, invariant.Files]:
    """What the other plan writes."""
    out = tmp_path_factory.mktemp("others")
    for name in NAMES:
        if "shard" not in name:
            assert run(cases[name].command(out / name, *OTHER)).exit_code == 0
    return {folder.name: invariant.read(folder) for folder in out.iterdir()}


def without_locks() -> None:
    setattr(fcntl, "flock", lambda *_: None)  # noqa: B010
    faulthandler.cancel_dump_traceback_later()  # a paused run takes as long as the other


def begin(case: Case, out: Path, act: invariant.Act | None, *more: str) -> Child:
    return Child(case.command(out, *more), act, [out], without_locks)


def n_calls(case: Case, out: Path, *more: str) -> int:
    """How many calls that change the disk an unbroken run makes."""
    calls = begin(fresh(case, out), out, None, *more).ended().calls
    return sum(name in invariant.CHANGES for name, _ in calls)


def fresh(case: Case, out: Path) -> Case:
    fresh_folder(out)
    return case


def spread(total: int, count: int | None) -> list[int]:
    count = count or total
    return sorted({1 + (total - 1) * i // max(1, count - 1) for i in range(count)})


def judge(case: Case, out: Path, other: invariant.Files, ended: list[Ended]) -> None:
    """See that the folder and what the runs have reported agree; and that the next run makes it whole."""
    state = check(out, case, older=other, ended=ended)
    codes = [each.exit_code for each in ended]
    for each in ended:
        assert each.exit_code in (0, 5, -signal.SIGKILL), ended
        assert "Traceback" not in each.stderr, ended
    if 0 in codes:
        assert state != "none", ended
    elif -signal.SIGKILL not in codes:  # the second has taken the folder, and may not replace what is there
        assert "holds " in ended[1].stderr, ended
    last = run(case.command(out, "--overwrite"))
    assert last.exit_code == 0, (last, ended)
    assert check(out, case, older=other, ended=(last, ended)) == "new"
    assert not (out / STAGING).exists()


def meet(
    case: Case,
    out: Path,
    other: invariant.Files,
    number: int,
    second: invariant.Act | None,
    *more: str,
    first: tuple[str, ...] = (),
) -> None:
    """Pause a run before a call; let a second one run, or begin until it pauses; then let the first go on."""
    one = begin(case, out, pause_at(number), *first)
    if not one.is_paused():  # its threads have made fewer calls
        assert one.ended().exit_code == 0
        return
    two = begin(case, out, second, *more)
    two.is_paused()
    ended = [one.ended(), two.ended()]
    judge(case, out, other, ended)


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize(
    ("name", "count"), [(NAMES[1], 9), *(pytest.param(name, None, marks=pytest.mark.slow) for name in NAMES)]
)
def test_a_second_run_while_one_pauses(
    cases: dict[str, Case],
    others: dict[str, invariant.Files],
    tmp_path: Path,
    name: str,
    count: int | None,
    second: str,
) -> None:
    case, out = cases[name], tmp_path / "out"
    if name not in others and second.startswith("other"):
        pytest.skip("shard has no --dtype")
    for number in spread(n_calls(case, out), count):
        meet(fresh(case, out), out, others.get(name, {}), number, None, *SECOND[second])


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("count", [7, pytest.param(None, marks=pytest.mark.slow)])
def test_a_second_run_while_one_that_replaces_a_model_pauses(
    cases: dict[str, Case],
    others: dict[str, invariant.Files],
    tmp_path: Path,
    count: int | None,
    second: str,
) -> None:
    case, out, older = cases[NAMES[1]], tmp_path / "out", others[NAMES[1]]

    def put() -> Case:
        fresh_folder(out).mkdir()
        for name, content in older.items():
            (out / name).write_bytes(content)
        return case

    put()
    calls = begin(case, out, None, "--overwrite").ended().calls
    for number in spread(sum(name in invariant.CHANGES for name, _ in calls), count):
        meet(put(), out, older, number, None, *SECOND[second], first=("--overwrite",))


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize(("count", "kills"), [(5, 2), pytest.param(40, 12, marks=pytest.mark.slow)])
def test_a_second_run_that_is_killed(
    cases: dict[str, Case],
    others: dict[str, invariant.Files],
    tmp_path: Path,
    count: int,
    kills: int,
    second: str,
) -> None:
    case, out = cases[NAMES[1]], tmp_path / "out"
    total = n_calls(case, out)
    for number, kill in product(spread(total, count), spread(total, kills + 2)[1:-1]):
        act = signal_at(kill, signal.SIGKILL)
        meet(fresh(case, out), out, others[NAMES[1]], number, act, *SECOND[second])


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("count", [2, pytest.param(16, marks=pytest.mark.slow)])
def test_both_pause(
    cases: dict[str, Case],
    others: dict[str, invariant.Files],
    tmp_path: Path,
    count: int,
    second: str,
) -> None:
    """The first runs to its end while the second pauses: one of them always continues."""
    case, out = cases[NAMES[1]], tmp_path / "out"
    total = n_calls(case, out)
    early = range(1, 12)  # each makes its folder, and looks for others
    points = {*product(spread(total, count), repeat=2), *zip(early, early, strict=True)}
    for number, other in sorted(points):
        meet(fresh(case, out), out, others[NAMES[1]], number, pause_at(other), *SECOND[second])


TASKS: dict[str, tuple[str, ...]] = {
    "the same task": ("--array-task", "2/2"),
    "another task": ("--array-task", "1/2"),
    "one that finishes": ("--finish",),
    "one process": (),
    "another plan": (*OTHER, "--overwrite"),
    "a task of another plan": (*OTHER, "--array-task", "1/2"),
}


@pytest.mark.parametrize("second", TASKS)
@pytest.mark.parametrize("count", [6, pytest.param(None, marks=pytest.mark.slow)])
def test_a_second_run_while_an_array_task_pauses(
    cases: dict[str, Case],
    others: dict[str, invariant.Files],
    tmp_path: Path,
    count: int | None,
    second: str,
) -> None:
    """The last task, which also finishes the output."""
    case, out, task = cases[NAMES[1]], tmp_path / "out", ("--array-task", "2/2")

    def put() -> Case:
        assert run(fresh(case, out).command(out, "--array-task", "1/2")).exit_code == 0
        return case

    put()
    calls = begin(case, out, None, *task).ended().calls
    for number in spread(sum(name in invariant.CHANGES for name, _ in calls), count):
        one = begin(put(), out, pause_at(number), *task)
        if not one.is_paused():
            continue
        two = run(case.command(out, *TASKS[second]), setup=without_locks)
        ended = [one.ended(), two]
        check(out, case, older=others[NAMES[1]], ended=ended)
        for each in ended:
            assert each.exit_code in (0, 5) or "are not written yet" in each.stderr, ended
            assert "Traceback" not in each.stderr, ended
        last = run(case.command(out, "--overwrite"))
        assert last.exit_code == 0, (last, ended)
        assert check(out, case, older=others[NAMES[1]], ended=(last, ended)) == "new"
