"""Bad input: the right exit code, one clear line naming file and tensor, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_convert.checkpoints.meta import open_meta
from llama_convert.checkpoints.meta_folder import find_meta_folder
from llama_convert.errors import InputError
from tests import synthetic
from tests.run import llama_convert
from tests.synthetic import LLAMA2, LLAMA3, Shape, State

Spoil = Callable[[Path], None]


def params(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "params.json").read_text()) | changes
        content = {key: value for key, value in content.items() if value is not ...}
        (folder / "params.json").write_text(json.dumps(content))

    return spoil


def params_text(text: bytes) -> Spoil:
    return lambda folder: void((folder / "params.json").write_bytes(text))


def rank(number: int, change: Callable[[State], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / f"consolidated.{number:02d}.pth"
        state = torch.load(file, weights_only=True)
        change(state)
        torch.save(state, file)

    return spoil


def void(_: object) -> None:
    """Nothing to return."""


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Spoil:
    return lambda folder: void((folder / name).write_bytes(content))


def truncate(name: str, share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * share))

    return spoil


def copy(source: str, target: str) -> Spoil:
    return lambda folder: void(shutil.copy(folder / source, folder / target))


def evil(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {folder}/owned",)

    torch.save({"a": torch.ones(2), "b": Evil()}, folder / "consolidated.01.pth")


WQ, W1, W2, NORM = (
    f"layers.1.{part}.weight" for part in ("attention.wq", "feed_forward.w1", "feed_forward.w2", "ffn_norm")
)

# What is done to a good folder of two ranks; words that the message must contain.
CASES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "no params": (remove("params.json"), ("params.json", "Not found")),
    "params empty": (params_text(b""), ("params.json", "Invalid JSON")),
    "params cut": (params_text(b'{"dim": 64, '), ("params.json", "line 1")),
    "params HTML": (params_text(b"<html>expired</html>"), ("params.json", "HTML")),
    "params list": (params_text(b"[1]"), ("params.json", "list")),
    "params bytes": (params_text(b"\xff\xfe{}"), ("params.json", "UTF-8")),
    "params deep": (params_text(b"[" * 100_000), ("params.json", "JSON")),
    "params twice": (params_text(b'{"dim": 64, "dim": 32}'), ("Duplicate", '"dim"')),
    "params without dim": (params(dim=...), ("params.json", 'Missing "dim"')),
    "params string": (params(dim="64"), ('"dim"', "integer")),
    "params bool": (params(n_layers=True), ('"n_layers"', "integer")),
    "params fraction": (params(n_heads=7.5), ('"n_heads"',)),
    "params negative": (params(n_layers=-2), ('"n_layers"', "out of range")),
    "params huge": (params(n_layers=10**12), ('"n_layers"',)),
    "params wide": (params(dim=2**62), ('"dim"',)),
    "params NaN": (params(norm_eps=float("nan")), ('"norm_eps"',)),
    "params theta 0": (params(rope_theta=0), ('"rope_theta"',)),
    "params heads": (params(n_heads=5), ("n_heads 5", "dim 64")),
    "params kv heads": (params(n_kv_heads=3), ("n_kv_heads 3", "n_heads 8")),
    "params many kv heads": (params(n_kv_heads=16), ("n_kv_heads 16",)),
    "params vocabulary": (params(vocab_size=81), ("output.weight", "vocab_size")),
    "params width": (params(multiple_of=256), ("feed_forward.w1", "multiple_of 256")),
    "params more layers": (params(n_layers=3), ("n_layers is 3", "layers.2")),
    "params fewer layers": (params(n_layers=1), ("layers.1", "n_layers 1")),
    "quantised": (params(quantization_args={"group_size": 32}), ("quantization_args", "quantized")),
    "vision": (params(vision_chunk_size=448), ("Vision",)),
    "experts": (params(moe_args={}), ("Llama 4",)),
    "no weights": (lambda f: [file.unlink() for file in f.glob("*.pth")] and None, ("consolidated",)),
    "rank missing": (lambda f: (f / "consolidated.00.pth").unlink(), ("Missing shard: consolidated.00.pth",)),
    "last rank missing": (remove("consolidated.01.pth"), ("1 of 2 shards", "wq")),
    "rank too many": (copy("consolidated.01.pth", "consolidated.02.pth"), ("rows of wq",)),
    "rank twice": (copy("consolidated.01.pth", "consolidated.1.pth"), ("both rank 1",)),
    "tensor missing": (rank(1, lambda s: s.pop(WQ)), ("consolidated.01.pth", WQ, "Missing")),
    "tensor added": (rank(1, lambda s: s.update(extra=torch.ones(1))), ("consolidated.01.pth", "extra")),
    "rank's shape": (
        rank(1, lambda s: s.update({WQ: s[WQ][:8]})),
        ("consolidated.01.pth", WQ, "shape differs"),
    ),
    "rank's dtype": (rank(1, lambda s: s.update({WQ: s[WQ].float()})), ("01.pth", WQ, "dtype differs")),
    "norms differ": (rank(1, lambda s: s.update({NORM: s[NORM] * 2})), ("01.pth", NORM, "two models")),
    "truncated": (truncate("consolidated.01.pth", 0.5), ("consolidated.01.pth", "Truncated")),
    "barely truncated": (truncate("consolidated.00.pth", 0.999), ("consolidated.00.pth", "Truncated")),
    "empty file": (write("consolidated.01.pth", b""), ("consolidated.01.pth", "empty")),
    "HTML": (write("consolidated.01.pth", b"<!DOCTYPE html>"), ("consolidated.01.pth", "HTML")),
    "git-lfs": (write("consolidated.01.pth", b"version https://git-lfs.github.com/spec/v1"), ("git-lfs",)),
    "not a zip": (write("consolidated.01.pth", b"x" * 5000), ("consolidated.01.pth", "Not a PyTorch file")),
    "evil": (evil, ("consolidated.01.pth", "posix.system", "not constructed")),
    "tokenizer empty": (write("tokenizer.model", b""), ("tokenizer.model",)),
    "tokenizer HTML": (write("tokenizer.model", b"<html>"), ("tokenizer.model", "HTML")),
    "tokenizer noise": (write("tokenizer.model", bytes(range(256))), ("tokenizer.model",)),
}


def both(change: Callable[[State], object]) -> Spoil:
    return lambda folder: [rank(number, change)(folder) for number in (0, 1)] and None


CASES |= {
    "missing everywhere": (both(lambda s: s.pop(W2)), (W2, "in no file")),
    "head missing on one rank": (rank(1, lambda s: s.pop("output.weight")), ("output.weight", "Missing")),
    "wrong shape": (both(lambda s: s.update({W2: s[W2][:, 1:]})), (W2, "shape does not match")),
    "transposed": (both(lambda s: s.update({W1: s[W1].t().clone()})), (W1, "shape does not match")),
    "three axes": (both(lambda s: s.update({W1: s[W1][None]})), (W1, "dimensions")),
    "scalar": (both(lambda s: s.update({NORM: torch.tensor(1.0).bfloat16()})), (NORM, "dimensions")),
    "empty tensor": (both(lambda s: s.update({W1: s[W1][:0]})), (W1, "empty")),
    "integers": (both(lambda s: s.update({W1: s[W1].long()})), (W1, "int64")),
    "complex": (both(lambda s: s.update({W1: s[W1].to(torch.complex64)})), (W1, "complex64")),
    "int8": (both(lambda s: s.update({W1: s[W1].to(torch.int8)})), (W1, "int8", "quantized")),
    "float8": (both(lambda s: s.update({W1: s[W1].to(torch.float8_e4m3fn)})), (W1, "float8", "quantized")),
    "LoRA": (
        both(lambda s: s.update({"layers.0.attention.wq.lora_A.weight": s[NORM]})),
        ("lora_A", "LoRA adapter"),
    ),
    "Hugging Face's names": (
        both(lambda s: s.update({"model.layers.0.self_attn.q_proj.weight": s.pop(WQ)})),
        ("q_proj", "Not a Llama tensor"),
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "meta"
    synthetic.make(folder, LLAMA2.but(ranks=2))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_refused(tmp_path: Path, good: Path, case: str) -> None:
    spoil, words = CASES[case]
    source = Path(shutil.copytree(good, tmp_path / "meta"))
    spoil(source)
    before = sorted(tmp_path.rglob("*"))
    run = llama_convert("convert", source, tmp_path / "out")
    assert run.exit_code == 3, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert "Traceback" not in run.stderr
    assert "weights_only=False" not in run.stderr
    assert sorted(tmp_path.rglob("*")) == before


# What is done to a good folder of two ranks: the values that the error expected and found.
VALUES: dict[str, tuple[Spoil, str, str]] = {
    "a string": (params(dim="64"), "an integer", "'64' (str)"),
    "a range": (params(n_layers=-2), "1 to 10,000", "-2"),
    "vocabulary": (params(vocab_size=81), "81", "80"),
    "width": (params(multiple_of=256), "256", "96"),
    "a shape on one rank": (rank(1, lambda s: s.update({WQ: s[WQ][:8]})), "[32, 64]", "[8, 64]"),
    "a dtype on one rank": (rank(1, lambda s: s.update({WQ: s[WQ].float()})), "bfloat16", "float32"),
    "a shape": (both(lambda s: s.update({W2: s[W2][:, 1:]})), "[64, 48]", "[64, 47]"),
    "dimensions": (both(lambda s: s.update({W1: s[W1][None]})), "2", "3"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_expected_and_found(tmp_path: Path, good: Path, case: str) -> None:
    spoil, expected, found = VALUES[case]
    source = Path(shutil.copytree(good, tmp_path / "meta"))
    spoil(source)
    with pytest.raises(InputError) as refused:
        open_meta(find_meta_folder(source))
    assert (refused.value.expected, refused.value.found) == (expected, found)


def test_the_good_folder_is_good(tmp_path: Path, good: Path) -> None:
    assert llama_convert("convert", good, tmp_path / "out").exit_code == 0


def test_repeated_kv_heads_must_be_equal(tmp_path: Path) -> None:
    shape = LLAMA3.but(ranks=8, n_kv_heads=4, kv_repeats=2)
    synthetic.make(tmp_path / "meta", shape)
    rank(3, lambda s: s.update({"layers.1.attention.wv.weight": -s["layers.1.attention.wv.weight"]}))(
        tmp_path / "meta"
    )
    run = llama_convert("convert", tmp_path / "meta", tmp_path / "out")
    assert run.exit_code == 3
    assert "consolidated.03.pth: layers.1.attention.wv.weight" in run.stderr
    assert not (tmp_path / "out").exists()


def test_norms_that_differ_by_rounding_are_let_pass(tmp_path: Path) -> None:
    shape: Shape = LLAMA2.but(ranks=2)
    synthetic.make(tmp_path / "meta", shape)
    rank(1, lambda s: s.update({NORM: s[NORM] * (1 + 2**-8)}))(tmp_path / "meta")
    assert llama_convert("convert", tmp_path / "meta", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["convert"], 2, "SRC is missing"),
        (["convert", "{good}"], 2, "DST is missing"),
        (["convert", "{good}", "{out}", "--dtype", "int4"], 2, "--dtype int4"),
        (["convert", "{good}", "{out}", "--max-shard-size", "lots"], 2, "'lots' is not a size"),
        (["convert", "{good}", "{out}", "--llama-version", "7"], 2, "--llama-version 7"),
        (["convert", "{good}", "{out}", "--llama-version", "3.1"], 2, "does not match the files"),
        (["convert", "{good}", "{out}", "--chat-template", "/nowhere"], 2, "/nowhere"),
        (["convert", "{good}", "{out}", "--no-such-option"], 2, "No such option"),
        (["convert", "{good}", "{good}"], 2, "Is the input folder"),
        (["convert", "/nowhere", "{out}"], 3, "/nowhere: Not found."),
        (["convert", "{good}/params.json", "{out}"], 3, "a file"),
        (["convert", "{good}", "{out}", "--tokenizer", "/nowhere"], 3, "/nowhere"),
        (["convert", "{good}", "/proc/llama"], 4, "/proc/llama"),
        (["convert", "{good}", "{full}"], 5, "holds something"),
        (["convert", "{good}", "{full}/something"], 5, "Is a file"),
        (["convert", "{good}", "{out}", "--strict"], 1, "No tokenizer.model"),
    ],
)
def test_other_refusals(tmp_path: Path, good: Path, arguments: list[str], exit_code: int, words: str) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").touch()
    before = sorted(good.rglob("*"))
    places = {"good": good, "out": tmp_path / "out", "full": full}
    run = llama_convert(*(argument.format(**places) for argument in arguments))
    assert run.exit_code == exit_code, run.stderr
    assert words in " ".join(run.stderr.replace("│", " ").split())
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
    assert sorted(good.rglob("*")) == before
    assert [path.name for path in full.iterdir()] == ["something"]


def test_a_disk_too_small_is_known_beforehand(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_convert.conversion.convert import convert
    from llama_convert.errors import OutputError

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10**4))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"Needs 1\d\d\.\d KB of disk space; 10\.0 KB is free\."):
        convert(good, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_internal_error_is_reported_as_one(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    from llama_convert.cli.errors import handle_errors

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(typer.Exit) as caught, handle_errors(as_json=True, debug=False):
        raise KeyError("surprise")
    assert caught.value.exit_code == 70
    printed = capsys.readouterr()
    assert json.loads(printed.out)["code"] == "INTERNAL"
    assert "KeyError" in printed.err
