"""The structure check also opens files with the safetensors library, as loaders do."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_convert import convert, verify
from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint, open_huggingface
from llama_convert.formats.files import RemoteFile, remote_files
from llama_convert.verification import safetensors_library
from llama_convert.verification.safetensors_library import check_with_library
from tests.peers import ROOT

FIXTURE = ROOT / "fixtures" / "llama2-mp2"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("library") / "out"
    convert(FIXTURE, out, max_shard_size="100KB")
    return out


@pytest.fixture
def opened(converted: Path, tmp_path: Path) -> HuggingFaceCheckpoint:
    """A copy, read by our reader before a test damages it."""
    shutil.copytree(converted, tmp_path / "copy")
    return open_huggingface(tmp_path / "copy")


def test_every_file_is_opened(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    check = safetensors_library._check_file
    monkeypatch.setattr(
        safetensors_library, "_check_file", lambda file, found: opened.append(file.name) or check(file, found)
    )
    assert verify(converted, checks=None).checks[0].findings == []
    assert opened == sorted(file.name for file in converted.glob("*.safetensors"))
    assert len(opened) > 1


def cut(content: bytes) -> bytes:
    return content[:-1]


def transposed(content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].replace(b"[400,64]", b"[64,400]")
    assert header != content[8 : 8 + length]
    return content[:8] + header + content[8 + length :]


def other_dtype(content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    return content[:8] + content[8 : 8 + length].replace(b'"BF16"', b'"U16" ') + content[8 + length :]


@pytest.mark.parametrize(
    ("damage", "message", "expected", "found"),
    [
        (cut, "The safetensors library refuses the file", None, None),
        (transposed, "The safetensors library reads another tensor.", "BF16 [400, 64]", "BF16 [64, 400]"),
        (other_dtype, "The safetensors library reads another tensor.", "BF16 [400, 64]", "U16 [400, 64]"),
    ],
)
def test_disagreement(
    opened: HuggingFaceCheckpoint,
    damage: Callable[[bytes], bytes],
    message: str,
    expected: str | None,
    found: str | None,
) -> None:
    weight = next(each for each in opened.weights.values() if each.shape == (400, 64))
    file = weight.file_of(0, 0)
    file.write_bytes(damage(file.read_bytes()))
    findings = check_with_library(opened.files, opened.weights.values())
    assert {finding.code for finding in findings} == {"INPUT_SAFETENSORS"}
    assert {finding.file for finding in findings} == {file.name}
    assert findings[0].message.startswith(message)
    if expected:
        (ours,) = [finding for finding in findings if finding.tensor == weight.name]
        assert (ours.expected, ours.found) == (expected, found)


def test_missing_tensor(opened: HuggingFaceCheckpoint) -> None:
    file, weights = opened.files[0], list(opened.weights.values())
    weight = next(each for each in weights if each.file_of(0, 0) == file)
    file.write_bytes(file.read_bytes().replace(weight.name.encode(), b"x" * len(weight.name)))
    (finding,) = check_with_library(opened.files, weights)
    assert (finding.tensor, finding.found) == (weight.name, "no tensor")


def test_remote_files_are_skipped(opened: HuggingFaceCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in opened.files:
        file.write_bytes(bytes(file.stat().st_size))  # a mount has sparse files in their place
        monkeypatch.setitem(remote_files, file, RemoteFile(lambda: None, ""))  # type: ignore[arg-type, return-value]
    assert check_with_library(opened.files, opened.weights.values()) == []
