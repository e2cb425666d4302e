"""Checkpoints of every writer convert to both formats exactly, and read back."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from llama_convert import convert, open_checkpoint
from llama_convert.formats.files import remote_files
from tests import invariant, large, samples, synthetic
from tests.peers import Peer
from tests.run import llama_convert, peak_memory
from tests.samples import TIED, UNTIED, Model, Sample, Samples
from tests.synthetic import Shape, State, assert_ranks
from tests.torch_files import as_bytes

TORCHTUNE = ("hf-safetensors", "hf-bin", "meta", "torchtune")
GROUPS: dict[str, tuple[str, ...]] = {
    "torch": (
        "zip bin", "zip indexed", "zip not indexed", "zip file", "zip parts",
        "legacy bin", "legacy indexed", "legacy not indexed", "legacy file", "legacy parts",
    ),
    "wrapped": (
        "model", "state_dict", "deepspeed", "two wrappers", "module.", "_orig_mod.", "fsdp", "lightning",
        "compiled in ddp", "freqs", "inv_freq",
    ),
    "transformers 4": ("state", "sharded", "single"),
    "transformers 4, tied": ("state", "sharded", "single"),
    "transformers 5, tied": ("state",),
    "dcp": tuple(
        f"{name} {ranks}" for name in ("cookbook", "titan", "torchtune") for ranks in samples.RANKS
    ),
    "accelerate": ("sharded 1", "sharded 2", "whole 2"),
    "torchtune 0.2": TORCHTUNE,
    "torchtune 0.4": TORCHTUNE,
    "torchtune 0.5": TORCHTUNE,
    "torchtune 0.6": (*TORCHTUNE, "distributed"),
    "405B": ("mp8", "mp16"),
}  # fmt: skip
SLOW = ("torchtune 0.2", "transformers 5, tied")
"""Groups whose files are those of another version."""
CHECKS = ["structure", "values", "weights", "tokenizer", "logits"]
Make = Callable[[str], Samples]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Model]:
    """A model, and one with a tied head."""
    folder = tmp_path_factory.mktemp("models")
    return {shape.tied: samples.make_model(folder / str(shape.tied), shape) for shape in (UNTIED, TIED)}


@pytest.fixture(scope="session")
def made(
    models: dict[bool, Model], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Make:
    """The samples of a group, which are made once."""
    groups: dict[str, Samples] = {}

    def make(group: str) -> Samples:
        folder, model = tmp_path_factory.mktemp("group") / "samples", models["tied" in group]
        writer, _, version = group.removesuffix(", tied").partition(" ")
        if writer == "transformers":
            peer: Peer = request.getfixturevalue(f"transformers{version}")
            return samples.transformers_samples(folder, model, peer)
        if writer == "torchtune":
            return samples.torchtune_samples(folder, model, version)
        return {
            "torch": samples.torch_samples,
            "wrapped": samples.wrapped_samples,
            "dcp": samples.dcp_samples,
            "accelerate": samples.fsdp_samples,
            "405B": samples.hub_samples,
        }[writer](folder, model)

    def of(group: str) -> Samples:
        if group not in groups:
            groups[group] = make(group)
            assert sorted(groups[group]) == sorted(GROUPS[group])
        return groups[group]

    return of


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads that share such small matrices take ten times as long where other tests run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sample(request: pytest.FixtureRequest, made: Make) -> Sample:
    group, name = request.param
    return made(group)[name]


def each_sample(*chosen: tuple[str, str]) -> pytest.MarkDecorator:
    """All samples, or some."""
    return pytest.mark.parametrize(
        "sample",
        [
            pytest.param(pair, marks=pytest.mark.slow if pair[0] in SLOW else (), id=": ".join(pair))
            for pair in chosen or [(group, name) for group, names in GROUPS.items() for name in names]
        ],
        indirect=True,
    )


FEW = (
    ("torch", "legacy indexed"),
    ("wrapped", "compiled in ddp"),
    ("dcp", "cookbook 3"),
    ("torchtune 0.6", "meta"),
    ("405B", "mp16"),
)
"""A sample of each container."""


def tensors_of(folder: Path) -> dict[str, bytes]:
    """The bytes of each tensor in the safetensors files of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: as_bytes(tensor) for file in files for name, tensor in load_file(file).items()}


def bytes_of(state: State) -> dict[str, bytes]:
    return {name: as_bytes(tensor) for name, tensor in state.items()}


def check_tensors(out: Path, sample: Sample) -> None:
    """The files are those that transformers or Meta would write."""
    if (out / "config.json").exists():
        assert (out / "model.safetensors").read_bytes() == sample.model.safetensors
    else:
        assert_ranks(synthetic.read(out), [sample.model.weights])


def notes(stderr: str, sample: Sample) -> list[str]:
    """What a command prints about the source's content."""
    lead = f"{sample.path}: "
    return [line.removeprefix(lead) for line in stderr.splitlines() if line.startswith(lead)]


@pytest.mark.parametrize("target", ["hf", "meta"])
@each_sample()
def test_converts_and_verifies(sample: Sample, tmp_path: Path, target: str) -> None:
    out = tmp_path / "out"
    run = llama_convert("convert", sample.path, out, "--to", target, *sample.options)
    assert run.exit_code == 0, run.stderr
    assert ("warning" in run.stderr) == ("no CRC-32" in run.stderr) == sample.legacy
    assert notes(run.stderr, sample) == ([sample.note] if sample.note else [])
    check_tensors(out, sample)
    suggested = shlex.split(run.stderr.partition("Verify it with: ")[2])
    run = llama_convert(*suggested[1:], "--json")
    assert run.exit_code == 0, [check for check in run.json["checks"] if check["status"] != "pass"]
    assert [check["check"] for check in run.json["checks"] if check["status"] == "pass"] == CHECKS


@each_sample()
def test_reads(sample: Sample) -> None:
    """Rows of the same bytes in both layouts; and a description, where there are settings."""
    model = sample.model
    for layout, expected in (("huggingface", model.huggingface_weights), ("meta", model.weights)):
        with open_checkpoint(sample.path, layout=layout, config_from=sample.config_from) as checkpoint:
            assert set(expected) <= set(checkpoint)
            for name, tensor in expected.items():
                assert checkpoint[name].torch().equal(tensor), name
                assert as_bytes(checkpoint[name].torch(slice(3, 17))) == as_bytes(tensor[3:17]), name
    run = llama_convert("inspect", sample.path, *sample.options)
    assert run.exit_code == 0, run.stdout + run.stderr
    if sample.config_from and not (sample.path.is_file() or (sample.path / "config.json").exists()):
        run = llama_convert("inspect", sample.path)
        assert run.exit_code != 0
        assert "--config-from" in run.stdout + run.stderr


@each_sample(*FEW)
def test_casts(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = llama_convert("convert", sample.path, out, "--dtype", "fp32", *sample.options)
    assert run.exit_code == 0, run.stderr
    expected = sample.model.huggingface_weights
    floats = {name: tensor.float().contiguous() for name, tensor in expected.items()}
    assert (out / "model.safetensors").read_bytes() == save(floats, {"format": "pt"})
    run = llama_convert("convert", sample.path, out, "--dtype", "fp16", "--overwrite", *sample.options)
    assert run.exit_code == 0, run.stderr
    assert tensors_of(out) == bytes_of({name: tensor.half() for name, tensor in expected.items()})


@each_sample(*FEW)
def test_a_dry_run(sample: Sample, tmp_path: Path) -> None:
    """It lists what is then written."""
    command = ("convert", sample.path, tmp_path / "out", *sample.options)
    planned = llama_convert(*command, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.stderr
    assert not (tmp_path / "out").exists()
    written = llama_convert(*command, "--json", "--verify")
    assert written.exit_code == 0, written.stderr
    names = [{file["name"] for file in run.json["files"]} for run in (planned, written)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("sample", "mp"),
    [
        (("torch", "zip parts"), 4),
        (("torch", "legacy indexed"), None),
        (("torchtune 0.6", "torchtune"), 2),
        (("torchtune 0.6", "hf-bin"), None),
        (("405B", "mp16"), 2),
    ],
    indirect=["sample"],
    ids=str,
)
def test_shards(sample: Sample, tmp_path: Path, mp: int | None) -> None:
    model, path = sample.model, sample.path
    if sample.config_from:  # `shard` has no option for it
        path = samples.with_settings(Path(shutil.copytree(path, tmp_path / "source")), sample.config_from)
    size = ["--mp", mp] if mp else ["--max-shard-size", "50KB"]
    run = llama_convert("shard", path, tmp_path / "out", *size)
    assert run.exit_code == 0, run.stderr
    if mp:
        shape = model.shape.but(ranks=mp, kv_repeats=max(1, mp // model.shape.n_kv_heads), embedding_cut=0)
        assert_ranks(synthetic.read(tmp_path / "out"), synthetic.cut(shape, model.weights))
        return
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert tensors_of(tmp_path / "out") == bytes_of(model.huggingface_weights)


# Interruptions and changes.


def weight_file(path: Path) -> Path:
    """A file of weights in a folder."""
    files = [file for file in path.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".distcp")]
    return max(files, key=lambda file: (file.stat().st_size, file.name))


def edit(path: Path, model: Model, *, legacy: bool) -> None:
    """Save a file of a checkpoint again, with other values."""
    file = weight_file(path)
    if file.suffix == ".distcp":
        state = {name: torch.zeros_like(tensor) for name, tensor in model.huggingface_weights.items()}
        dcp.save({"model": state}, checkpoint_id=path, no_dist=True)
        return
    content = torch.load(file)
    state = content.get("model", content)
    state[max(state)][-1] += 1
    samples.saved(file, content, legacy=legacy)


def interrupted(sample: Sample, path: Path, out: Path) -> list[str]:
    """The command that was killed after some of the weights."""
    command = ["convert", str(path), str(out), "--workers", "1", *sample.options]
    ended = invariant.run(command, invariant.signal_at(9, signal.SIGKILL, ["write"]), [out])
    assert ended.exit_code == -signal.SIGKILL
    assert not (out / "config.json").exists()
    return command


@each_sample(*FEW)
def test_resumes(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = invariant.run(interrupted(sample, sample.path, out))
    assert ended.exit_code == 0, ended.stderr
    assert "Resumed: reused " in ended.stderr
    check_tensors(out, sample)


@each_sample(*FEW)
def test_a_source_that_changes_between_two_runs(sample: Sample, tmp_path: Path) -> None:
    """What was written is not reused; and a complete output is not replaced."""
    path, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(sample.path, path)
    command = interrupted(sample, path, out)
    os.utime(weight_file(path), (1, 1))
    ended = invariant.run(command)
    assert ended.exit_code == 0, ended.stderr
    assert "Resumed" not in ended.stderr
    check_tensors(out, sample)
    ended = invariant.run(command)
    assert ended.exit_code == 0
    assert "Already up to date" in ended.stderr
    edit(path, sample.model, legacy=sample.legacy)
    ended = invariant.run(command)
    assert ended.exit_code == 5, ended.stderr
    assert "Not up to date: " in ended.stderr
    check_tensors(out, sample)


# Remote.


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    from llama_convert.stores import filesystem
    from tests.stores import ObjectStore

    with ObjectStore() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        filesystem.open_filesystem.cache_clear()
        yield store
        filesystem.open_filesystem.cache_clear()


@each_sample(("torch", "zip indexed"), ("dcp", "torchtune 2"))
def test_remote(sample: Sample, tmp_path: Path, store: Any) -> None:
    url = "s3://bucket/source"
    store.clear()
    store.put(sample.path, "source")
    for target in ("hf", "meta"):
        out = tmp_path / target
        run = llama_convert("convert", url, out, "--to", target, *sample.options)
        assert run.exit_code == 0, run.stderr
        assert sample.note is None or f"{url}: {sample.note}" in run.stderr.splitlines()
        check_tensors(out, sample)
    run = llama_convert("verify", tmp_path / "hf", "--source", url, *sample.options)
    assert run.exit_code == 0, run.stdout
    assert not remote_files


# Any combination.

WRAPPERS: tuple[tuple[str, ...], ...] = ((), ("model",), ("state_dict",), ("model_state_dict", "model"))
PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.", "net.", "a.b.model.")


def wrapped(state: State, keys: tuple[str, ...]) -> Any:
    content: Any = state
    for key in reversed(keys):
        content = {key: content, "optimizer": {"state": {}}, "step": 3}
    return content


def write_any(draw: st.DrawFn, folder: Path, shape: Shape, state: State) -> None:
    """A state dict under any names, wrapped and prefixed, in files of any format."""
    renamed: Callable[[State], State] = draw(
        st.sampled_from([lambda state: state, samples.torchtune, lambda s: synthetic.huggingface(shape, s)])
    )
    keys, prefix = draw(st.sampled_from(WRAPPERS)), draw(st.sampled_from(PREFIXES))
    named = samples.prefixed(prefix, renamed(state))
    if draw(st.integers(0, 3)) == 0:
        dcp.save(wrapped(named, keys), checkpoint_id=folder, no_dist=True)
        return
    names = draw(st.permutations(sorted(named)))
    ends = sorted({*draw(st.lists(st.integers(1, len(names) - 1), max_size=3)), len(names)})
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        part = {name: named[name] for name in names[start:end]}
        file = folder / f"part-{number}{draw(st.sampled_from(['.pt', '.pth', '.bin', '.ckpt']))}"
        samples.saved(file, wrapped(part, keys), legacy=draw(st.booleans()))


@pytest.mark.filterwarnings("ignore:torch.distributed")
@settings(max_examples=25)
@given(st.data())
def test_any_combination(data: st.DataObject) -> None:
    n_kv_heads = data.draw(st.integers(1, 3))
    shape: Shape = data.draw(synthetic.shapes(1, n_kv_heads))
    state = synthetic.weights(shape)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        synthetic.write(place / "meta", shape, [])
        shutil.move(synthetic.write_huggingface(place / "hf", shape, state) / "model.safetensors", place)
        data.draw(st.composite(write_any)(place / "source", shape, state))
        config_from = place / data.draw(st.sampled_from(["meta", "hf"]))
        convert(place / "source", place / "to-hf", config_from=config_from)
        assert tensors_of(place / "to-hf") == bytes_of(load_file(place / "model.safetensors"))
        convert(place / "source", place / "to-meta", to="meta", config_from=config_from)
        assert_ranks(synthetic.read(place / "to-meta", mmap=False), [state])


# Memory.


@pytest.mark.slow
@pytest.mark.parametrize("target", ["hf", "meta"])
def test_a_dcp_folder_in_128_mib(tmp_path: Path, target: str) -> None:
    shape = large.SHAPES["3.2-1B"]
    meta, source, out = (tmp_path / name for name in ("meta", "source", "out"))
    if shutil.disk_usage(tmp_path).free < 10 << 30:
        pytest.skip("needs 10 GiB of disk")
    try:
        large.make(meta, shape)
        state = torch.load(meta / "consolidated.00.pth", mmap=True)
        dcp.save({"model": state, "step": 3}, checkpoint_id=source, no_dist=True)
        assert (
            peak_memory("convert", source, out, "--to", target, "--config-from", meta, "--quiet") < 128 << 20
        )
        run = llama_convert("verify", out, "--source", meta, "--check", "weights")
        assert run.exit_code == 0, run.stdout
    finally:
        shutil.rmtree(tmp_path)
