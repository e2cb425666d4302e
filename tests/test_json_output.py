"""Every output of `--json` is as the schema describes it, and a field has one type in all of them."""

from __future__ import annotations

import copy
import errno
import json
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer

from llama_convert import convert, inspect, json_output, verify
from llama_convert.cli.errors import handle_errors
from llama_convert.findings import Finding, RootCause
from llama_convert.json_output import to_json
from tests import large, plant
from tests.peers import ROOT
from tests.run import fresh, llama_convert
from tests.schema import check_output, definition, schema, type_of
from tests.test_real_shapes import official

LLAMA2, LLAMA31, TIED = (ROOT / "fixtures" / name for name in ("llama2-mp2", "llama3.1-mp2", "llama3.2-tied"))
FREE = ("raw_config",)
"""Fields whose content is a file of the user."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, source in (("hf", LLAMA31), ("hf2", LLAMA2), ("tied", TIED)):
        convert(source, folder / name)
    plant.rewrite(
        Path(shutil.copytree(folder / "hf", folder / "wrong")), plant.swapped((plant.gate(0), plant.up(0)))
    )
    nan = plant.with_value(plant.tensors(folder / "hf")[plant.v(0)], float("nan"), 3, 4)
    plant.rewrite(Path(shutil.copytree(folder / "hf", folder / "nan")), lambda s: s.update({plant.v(0): nan}))
    shutil.copytree(folder / "hf", folder / "without tokenizer")
    for file in (folder / "without tokenizer").glob("tokenizer*"):
        file.unlink()
    shutil.copytree(LLAMA31, folder / "incomplete")
    (folder / "incomplete/consolidated.01.pth").unlink()
    shutil.copytree(folder / "hf", folder / "config")
    plant.edit_config(folder / "config", rope_theta=123.0)
    shutil.copytree(folder / "hf", folder / "other config")
    plant.edit_config(folder / "other config", hidden_size="many")
    shutil.copytree(LLAMA31, folder / "meta")
    large.make(folder / "1B", official("3.2", "1B", 1), fill=False)
    return folder


OUTPUTS = {
    # exit code, arguments
    "convert": (0, "convert {meta} {out}"),
    "convert, with a cast": (0, "convert {meta} {out} --dtype fp16"),
    "convert, verified": (0, "convert {meta} {out} --verify"),
    "convert, dry run": (0, "convert {meta} {out} --dry-run"),
    "convert, tokenizer only": (0, "convert {meta} {out} --model-size tokenizer_only"),
    "convert, with a warning": (0, "convert {meta} {out} --model-size 7B --dry-run"),
    "convert to meta": (0, "convert {hf} {out} --to meta --mp 2 --verify"),
    "convert, array task": (0, "convert {meta} {out} --max-shard-size 100KB --array-task 1/3"),
    "convert, dry run of an array task": (
        0,
        "convert {hf} {out} --to meta --mp 2 --array-task 1/2 --dry-run",
    ),
    "shard": (0, "shard {hf} {out} --max-shard-size 100KB"),
    "shard, verified": (0, "shard {meta} {out} --mp 1 --verify"),
    "verify": (0, "verify {hf}"),
    "verify meta": (0, "verify {meta}"),
    "verify with a source": (0, "verify {hf} --source {meta}"),
    "verify with completions": (0, "verify {hf} --source {meta} --prompt Once --max-new-tokens 2"),
    "verify with checksums": (0, "verify {hf} --source {meta} --level values --checksums"),
    "verify, failed": (1, "verify {wrong} --source {meta}"),
    "verify, NaN": (1, "verify {nan} --source {meta}"),
    "verify, skipped": (0, "verify {notokenizer} --level tokenizer,logits"),
    "verify, cannot be opened": (1, "verify {incomplete}"),
    "verify, other shapes": (1, "verify {hf} --source {llama2}"),
    "inspect meta": (0, "inspect {meta}"),
    "inspect huggingface": (0, "inspect {hf}"),
    "inspect a released size": (0, "inspect {1B}"),
    "inspect tied": (0, "inspect {tied} --stats"),
    "inspect a file": (0, "inspect {meta}/consolidated.00.pth --tensors"),
    "inspect, statistics": (0, "inspect {meta} --stats"),
    "inspect, tensors": (0, "inspect {hf} --tensors *norm*"),
    "inspect, incomplete": (1, "inspect {incomplete}"),
    "inspect, impossible settings": (1, "inspect {otherconfig}"),
    "inspect, the same": (0, "inspect {meta} {hf} --stats"),
    "inspect, another setting": (1, "inspect {hf} {config}"),
    "inspect, other values": (1, "inspect {hf} {nan} --stats"),
    "inspect, everything differs": (1, "inspect {meta} {hf2} --stats"),
    "inspect, everything differs the other way": (1, "inspect {hf2} {meta}"),
    "inspect, an incomplete one": (1, "inspect {incomplete} {hf} --stats"),
    "inspect, the same incomplete one": (1, "inspect {hf} {incomplete}"),
    "warning": (1, "convert {meta} {out} --strict --model-size 7B"),
    "usage": (2, "convert {meta}"),
    "usage, found by the parser": (2, "verify {hf} --nonsense"),
    "usage, no such command": (2, "convet {hf} {out}"),
    "input": (3, "convert {meta}/nothing {out}"),
    "input, at a tensor": (3, "convert {otherconfig} {out} --to meta"),
    "output": (4, "convert {meta} {out} --scheduler nonsense://x"),
    "conflict": (5, "convert {meta} {hf2}"),
}


def arguments(text: str, folder: Path, out: Path) -> list[str]:
    places = {"".join(path.name.split()).replace("without", "no"): path for path in folder.iterdir()}
    return [word.format(out=out, llama2=LLAMA2, **places) for word in text.split()] + ["--json"]


@pytest.fixture(scope="module")
def outputs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The output of each command line."""
    found = {}
    for name, (exit_code, text) in OUTPUTS.items():
        run = llama_convert(*arguments(text, folder, tmp_path_factory.mktemp("out") / "out"))
        assert run.exit_code == exit_code, f"{name}: {run.stdout}{run.stderr}"
        found[name] = run.json
    return found


class TestEveryOutput:
    """`tests.run` validates each against the schema."""

    def test_the_envelope(self, outputs: dict[str, Any]) -> None:
        for name, (exit_code, text) in OUTPUTS.items():
            command = None if text.startswith("convet") else text.split()[0]
            content = outputs[name]
            assert list(content)[:4] == ["schema", "command", "ok", "exit_code"]
            assert [content[key] for key in list(content)[:4]] == [2, command, exit_code == 0, exit_code]

    def test_a_key_has_one_type(self, outputs: dict[str, Any]) -> None:
        types: dict[str, set[str]] = defaultdict(set)
        for content in outputs.values():
            for key, value in fields(content):
                types[key] |= {type_of(value) or ""} - {""}
        assert {key: found for key, found in types.items() if len(found - {"array"}) > 1} == {}
        assert {"release", "files", "checks", "differences", "casts", "stats", "completions"} <= set(types)

    def test_every_field_is_seen(self, outputs: dict[str, Any]) -> None:
        """And with a value other than null or an empty list, unless no checkpoint here can have one."""
        seen = {
            key for content in outputs.values() for key, value in fields(content) if value not in (None, [])
        }
        unseen = set(types_in_the_schema()) - seen
        assert unseen - {"explained_by"} == {"shared_storages", "saved", "provenance"}

    def test_finished_array_tasks(self, folder: Path, tmp_path: Path) -> None:
        line = ("convert", folder / "meta", tmp_path / "out", "--max-shard-size", "100KB", "--json")
        runs = [llama_convert(*line, "--array-task", f"{task}/2") for task in (1, 2)]
        assert [run.json["finalized"] for run in runs] == [False, True]
        assert all({file["name"] for file in run.json["files"]} for run in runs)
        assert llama_convert(*line, "--finish").json["finalized"]
        missing = llama_convert(*line[:2], tmp_path / "no", *line[3:], "--finish")
        assert (missing.exit_code, missing.json["code"]) == (4, "ARRAY_TASKS_MISSING")

    def test_in_a_separate_process(self, folder: Path) -> None:
        assert fresh("inspect", folder / "meta", "--json").exit_code == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_interruptions(
        self, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # A background job ignores some of them, and so would the command.
        handlers = {each: signal.signal(each, signal.default_int_handler) for each in signals}

        def stopped(*_: Any, **__: Any) -> None:
            signal.raise_signal(number)

        monkeypatch.setattr("llama_convert.conversion.runner.execute", stopped)
        try:
            run = llama_convert("convert", LLAMA31, tmp_path / "out", "--json")
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
        assert (run.exit_code, run.json["command"]) == (128 + number, "convert")
        assert (run.json["resumable"], run.json["saved"]) == (False, None)

    @pytest.mark.parametrize(
        ("error", "exit_code", "code"),
        [
            (MemoryError(), 4, "OUT_OF_MEMORY"),
            (OSError(errno.EIO, "I/O error", "some file"), 4, "INPUT_IO"),
            (ZeroDivisionError("x"), 70, "INTERNAL"),
        ],
    )
    def test_other_exceptions(
        self, error: Exception, exit_code: int, code: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with (
            mock.patch.object(sys, "argv", ["llama-convert", "inspect", "x"]),
            pytest.raises(typer.Exit),
            handle_errors(as_json=True, debug=False),
        ):
            raise error
        content = json.loads(capsys.readouterr().out)
        check_output(content)
        assert (content["exit_code"], content["code"], content["command"]) == (exit_code, code, "inspect")


class TestValues:
    def test_verification_is_the_object_of_verify(self, outputs: dict[str, Any]) -> None:
        alone, with_convert = outputs["verify with a source"], outputs["convert, verified"]["verification"]
        assert set(alone) == {"schema", "command", "exit_code", *with_convert}

    def test_casts(self, outputs: dict[str, Any]) -> None:
        casts = outputs["convert, with a cast"]["casts"]
        assert len({cast["tensor"] for cast in casts}) == len(casts) == 30
        assert all(cast["elements"] > 0 for cast in casts)

    def test_files(self, outputs: dict[str, Any], folder: Path) -> None:
        sizes = {file.name: file.stat().st_size for file in (folder / "hf").iterdir()}
        listed = {file["name"]: file["bytes"] for file in outputs["inspect huggingface"]["files"]}
        assert listed == sizes

    def test_alternatives_are_versions(self, outputs: dict[str, Any]) -> None:
        converted, inspected = outputs["convert"]["release"], outputs["inspect meta"]["release"]
        verified = outputs["verify with a source"]["release"]
        assert converted == inspected
        assert converted["alternatives"]
        assert {key: verified[key] for key in ("title", "version", "size")} == {
            key: converted[key] for key in ("title", "version", "size")
        }

    def test_official_files(self, outputs: dict[str, Any]) -> None:
        files = outputs["verify with checksums"]["official_files"]
        assert {file["checkpoint"] for file in files} == {"output", "source"}
        assert {"file": "params.json", "checkpoint": "source"}.items() <= next(
            file for file in files if file["file"] == "params.json"
        ).items()

    def test_completions(self, outputs: dict[str, Any]) -> None:
        completions = outputs["verify with completions"]["completions"]
        assert completions["source"] == completions["output"] != ""
        assert outputs["verify"]["completions"] is None

    def test_numbers_that_are_not_finite(self, outputs: dict[str, Any]) -> None:
        (difference,) = outputs["inspect, other values"]["value_differences"]
        assert (difference["different_elements"], difference["max_difference"]) == (1, None)

    def test_differences(self, outputs: dict[str, Any]) -> None:
        assert outputs["inspect, another setting"]["differences"] == [
            {"kind": "config", "name": "rope_theta", "a": "500000.0", "b": "123.0"}
        ]
        found = outputs["inspect, everything differs"]["differences"]
        assert {difference["kind"] for difference in found} == {"config", "shape", "tokenizer"}
        names = {difference["name"] for difference in found if difference["kind"] == "tokenizer"}
        assert names <= {"file", "kind", "vocab_size", "special", "xxh3_128"}

    def test_to_json_of_records(self, folder: Path) -> None:
        """The same as on the command line, without the envelope."""
        records = (
            ("verify", to_json(verify(folder / "hf"))),
            ("inspect", to_json(inspect(folder / "hf"))),
        )
        for command, content in records:
            check_output(json_output.envelope(command, 0, content))
        content = to_json(convert(LLAMA31, folder / "again"))
        check_output(json_output.envelope("convert", 0, {"dry_run": False, **content, "verification": None}))

    def test_explained_by(self) -> None:
        """The finding that explains another one."""
        assert json_output.finding(Finding("TENSOR_SHAPE", "x"))["explained_by"] is None
        cause = {"check": "structure", "code": "CONFIG_DIFFERS", "message": "x", "tensor": None}
        assert json_output.root_cause(RootCause("structure", "CONFIG_DIFFERS", "x")) == cause


class TestSchema:
    def test_it_is_valid(self) -> None:
        from jsonschema import Draft202012Validator

        Draft202012Validator.check_schema(schema())
        assert schema()["$id"] == f"urn:llama-convert:output:{json_output.SCHEMA}"

    def test_help_prints_it(self) -> None:
        run = llama_convert("help", "json-schema")
        assert (run.exit_code, json.loads(run.stdout)) == (0, schema())

    def test_a_key_has_one_type(self) -> None:
        types = types_in_the_schema()
        assert {key: found for key, found in types.items() if len(found) > 1} == {}
        assert len(types) > 120

    def test_every_field_is_described_and_required(self) -> None:
        optional = {"limits"}
        for name, part in schema()["$defs"].items():
            assert part["description"][-1] == ".", name
            if "allOf" in part:
                continue
            for key, field in part["properties"].items():
                assert field["description"][-1] == ".", (name, key)
            assert name in optional or part["required"] == list(part["properties"]), name

    def test_every_definition_is_used(self) -> None:
        used = {ref.rpartition("/")[2] for ref in references(schema())}
        assert used == set(schema()["$defs"])

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: content.update(new=1),
            lambda content: content["release"].update(new=1),
            lambda content: content["checks"][0].update(new=1),
            lambda content: content["checks"][0]["findings"].append({}),
            lambda content: content["checks"][-1]["metrics"].update(new=1),
            lambda content: content["checks"][-1]["metrics"]["layers"][0].update(new=1),
            lambda content: content.pop("path"),
            lambda content: content["release"].pop("title"),
            lambda content: content.update(ok="yes"),
            lambda content: content.update(command="inspect"),
        ],
    )
    def test_tests_allow_nothing_else(
        self, outputs: dict[str, Any], change: Callable[[dict[str, Any]], Any]
    ) -> None:
        content = copy.deepcopy(outputs["verify with a source"])
        check_output(content)
        change(content)
        with pytest.raises(AssertionError):
            check_output(content)


def fields(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, nested ones included."""
    if isinstance(content, list):
        for each in content:
            yield from fields(each)
    elif isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            if key not in FREE:
                yield from fields(value)


def references(part: Any) -> Iterator[str]:
    """Every `$ref`."""
    if isinstance(part, list):
        for each in part:
            yield from references(each)
    elif isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from references(each)


def types_in_the_schema() -> dict[str, set[str]]:
    """The types of each field besides null, over all definitions."""
    types: dict[str, set[str]] = defaultdict(set)
    for part in schema()["$defs"].values():
        for key, field in part.get("properties", {}).items():
            types[key] |= declared(field)
    return types


def declared(field: dict[str, Any]) -> set[str]:
    """The types that a schema allows besides null, as `type_of` names them."""
    if "$ref" in field:
        return declared(definition(field["$ref"].rpartition("/")[2]))
    if "anyOf" in field:
        return {each for option in field["anyOf"] for each in declared(option)}
    names = field["type"] if isinstance(field["type"], list) else [field["type"]]
    return {
        f"array of {' or '.join(sorted(declared(field['items'])))}" if name == "array" else name
        for name in names
        if name != "null"
    }
