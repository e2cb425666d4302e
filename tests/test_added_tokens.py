"""Tokens that only some files know, and options on the tokenizer: nothing is lost or ignored silently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import RefusedError, UsageError
from llama_convert.findings import Finding
from llama_convert.verification.options import VerifyOptions
from llama_convert.verification.report import Check
from llama_convert.verification.verify import verify
from tests.peers import ROOT, Peer
from tests.run import llama_convert
from tests.test_merge_order import extended

LLAMA2 = ROOT / "fixtures/llama2-mp2"
LLAMA3 = ROOT / "fixtures/llama3.1-mp2"
TO_META = ConvertOptions(to="meta")

Add = Callable[[Path], None]


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> Add:
    def add(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_bytes()) if file.exists() else {}
        change(content)
        file.write_text(json.dumps(content))

    return add


NAMES = ["[PAD]", "<|im_start|>", "<|im_end|>"]

RECORDED: dict[str, tuple[Add, list[str]]] = {
    "added_tokens.json": (
        changed("added_tokens.json", lambda c: c.update({n: 400 + i for i, n in enumerate(NAMES)})),
        NAMES,
    ),
    "tokenizer.json": (
        changed(
            "tokenizer.json",
            lambda c: c["added_tokens"].extend({"id": 400 + i, "content": n} for i, n in enumerate(NAMES)),
        ),
        NAMES,
    ),
    "added_tokens_decoder": (
        changed(
            "tokenizer_config.json",
            lambda c: c["added_tokens_decoder"].update(
                {str(400 + i): {"content": n} for i, n in enumerate(NAMES)}
            ),
        ),
        NAMES,
    ),
    "special_tokens_map.json": (
        changed(
            "special_tokens_map.json",
            lambda c: c.update(pad_token="[PAD]", additional_special_tokens=NAMES[1:]),
        ),
        NAMES,
    ),
    "tokenizer_config.json": (
        changed("tokenizer_config.json", lambda c: c.update(pad_token={"content": "[PAD]"})),
        ["[PAD]"],
    ),
    "another id": (changed("added_tokens.json", lambda c: c.update({"</s>": 400})), ["</s>"]),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    for source in (LLAMA2, LLAMA3):
        convert(source, folder / source.name)
    return {path.name: path for path in folder.iterdir()}


def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "hf")


def found(output: Path, source: Path, **options: Any) -> list[Finding]:
    report = verify(output, source, VerifyOptions(checks=(Check.TOKENIZER,), **options))
    return [finding for level in report.checks for finding in level.findings]


@pytest.mark.parametrize("record", RECORDED)
@pytest.mark.parametrize("only", [False, True])
def test_lost_tokens_are_named(record: str, only: bool, converted: dict[str, Path], tmp_path: Path) -> None:
    """Also where the folder has no other file on the tokenizer than this record and tokenizer.model."""
    add, names = RECORDED[record]
    source = copied(converted["llama2-mp2"], tmp_path)
    add(source)
    if only and (source / record).exists():
        for file in source.glob("*tok*.json"):
            if file.name != record:
                file.unlink()
    (warning,) = convert(source, tmp_path / "meta", TO_META).warnings
    assert f"{len(names)} token" in warning
    assert warning.endswith(": " + ", ".join(map(repr, names)) + ".")
    assert (tmp_path / "meta/tokenizer.model").read_bytes() == (LLAMA2 / "tokenizer.model").read_bytes()
    with pytest.raises(RefusedError):
        convert(source, tmp_path / "strict", ConvertOptions(to="meta", strict=True))
    (finding,) = found(tmp_path / "meta", source)
    assert (finding.code, finding.file, finding.is_warning) == ("TOKEN_MISSING", "tokenizer.model", True)
    assert all(repr(name) in finding.message for name in names)


def test_the_first_five_are_named(converted: dict[str, Path], tmp_path: Path) -> None:
    source = copied(converted["llama2-mp2"], tmp_path)
    many = {f"<{number}>": 400 + number for number in range(1234)}
    changed("added_tokens.json", lambda c: c.update(many))(source)
    (warning,) = convert(source, tmp_path / "meta", ConvertOptions(to="meta", dry_run=True)).warnings
    assert "1,234 tokens" in warning
    assert warning.endswith("'<0>', '<1>', '<2>', '<3>', '<4>' and 1,229 more.")


def test_a_tokenizer_that_has_the_tokens_can_be_named(converted: dict[str, Path], tmp_path: Path) -> None:
    source = copied(converted["llama2-mp2"], tmp_path)
    RECORDED["added_tokens.json"][0](source)
    named = tmp_path / "tokenizer.model"
    model = (LLAMA2 / "tokenizer.model").read_bytes()
    named.write_bytes(extended(model, dict.fromkeys(NAMES, 0.0)))
    (warning,) = convert(source, tmp_path / "meta", ConvertOptions(to="meta", tokenizer=named)).warnings
    assert "403 tokens; the embedding has 400 rows" in warning
    codes = {finding.code for finding in found(tmp_path / "meta", source, tokenizer=named)}
    assert codes == {"TOKENIZER_SIZE"}
    assert "TOKENIZER_DIFFERS" in {finding.code for finding in found(tmp_path / "meta", source)}


def test_a_record_that_cannot_be_read(converted: dict[str, Path], tmp_path: Path) -> None:
    source = copied(converted["llama2-mp2"], tmp_path)
    (source / "added_tokens.json").write_text("[1, 2")
    (warning,) = convert(source, tmp_path / "meta", TO_META).warnings
    assert "added_tokens.json: Not a JSON object." in warning


def rename(number: int, name: str) -> Add:
    def change(content: dict[str, Any]) -> None:
        (token,) = [token for token in content["added_tokens"] if token["id"] == number]
        token["content"] = name

    return changed("tokenizer.json", change)


def test_a_renamed_special_token(converted: dict[str, Path], tmp_path: Path) -> None:
    """Meta's code names Llama 3's special tokens itself; a fine-tuner's name for a reserved one is lost."""
    source = copied(converted["llama3.1-mp2"], tmp_path)
    assert convert(source, tmp_path / "plain", TO_META).warnings == []
    rename(386, "<|im_start|>")(source)
    (warning,) = convert(source, tmp_path / "meta", TO_META).warnings
    assert warning.endswith(": '<|im_start|>'.")
    (finding,) = found(tmp_path / "meta", source)
    assert finding.code == "TOKEN_MISSING"


SAVE = """
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(source)
tokenizer.add_tokens(names, special_tokens=True)
tokenizer.save_pretrained(folder)
"""


@pytest.mark.parametrize("name", ["llama2-mp2", "llama3.1-mp2"])
def test_tokens_that_transformers_saved(
    name: str, converted: dict[str, Path], transformers: Peer, tmp_path: Path
) -> None:
    transformers.run(SAVE, source=str(converted[name]), folder=str(tmp_path / "saved"), names=NAMES)
    source = shutil.copytree(converted[name], tmp_path / "hf")
    shutil.copytree(tmp_path / "saved", source, dirs_exist_ok=True)
    (warning,) = convert(source, tmp_path / "meta", TO_META).warnings
    assert warning.endswith(": " + ", ".join(map(repr, NAMES)) + ".")
    assert "TOKEN_MISSING" in {finding.code for finding in found(tmp_path / "meta", source)}


def test_a_tokenizer_that_is_missing_or_another(converted: dict[str, Path], tmp_path: Path) -> None:
    convert(converted["llama2-mp2"], tmp_path / "meta", TO_META)
    file = tmp_path / "meta/tokenizer.model"
    file.write_bytes(extended(file.read_bytes(), {"<extra>": 0.0}))
    for source in (LLAMA2, converted["llama2-mp2"]):
        assert "TOKENIZER_DIFFERS" in {finding.code for finding in found(tmp_path / "meta", source)}
    file.unlink()
    (finding,) = found(tmp_path / "meta", converted["llama2-mp2"])
    assert (finding.code, finding.file) == ("TOKENIZER_MISSING", "tokenizer.model")


# Options that would do nothing.


def test_special_tokens_of_sentencepiece_are_refused(tmp_path: Path) -> None:
    for size in (None, "tokenizer_only"):
        options = ConvertOptions(model_size=size, special_tokens=("<|begin_of_text|>", "<|end_of_text|>"))
        with pytest.raises(UsageError, match="--special-tokens has no effect"):
            convert(LLAMA2, tmp_path / "hf", options)
    done = llama_convert(
        "convert", LLAMA2, tmp_path / "hf", "--special-tokens", "<|begin_of_text|>,<|end_of_text|>"
    )
    assert done.exit_code == 2
    assert not (tmp_path / "hf").exists()


def test_special_tokens_that_cannot_be_used_are_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Missing special token"):
        convert(LLAMA3, tmp_path / "hf", ConvertOptions(special_tokens=("<mine>",), dry_run=True))


@pytest.mark.parametrize("option", ["special_tokens", "chat_template"])
def test_options_without_a_tokenizer_are_refused(option: str, tmp_path: Path) -> None:
    source = shutil.copytree(LLAMA3, tmp_path / "source")
    (source / "tokenizer.model").unlink()
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    value = {"special_tokens": ("<|begin_of_text|>",), "chat_template": tmp_path / "mine.jinja"}[option]
    with pytest.raises(UsageError, match="has no effect without a tokenizer"):
        convert(source, tmp_path / "hf", ConvertOptions(**{option: value}))


def test_options_on_weights_where_none_are_written(tmp_path: Path) -> None:
    options = ConvertOptions(model_size="tokenizer_only", dtype="bf16", num_shards=8)
    warnings = convert(LLAMA3, tmp_path / "hf", options).warnings
    assert [warning.partition(" has")[0] for warning in warnings] == ["--dtype", "--num-shards"]


def test_verify_compares_with_the_tokenizer_that_is_named(converted: dict[str, Path], tmp_path: Path) -> None:
    folder = converted["llama2-mp2"]
    named = tmp_path / "tokenizer.model"
    named.write_bytes(extended((LLAMA2 / "tokenizer.model").read_bytes(), {"<extra>": 0.0}))
    report = verify(folder, None, VerifyOptions(checks=(Check.TOKENIZER,), tokenizer=named))
    assert "TOKEN_MISSING" in {finding.code for level in report.checks for finding in level.findings}
