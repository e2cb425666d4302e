"""The work spread over processes, by array tasks, any executor, a Dask cluster: always the same bytes."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_convert import ConvertOptions, convert, shard
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.meta_folder import find_meta_folder
from llama_convert.checkpoints.row_reader import rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import matrix_shape
from llama_convert.errors import InputError, OutputError, RefusedError, UsageError
from tests import synthetic
from tests.limits import HANG
from tests.peers import ROOT
from tests.run import llama_convert
from tests.synthetic import LLAMA2, LLAMA3

SHAPE = LLAMA2.but(ranks=2)
Files = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """A command, and what one process alone writes."""

    source: Path
    command: Callable[..., Any]
    arguments: dict[str, Any]
    line: tuple[str, ...]
    whole: Files

    def run(self, out: Path, options: ConvertOptions | None = None, **more: Any) -> Any:
        options = replace(self.arguments.get("options", ConvertOptions()), **vars(options) if options else {})
        return self.command(self.source, out, **{**self.arguments, "options": options}, **more)

    def share(self, out: Path, share: str, **changes: Any) -> Any:
        options = replace(self.arguments.get("options", ConvertOptions()), array_task=share, **changes)
        return self.command(self.source, out, **{**self.arguments, "options": options})


def read(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("units")
    synthetic.make(folder / "meta", SHAPE)
    synthetic.make(folder / "repeated", LLAMA3.but(n_kv_heads=2, ranks=2))
    convert(folder / "meta", folder / "hf", ConvertOptions(max_shard_size="20KB"))
    convert(folder / "repeated", folder / "hf3")
    small = ConvertOptions(max_shard_size="20KB")
    fp16 = replace(small, dtype="fp16")
    back = ConvertOptions(to="meta", mp=4)
    commands: dict[str, tuple[str, Callable[..., Any], dict[str, Any], tuple[str, ...]]] = {
        "convert": ("meta", convert, {"options": small}, ("convert", "--max-shard-size", "20KB")),
        "cast": (
            "meta",
            convert,
            {"options": fp16},
            ("convert", "--max-shard-size", "20KB", "--dtype", "fp16"),
        ),
        "back": ("hf3", convert, {"options": back}, ("convert", "--to", "meta", "--mp", "4")),
        "ranks": ("meta", shard, {"mp": 4}, ("shard", "--mp", "4")),
        "files": ("hf", shard, {"max_shard_size": "30KB"}, ("shard", "--max-shard-size", "30KB")),
    }
    cases = {}
    for name, (source, command, arguments, line) in commands.items():
        command(folder / source, folder / name, **arguments)
        cases[name] = Case(folder / source, command, arguments, line, read(folder / name))
    return cases


each_case = pytest.mark.parametrize("name", ["convert", "cast", "back", "ranks", "files"])


@each_case
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_shares_in_any_order(
    cases: dict[str, Case], tmp_path: Path, name: str, order: tuple[int, ...]
) -> None:
    case, out = cases[name], tmp_path / "out"
    for place, number in enumerate(order):
        result = case.share(out, f"{number}/3")
        assert result.finalized == (place == 2)
        assert (out / "llama-convert.json").exists() == (place == 2)
    assert read(out) == case.whole


def test_more_shares_than_files(cases: dict[str, Case], tmp_path: Path) -> None:
    """A share can be empty; the one that comes last publishes all the same."""
    case, out = cases["ranks"], tmp_path / "out"
    published = [case.share(out, f"{number}/9").finalized for number in range(1, 10)]
    assert published[:4] == [False, False, False, True]
    assert all(published[4:])
    assert read(out) == case.whole


def test_a_share_twice(cases: dict[str, Case], tmp_path: Path) -> None:
    """What is done is not done again."""
    case, out = cases["convert"], tmp_path / "out"
    case.share(out, "1/2")
    before = {
        file.name: file.stat().st_mtime_ns for file in (out / ".llama-convert").rglob("model*.safetensors")
    }
    case.share(out, "1/2")
    after = {
        file.name: file.stat().st_mtime_ns for file in (out / ".llama-convert").rglob("model*.safetensors")
    }
    assert before == after
    assert case.share(out, "2/2").finalized
    assert read(out) == case.whole


def test_finish(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["convert"], tmp_path / "out"
    case.share(out, "1/2")
    with pytest.raises(OutputError, match="are not written yet") as missing:
        case.run(out, replace(case.arguments["options"], finish=True))
    assert missing.value.code == "ARRAY_TASKS_MISSING"
    case.share(out, "2/2")
    assert case.run(out, replace(case.arguments["options"], finish=True)).finalized
    assert read(out) == case.whole


def test_one_process_resumes_from_array_tasks(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["convert"], tmp_path / "out"
    case.share(out, "1/2")
    run = llama_convert(case.line[0], case.source, out, *case.line[1:])
    assert "Resumed: reused " in run.stderr
    assert read(out) == case.whole


def test_a_damaged_unit_is_written_again(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["convert"], tmp_path / "out"
    case.share(out, "1/2")
    file = next((out / ".llama-convert").rglob("model*.safetensors"))
    file.write_bytes(bytes(file.stat().st_size))
    case.share(out, "1/2")
    case.share(out, "2/2")
    assert read(out) == case.whole


@pytest.mark.parametrize("where", ["weight", "header", "end"])
@each_case
def test_a_bit_that_flips_after_its_task(
    cases: dict[str, Case], tmp_path: Path, name: str, where: str
) -> None:
    """Size and time are as they were; the finishing run names the file, and its task's rerun mends it."""
    case, out = cases[name], tmp_path / "out"
    case.share(out, "1/2")
    staged = (out / ".llama-convert/shared").iterdir()
    files = sorted(path for path in staged if not path.name.startswith("."))
    file = next(path for path in files if path.suffix in (".safetensors", ".pth"))
    flip(file, {"weight": file.stat().st_size // 2, "header": 20, "end": file.stat().st_size - 20}[where])
    for attempt in range(2):
        with pytest.raises(OutputError, match=file.name) as damaged:
            case.share(out, "2/2") if not attempt else case.run(out, finishing(case))
        assert damaged.value.code == ("ARRAY_TASKS_MISSING" if attempt else "OUTPUT_CHECKSUM")
        assert read_if_any(out) == {}
    assert case.share(out, "1/2").finalized
    assert read(out) == case.whole


def finishing(case: Case) -> ConvertOptions:
    return replace(case.arguments.get("options", ConvertOptions()), finish=True)


def flip(file: Path, position: int) -> None:
    """Change a bit, and leave size and time as they were."""
    status, content = file.stat(), bytearray(file.read_bytes())
    content[position] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_bit_that_flips_under_an_executor(cases: dict[str, Case], tmp_path: Path) -> None:
    """As a worker's machine may lose it; the same command mends it."""

    class Rotting(ThreadPoolExecutor):
        def submit(self, function: Any, order: Any, file: str) -> Any:  # type: ignore[override]
            def rot() -> Any:
                result = function(order, file)
                path = order.staging / file
                flip(path, path.stat().st_size - 20)
                return result

            return super().submit(rot)

    case, out = cases["convert"], tmp_path / "out"
    with Rotting(2) as executor, pytest.raises(OutputError) as damaged:
        case.run(out, executor=executor)
    assert damaged.value.code == "OUTPUT_CHECKSUM"
    with ThreadPoolExecutor(2) as executor:
        for _ in case.whole:  # each run finds one of them
            with contextlib.suppress(OutputError):
                case.run(out, executor=executor)
    assert read(out) == case.whole


def test_one_process_resumes_a_task_that_was_killed(cases: dict[str, Case], tmp_path: Path) -> None:
    """Also what is written of a file that is not complete."""
    case, out = cases["convert"], tmp_path / "out"
    case.share(out, "1/2")
    journal = next((out / ".llama-convert").rglob(".journal.*"))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))
    run = llama_convert(case.line[0], case.source, out, *case.line[1:])
    assert "Resumed: reused " in run.stderr
    assert read(out) == case.whole


def test_another_plan_starts_over(cases: dict[str, Case], tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases["cast"].share(out, "1/2")
    cases["convert"].share(out, "1/2")
    assert cases["convert"].share(out, "2/2").finalized
    assert read(out) == cases["convert"].whole


def test_a_source_that_changes_starts_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    synthetic.make(tmp_path / "meta", SHAPE)
    small = ConvertOptions(max_shard_size="20KB")
    convert(tmp_path / "meta", out, replace(small, array_task="1/2"))
    synthetic.make(tmp_path / "meta", SHAPE, seed=1)
    assert not convert(tmp_path / "meta", out, replace(small, array_task="2/2")).finalized
    assert convert(tmp_path / "meta", out, replace(small, array_task="1/2")).finalized
    convert(tmp_path / "meta", tmp_path / "whole", small)
    assert read(out) == read(tmp_path / "whole")


def test_warnings_are_printed_once_and_strict_counts(tmp_path: Path) -> None:
    """Of a weight that several ranks hold parts of, as one process tells them."""
    state = synthetic.weights(SHAPE)
    state["layers.0.feed_forward.w2.weight"][3, -1] = float("nan")
    state["layers.1.attention.wq.weight"][-1, 2] = float("inf")
    state["norm.weight"][:] = 0
    synthetic.write(tmp_path / "meta", SHAPE, synthetic.cut(SHAPE, state))
    alone = shard(tmp_path / "meta", tmp_path / "alone", mp=4)
    options = [ConvertOptions(array_task=f"{number}/4") for number in (1, 2, 3, 4)]
    spread = [shard(tmp_path / "meta", tmp_path / "out", mp=4, options=share) for share in options]
    assert spread[-1].warnings == alone.warnings
    assert read(tmp_path / "out") == read(tmp_path / "alone")
    for share in options[:-1]:
        shard(tmp_path / "meta", tmp_path / "strict", mp=4, options=replace(share, strict=True))
    with pytest.raises(RefusedError):
        shard(tmp_path / "meta", tmp_path / "strict", mp=4, options=replace(options[-1], strict=True))


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_no_share(cases: dict[str, Case], tmp_path: Path, text: str) -> None:
    if text:
        with pytest.raises(UsageError, match="Invalid task"):
            cases["convert"].share(tmp_path / "out", text)


# Processes.


def start(case: Case, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "llama_convert",
        case.line[0],
        str(case.source),
        str(out),
        *case.line[1:],
    ]
    return subprocess.Popen([*command, *more], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait(process: subprocess.Popen[str]) -> int:
    _, output = process.communicate(timeout=HANG)
    assert "Traceback" not in output, output
    return process.returncode


@pytest.mark.parametrize("name", ["convert", pytest.param("ranks", marks=pytest.mark.slow)])
def test_at_the_same_time(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    case, out = cases[name], tmp_path / "out"
    processes = [start(case, out, "--array-task", f"{number}/4") for number in range(1, 5)]
    assert [wait(process) for process in processes] == [0] * 4
    assert read(out) == case.whole


@pytest.mark.parametrize("rounds", [1, pytest.param(15, marks=pytest.mark.slow)])
def test_some_are_killed(cases: dict[str, Case], tmp_path: Path, rounds: int) -> None:
    """And run again, until one publishes."""
    case, chance = cases["convert"], random.Random(rounds)
    for attempt in range(rounds):
        out = tmp_path / str(attempt)
        processes = [start(case, out, "--array-task", f"{number}/4") for number in range(1, 5)]
        for process in processes[:3]:
            time.sleep(chance.uniform(0.02, 0.15))
            process.kill()
        for process in processes:
            process.wait()
            assert process.stderr
            process.stderr.close()
        assert read_if_any(out) in ({}, case.whole)
        for number in (2, 1, 3, 4):
            assert wait(start(case, out, "--array-task", f"{number}/4")) == 0
        assert read(out) == case.whole


def read_if_any(out: Path) -> Files:
    """What stands there besides the staging folder."""
    return {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} if out.exists() else {}


# Executors.


@each_case
def test_threads(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    with ThreadPoolExecutor(3) as executor:
        assert cases[name].run(tmp_path / "out", executor=executor).finalized
    assert read(tmp_path / "out") == cases[name].whole


def test_processes(cases: dict[str, Case], tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        cases["convert"].run(tmp_path / "out", executor=executor)
        cases["back"].run(tmp_path / "back", executor=executor)
        assert read(tmp_path / "out") == cases["convert"].whole
        assert read(tmp_path / "back") == cases["back"].whole
        damaged = tmp_path / "meta"
        synthetic.make(damaged, SHAPE)
        file = damaged / "consolidated.01.pth"
        content = bytearray(file.read_bytes())
        weight = synthetic.read(damaged)[1]["layers.0.attention.wo.weight"]
        content[content.index(weight.view(torch.uint8).numpy().tobytes()) + 5] ^= 1
        file.write_bytes(content)
        with pytest.raises(InputError) as refused:
            convert(damaged, tmp_path / "no", ConvertOptions(max_shard_size="20KB"), executor=executor)
        assert refused.value.code == "INPUT_CRC"
        assert refused.value.file == file
        assert not (tmp_path / "no").exists()


def test_a_driver_that_was_interrupted(cases: dict[str, Case], tmp_path: Path) -> None:
    """The next one has only the rest done."""

    class Stubborn(ThreadPoolExecutor):
        done = 0

        def submit(self, function: Any, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
            def counted() -> Any:
                if self.done == 2:
                    raise KeyboardInterrupt
                self.done += 1
                return function(*arguments, **named)

            return super().submit(counted)

    case, out = cases["convert"], tmp_path / "out"
    with Stubborn(1) as executor, pytest.raises(KeyboardInterrupt):
        case.run(out, executor=executor)
    assert read_if_any(out) == {}
    before = {file.name: file.stat().st_ino for file in (out / ".llama-convert").rglob("model*.safetensors")}
    assert len(before) == 2
    with ThreadPoolExecutor(1) as executor:
        case.run(out, executor=executor)
    assert {name: (out / name).stat().st_ino for name in before} == before
    assert read(out) == case.whole


def test_errors_travel() -> None:
    error = InputError("TENSOR_SHAPE", "is odd", file="a.pth", tensor="x", hint="look", expected=1, found=2)
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error)
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)


# Dask.


def test_dask(cases: dict[str, Case], tmp_path: Path) -> None:
    """Two worker processes; a third is killed at once, and what it had is done by others."""
    distributed = pytest.importorskip("distributed")
    case, out = cases["convert"], tmp_path / "out"
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        victim = next(iter(cluster.workers.values()))
        process = start(case, out, "--scheduler", cluster.scheduler_address)
        time.sleep(0.5)
        os.kill(victim.pid, 9)
        assert wait(process) == 0
        assert read(out) == case.whole
        process = start(cases["ranks"], tmp_path / "ranks", "--scheduler", cluster.scheduler_address)
        assert wait(process) == 0
    assert read(tmp_path / "ranks") == cases["ranks"].whole


def test_no_scheduler(cases: dict[str, Case], tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    case = cases["convert"]
    arguments = (case.line[0], case.source, tmp_path / "out", "--scheduler", "nonsense://x", "--json")
    run = llama_convert(*arguments)
    assert run.exit_code == 4
    assert run.json["code"] == "SCHEDULER_UNREACHABLE"


# Parts of weights.


@given(data=st.data())
def test_a_part_is_what_it_is_of_the_whole(data: st.DataObject, cases: dict[str, Case]) -> None:
    checkpoint = open_meta(find_meta_folder(cases["ranks"].source))
    weight = data.draw(st.sampled_from(sorted(checkpoint.weights.values(), key=lambda weight: weight.name)))
    rows, columns = matrix_shape(weight.shape)
    (top, bottom), (left, right) = (
        sorted(data.draw(st.sampled_from(list(itertools.combinations(range(n + 1), 2)))))
        for n in (rows, columns)
    )
    part = weight.part((top, bottom), (left, right))
    size = weight.dtype.itemsize
    with SourceFiles() as files:
        whole = rows_of(files, weight, 0, rows)[top:bottom, left * size : right * size]
        assert np.array_equal(rows_of(files, part, 0, bottom - top), whole)
