"""The zoo: what is wrong is refused in a line, what is right converted bit by bit, and none takes long."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import synthetic, zoo
from tests.limits import cpu_limit
from tests.peers import ROOT
from tests.run import Run, llama_convert
from tests.zoo import ACCEPTED, ACCEPTED_HUGGINGFACE, REFUSED, WARNED, Case

SECONDS = 10.0
"""Processor time that refusing a file may take; it takes a hundredth of that."""
MEMORY = 300 << 20

pytestmark = pytest.mark.filterwarnings("ignore")

Contents = dict[str, tuple[int, bytes]]


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The good folders by name."""
    place = tmp_path_factory.mktemp("good")
    return {
        base: zoo.make(place / base, base) for base in ("meta", "single", "hf", "indexed", *zoo.CONTAINERS)
    }


def spoilt(case: Case, goods: dict[str, Path], place: Path) -> Path:
    source = Path(shutil.copytree(goods[case.base], place / "source"))
    case.spoil(source)
    return source


def listed(place: Path) -> Contents:
    """Everything below a folder: mode, and a file's bytes."""
    return {
        str(path.relative_to(place)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(place.rglob("*"))
        if path.is_symlink() or not path.is_file() or path.stat().st_size < 1 << 20
    }


def assert_refused(run: Run, words: tuple[str, ...]) -> None:
    assert run.exit_code == 3, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    place, _, said = line.partition("/source")
    assert place
    assert len(said) < 300
    assert line.isprintable()
    for word in words:
        assert word in said
    for never in ("Traceback", "weights_only", "internal error"):
        assert never not in run.stderr


def command(case: Case, source: Path, out: Path) -> list[object]:
    back = ["--to", "meta"] if case.base in ("hf", "indexed") else []
    return ["convert", source, out, *back]


def cut_anew(case: Case, source: Path, out: Path) -> list[object]:
    into = ["--max-shard-size", "50KB"] if case.base in ("hf", "indexed") else ["--mp", "2"]
    return ["shard", source, out, *into]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, goods: dict[str, Path], name: str) -> None:
    case = REFUSED[name]
    source = spoilt(case, goods, tmp_path)
    before = listed(tmp_path)
    commands = [command(case, source, tmp_path / "out")]
    if case.base not in zoo.CONTAINERS:
        commands += [cut_anew(case, source, tmp_path / "out")]
    for arguments in commands:
        with cpu_limit(SECONDS):
            run = llama_convert(*arguments)
        assert_refused(run, case.words)
        assert listed(tmp_path) == before, "something was left behind, or constructed"


@pytest.mark.parametrize("base", zoo.CONTAINERS)
def test_other_containers_are_read(tmp_path: Path, goods: dict[str, Path], base: str) -> None:
    expected = synthetic.weights(zoo.SHAPE)
    for target in ("hf", "meta"):
        run = llama_convert("convert", goods[base], tmp_path / target, "--to", target, "--quiet")
        assert run.exit_code == 0, run.stderr
    found = load_file(tmp_path / "hf/model.safetensors")
    assert_same(found, synthetic.huggingface(zoo.SHAPE, expected))
    assert_same(zoo.joined(synthetic.read(tmp_path / "meta")), expected)
    run = llama_convert("verify", tmp_path / "hf", "--source", goods[base], "--check", "structure,weights")
    assert run.exit_code == 0, run.stdout


@pytest.mark.parametrize("name", REFUSED)
def test_verify_and_inspect_exit_with_1(tmp_path: Path, goods: dict[str, Path], name: str) -> None:
    case = REFUSED[name]
    source = spoilt(case, goods, tmp_path)
    before = listed(tmp_path)
    levels = ["--check", "structure,values,weights,tokenizer"]
    commands: list[list[object]] = [["verify", source, *levels], ["inspect", source, "--json"]]
    for arguments in commands:
        with cpu_limit(SECONDS):
            run = llama_convert(*arguments)
        if case.structure or arguments[0] == "verify":
            assert run.exit_code in (1, 3), run.stderr
        for never in ("Traceback", "weights_only", "internal error"):
            assert never not in run.stderr + run.stdout
        assert listed(tmp_path) == before


@pytest.mark.parametrize("name", zoo.MANIFESTS)
def test_manifests(tmp_path: Path, goods: dict[str, Path], name: str) -> None:
    source = Path(shutil.copytree(goods["hf"], tmp_path / "source"))
    zoo.MANIFESTS[name](source)
    with cpu_limit(SECONDS):
        run = llama_convert("verify", source, "--check", "structure,values")
        assert run.exit_code == 1, run.stderr
        assert "llama-convert.json" in run.stdout
        assert llama_convert("inspect", source).exit_code in (0, 1)  # which makes little use of it


def test_of_endless_problems_some_are_listed(tmp_path: Path, goods: dict[str, Path]) -> None:
    source = Path(shutil.copytree(goods["indexed"], tmp_path / "source"))
    weight_map = {f"tensor{n}": f"{n}.safetensors" for n in range(10_000)}
    (source / zoo.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with cpu_limit(2 * SECONDS):
        run = llama_convert("verify", source, "--check", "structure")
    assert run.exit_code == 1
    assert " more." in run.stdout


@pytest.mark.parametrize("level", ["inspect", "verify"])
@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name].base == "hf"][::4])
def test_as_a_source_to_compare_with(tmp_path: Path, goods: dict[str, Path], name: str, level: str) -> None:
    source = spoilt(REFUSED[name], goods, tmp_path)
    arguments = ["verify", goods["meta"], "--source", source, "--check", "structure,weights"]
    if level == "inspect":
        arguments = ["inspect", goods["meta"], source]
    with cpu_limit(SECONDS):
        run = llama_convert(*arguments)
    assert run.exit_code in (1, 3)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("name", ["as it is", "a link to it", "a file", "a dangling link"])
def test_an_output_folder_that_holds_something_stays(
    tmp_path: Path, goods: dict[str, Path], name: str
) -> None:
    """Whatever the source is, what stood at the output's place stands there afterwards."""
    out, remote_files = tmp_path / "out", tmp_path / "elsewhere"
    remote_files.mkdir()
    (remote_files / "config.json").write_text("{}")
    places = {
        "as it is": lambda: shutil.copytree(remote_files, out),
        "a link to it": lambda: out.symlink_to("elsewhere"),
        "a file": lambda: out.write_text("mine"),
        "a dangling link": lambda: out.symlink_to("nowhere"),
    }
    places[name]()
    for case in ("noise", "os.mkdir", "a flipped bit in a storage", "as it is"):
        work = tmp_path / case.replace(" ", "-")
        work.mkdir()
        source = spoilt((REFUSED | ACCEPTED)[case], goods, work)
        before = listed(tmp_path)
        run = llama_convert("convert", source, out)
        assert run.exit_code in (3, 4, 5), run.stderr
        assert "Traceback" not in run.stderr
        assert listed(tmp_path) == before


def assert_same(found: synthetic.State, expected: synthetic.State) -> None:
    assert sorted(found) == sorted(expected)
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype, name
        assert torch.equal(found[name].view(torch.uint8), weight.contiguous().view(torch.uint8)), name


def original(folder: Path) -> synthetic.State:
    """The model that a folder of Meta's holds, as torch reads it."""
    files = zoo.rank_files(folder)  # made by the test itself; weights_only reads no later protocols
    return zoo.joined([torch.load(file, weights_only=False, map_location="cpu") for file in files])


def writable(place: Path) -> None:
    for path in [place, *place.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(tmp_path: Path, goods: dict[str, Path], name: str) -> None:
    case = ACCEPTED[name]
    source = spoilt(case, goods, tmp_path)
    state = original(source if case.torch_reads else goods[case.base])
    expected = synthetic.huggingface(zoo.SHAPE, state)
    for number, place in enumerate((source, source.resolve())):  # as named by a link, and by its own name
        out = tmp_path / f"out-{number}"
        run = llama_convert("convert", place, out, "--quiet")
        assert run.exit_code == 0, run.stderr
        assert "error" not in run.stderr
        assert_same(load_file(out / "model.safetensors"), expected)
    assert llama_convert("shard", source, tmp_path / "shards", "--mp", "4").exit_code == 0
    assert_same(zoo.joined(synthetic.read(tmp_path / "shards")), state)
    run = llama_convert("verify", out, "--source", source, "--check", "structure,weights")
    assert run.exit_code == 0, run.stdout
    assert llama_convert("inspect", source).exit_code == 0
    writable(tmp_path)


@pytest.mark.parametrize("name", ACCEPTED_HUGGINGFACE)
def test_accepted_on_the_way_back(tmp_path: Path, goods: dict[str, Path], name: str) -> None:
    case = ACCEPTED_HUGGINGFACE[name]
    source = spoilt(case, goods, tmp_path)
    state = synthetic.weights(zoo.SHAPE)
    run = llama_convert(*command(case, source, tmp_path / "meta"), "--mp", "2")
    assert run.exit_code == 0, run.stderr
    assert_same(zoo.joined(synthetic.read(tmp_path / "meta")), state)
    run = llama_convert(*cut_anew(case, source, tmp_path / "shards"))
    assert run.exit_code == 0, run.stderr
    found = {n: t for file in (tmp_path / "shards").glob("*.safetensors") for n, t in load_file(file).items()}
    assert_same(found, synthetic.huggingface(zoo.SHAPE, state))
    assert llama_convert("verify", source, "--check", "structure,values").exit_code == 0
    assert llama_convert("inspect", source).exit_code == 0
    writable(tmp_path)


@pytest.mark.parametrize("name", WARNED)
def test_warned_of(tmp_path: Path, goods: dict[str, Path], name: str) -> None:
    case = WARNED[name]
    source = spoilt(case, goods, tmp_path)
    run = llama_convert("convert", source, tmp_path / "out", "--quiet")
    assert run.exit_code == 0, run.stderr
    assert_same(
        load_file(tmp_path / "out" / "model.safetensors"), synthetic.huggingface(zoo.SHAPE, original(source))
    )
    warnings = [line for line in run.stderr.splitlines() if line.startswith("warning: ")]
    assert any(all(word in line for word in case.words) for line in warnings), run.stderr
    strict = llama_convert("convert", source, tmp_path / "strict", "--strict")
    assert strict.exit_code == 1, strict.stderr
    assert not (tmp_path / "strict").exists()


BOMBS = (
    "params a device", "params a gigabyte", "params ten to the 12 layers", "rank ten to the 12",
    "a terabyte of zeros", "a directory of 2**63 bytes", "a flood of lists", "a flood of memos",
    "a flood of OrderedDicts", "a memo index of 2**28", "a key of doubled tuples", "nested deeply in lists",
    "hf: a header of 50 MB", "hf: a header of many lists", "hf: a shape of many digits",
    "hf: index of many lists", "tokenizer a terabyte", "tokenizer of many pieces", "tokenizer of many ranks",
)  # fmt: skip
MEASURE = """
import resource, subprocess, sys

resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))  # seconds of processor time
exit_code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(exit_code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_small(tmp_path: Path, goods: dict[str, Path], name: str) -> None:
    """In a process of its own, which the kernel measures."""
    source = spoilt(REFUSED[name], goods, tmp_path)
    arguments = command(REFUSED[name], source, tmp_path / "out")
    own = [sys.executable, "-m", "llama_convert", *map(str, arguments)]
    measure = [sys.executable, "-c", MEASURE, *own]
    run = subprocess.run(measure, capture_output=True, text=True, cwd=ROOT, check=True)
    exit_code, kibibytes = map(int, run.stdout.split())
    assert exit_code == 3, run.stderr
    assert "Traceback" not in run.stderr
    assert kibibytes * 1024 < MEMORY


def test_there_are_enough() -> None:
    assert len(REFUSED) >= 200
    assert len(ACCEPTED) + len(ACCEPTED_HUGGINGFACE) >= 50
