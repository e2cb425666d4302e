"""Interrupted runs resume inside a weight: what each checkpoint records is reused, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from llama_convert.checkpoints.huggingface import open_huggingface
from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.meta_folder import find_meta_folder
from llama_convert.conversion import execute
from llama_convert.formats.safetensors import read_header
from tests import invariant, synthetic
from tests.invariant import Case, Ended, check, fresh_folder, read, run, signal_at, staged
from tests.schema import check_output
from tests.synthetic import LLAMA2
from tests.test_checksums import flat

BLOCK, CHECKPOINT = 500, 1500
SHAPE = LLAMA2.but(ranks=2)
COMMANDS = {
    "to hf": ("meta", ("convert",)),
    "to hf, cast": ("meta", ("convert", "--dtype", "fp16")),
    "to meta": ("hf", ("convert", "--to", "meta", "--mp", "4")),
    "ranks": ("meta", ("shard", "--mp", "1")),
    "files": ("hf", ("shard", "--max-shard-size", "30KB")),
    "shared storage": ("flat", ("convert",)),
}


FILES = ("to hf", "to hf, cast", "files", "shared storage")


def small_steps() -> None:
    """Let a run record a weight in many steps, as it does one of gigabytes."""
    execute.JOURNAL_INTERVAL = CHECKPOINT


def command(case: Case, out: Path, *more: str) -> list[str]:
    return case.command(out, "--block-size", str(BLOCK), *more)


def step_by_step(case: Case, out: Path, act: Any = None, *more: str) -> Ended:
    return run(command(case, out, *more), act, [out], small_steps)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("resume")
    state = synthetic.weights(SHAPE)
    state["layers.0.feed_forward.w2.weight"][3, -1] = float("nan")
    state["layers.1.feed_forward.w1.weight"][-1, 2] = 1e30
    ranks = synthetic.cut(SHAPE, state)
    synthetic.write(folder / "meta", SHAPE, ranks)
    synthetic.write(folder / "flat", SHAPE, [flat(rank) for rank in ranks])
    assert run(["convert", str(folder / "meta"), str(folder / "hf")]).exit_code == 0
    cases = {}
    for name, (source, arguments) in COMMANDS.items():
        case, out = Case(name, folder / source, arguments, {}), folder / f"{name} out"
        assert run(case.command(out)).exit_code == 0
        case.whole.update(read(out))
        cases[name] = case
    return cases


def recorded(out: Path) -> dict[str, int]:
    """Rows of each weight that the journal records."""
    lines = (staged(out) / ".journal").read_bytes().splitlines()[1:]
    entries = (json.loads(line.split(b" ", 1)[1]) for line in lines)
    return {entry["name"]: entry["rows"] for entry in entries}


def n_rows(case: Case, out: Path, name: str) -> int:
    """Rows of a weight, by its name in the output's folder."""
    checkpoint = open_huggingface(out) if case.name in FILES else open_meta(find_meta_folder(out))
    shape = next(weight.shape for weight in checkpoint.weights.values() if weight.name == name)
    return shape[0] if len(shape) > 1 else 1


def reused(ended: Ended) -> float:
    """The share of the weights' bytes that a run says it has reused."""
    said = re.search(r"Resumed: reused ([\d.]+) of ([\d.]+) KB", ended.stderr)
    return float(said[1]) / float(said[2]) if said else 0.0


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_inside_a_weight(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """At lines of the journal a few apart: the output is right, and what was recorded is reused."""
    case, out = cases[name], tmp_path / "out"
    lines = sum(call == "write" for call, _ in step_by_step(case, out, None, "--workers", "1").calls)
    assert lines > 2 * len(case.whole)
    partial = 0
    for number in range(8, lines, 11):
        fresh_folder(out)
        ended = step_by_step(case, out, signal_at(number, signal.SIGKILL, ["write"]), "--workers", "1")
        assert ended.exit_code == -signal.SIGKILL
        check(out, case, ended=ended)
        rows = recorded(out)
        resumed = step_by_step(case, out)
        assert check(out, case, ended=resumed) == "new", resumed.stderr
        assert reused(resumed) > 0
        partial += any(0 < n < n_rows(case, out, name) for name, n in rows.items())
    assert partial > 3


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_over_and_over(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    """Every run gets a few steps further, so that they end."""
    case, out, shares = cases[name], tmp_path / "out", [0.0]
    while True:
        ended = step_by_step(case, out, signal_at(12, signal.SIGKILL, ["write"]))
        check(out, case, ended=ended)
        if ended.exit_code == 0:
            break
        assert ended.exit_code == -signal.SIGKILL
        shares.append(sum(recorded(out).values()))
        assert len(shares) < 100
    assert shares == sorted(shares)
    assert len(shares) > 3
    assert check(out, case) == "new"


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_saves_every_block(cases: dict[str, Case], tmp_path: Path, what: int) -> None:
    """And says how much it saved, which is what the next run reuses."""
    case, out = cases["to hf"], tmp_path / "out"
    for number in (3, 30, 70):
        fresh_folder(out)
        ended = step_by_step(case, out, signal_at(number, what, ["pwrite"]), "--json")
        assert ended.exit_code == 128 + what
        report = json.loads(ended.stdout)
        check_output(report)
        assert report["resumable"]
        assert ended.message == f"Interrupted. {report['saved']}"
        saved = re.fullmatch(r"Saved (\S+ of \S+ KB)\. Run the same command to resume\.", report["saved"])
        assert saved
        resumed = step_by_step(case, out)
        assert f"Resumed: reused {saved[1]} from the previous run" in resumed.stderr
        assert check(out, case) == "new"


def test_a_full_disk_reports_what_is_saved(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["to hf"], tmp_path / "out"
    ended = step_by_step(case, out, invariant.fail_at(40, "pwrite", invariant.FAULTS["ENOSPC"]))
    assert ended.exit_code == 4
    assert "Run the same command to resume." in ended.stderr
    assert reused(step_by_step(case, out)) > 0
    fresh_folder(out)
    ended = step_by_step(case, out, invariant.fail_at(1, "posix_fallocate", invariant.FAULTS["ENOSPC"]))
    assert ended.exit_code == 4
    assert "Nothing to resume." in ended.stderr
    assert not out.exists()


def stop_inside(case: Case, out: Path, weight: str) -> None:
    """Leave a run killed when some of a weight is recorded, and the rest is not."""

    def act(calls: Any, name: str, path: str, real: Any, args: Any, kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if name == "write" and f'"name":"{weight}"'.encode() in args[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    ended = step_by_step(case, out, act, "--workers", "1")
    assert ended.exit_code == -signal.SIGKILL


def first_place(case: Case, weight: str) -> tuple[str, int]:
    """The file that holds the weight, and where in it."""
    for name, content in case.whole.items():
        if name.endswith(".safetensors"):
            file = case.source.parent / name
            file.write_bytes(content)
            header, start = json.loads(read_header(file)[0]), 8 + int.from_bytes(content[:8], "little")
            if weight in header:
                return name, start + header[weight]["data_offsets"][0]
    raise AssertionError(weight)


def flip(file: Path, position: int) -> None:
    content, status = bytearray(file.read_bytes()), file.stat()
    content[position] ^= 1
    with file.open("r+b") as stream:  # the same file, as bits that rot
        stream.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


WEIGHT = "model.layers.0.mlp.down_proj.weight"


def test_a_damaged_beginning_is_written_again(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["to hf"], tmp_path / "out"
    stop_inside(case, out, WEIGHT)
    good = reused(step_by_step(case, out, signal_at(1, signal.SIGKILL, ["replace"])))
    fresh_folder(out)
    stop_inside(case, out, WEIGHT)
    file, offset = first_place(case, WEIGHT)
    flip(staged(out) / file, offset + 10)
    ended = step_by_step(case, out)
    assert check(out, case) == "new"
    assert good == 0 or reused(ended) < good


@pytest.mark.parametrize("name", ["to hf", "shared storage"])
def test_damage_read_before_the_interruption_is_found_after_it(
    cases: dict[str, Case], tmp_path: Path, name: str
) -> None:
    """Bytes that were read wrong once are refused, though the file reads right when the run resumes."""
    case, out = cases[name].moved(tmp_path / "source"), tmp_path / "out"
    weight = synthetic.read(case.source)[1]["layers.0.feed_forward.w2.weight"]
    file = case.source / "consolidated.01.pth"
    position = file.read_bytes().index(weight.contiguous().view(torch.uint8).numpy().tobytes())
    flip(file, position + 3)
    stop_inside(case, out, WEIGHT)
    assert 0 < recorded(out)[WEIGHT] < weight.shape[0]
    flip(file, position + 3)
    ended = step_by_step(case, out, None, "--json")
    assert ended.exit_code == 3, ended.stderr
    assert json.loads(ended.stdout)["code"] == "INPUT_CRC"
    assert not list(out.iterdir())


def edited(change: Callable[[dict[str, Any]], object], out: Path) -> None:
    journal = staged(out) / ".journal"
    *lines, last = journal.read_bytes().splitlines()
    entry = json.loads(last.split(b" ", 1)[1])
    change(entry)
    text = json.dumps(entry, separators=(",", ":")).encode()
    lines.append(xxhash.xxh3_64_hexdigest(text).encode() + b" " + text)
    journal.write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(rows=entry["rows"] + 1),
        lambda entry: entry.update(rows=1),
        lambda entry: entry.update(rows=10**9),
        lambda entry: entry.update(rows=-1),
        lambda entry: entry.update(digests=[]),
        lambda entry: entry.update(checksums=[1, 2, 3]),
        lambda entry: entry["read"].append([99, 0, 1, 0]),
    ],
)
def test_lines_that_cannot_be_true(
    cases: dict[str, Case], tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    case, out = cases["to hf"], tmp_path / "out"
    stop_inside(case, out, "model.layers.0.self_attn.q_proj.weight")
    edited(change, out)
    ended = step_by_step(case, out)
    assert ended.exit_code == 0, ended.stderr
    assert check(out, case) == "new"


def test_interrupted_before_the_first_block(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["to hf"], tmp_path / "out"
    ended = step_by_step(case, out, signal_at(1, signal.SIGINT, ["mkdir"]))
    assert ended.exit_code == 130
    assert ended.message == "Interrupted. Nothing to resume."
    assert not out.exists()
