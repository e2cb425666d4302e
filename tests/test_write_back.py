"""Files are brought to disk while they are written; what the disk refuses meanwhile is not forgotten."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

import pytest

from llama_convert import ConvertOptions, convert
from llama_convert.conversion.output import WriteBack
from llama_convert.errors import InputError, OutputError
from tests import synthetic
from tests.synthetic import LLAMA2

EVERY = mock.patch.object(WriteBack, "_INTERVAL", 4096)


def count_syncs(options: ConvertOptions, folder: Path) -> list[int]:
    synthetic.make(folder / "meta", LLAMA2)
    descriptors: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        descriptors.append(descriptor)
        real(descriptor)

    with mock.patch.object(os, "fsync", fsync):
        convert(folder / "meta", folder / "out", options)
    return descriptors


def test_more_than_once(tmp_path: Path) -> None:
    once = count_syncs(ConvertOptions(), tmp_path / "once")
    with EVERY:
        often = count_syncs(ConvertOptions(), tmp_path / "often")
    assert len(often) > len(once) + 10


def test_never(tmp_path: Path) -> None:
    """`--no-fsync` never waits; what is written is the same."""
    assert count_syncs(ConvertOptions(fsync=False), tmp_path / "never") == []
    count_syncs(ConvertOptions(), tmp_path / "once")
    one, other = (
        {file.name: file.read_bytes() for file in (tmp_path / name / "out").iterdir()}
        for name in ("never", "once")
    )
    assert one == other


def test_an_early_error_counts(tmp_path: Path) -> None:
    """The kernel tells of a lost page once, to whoever asks first; a later yes means nothing."""
    synthetic.make(tmp_path / "meta", LLAMA2)
    real, asked = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal asked
        asked += os.readlink(f"/proc/self/fd/{descriptor}").endswith(".safetensors")
        if asked == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    out = tmp_path / "out"
    with EVERY, mock.patch.object(os, "fsync", fsync), pytest.raises(OutputError) as failed:
        convert(tmp_path / "meta", out)
    assert failed.value.code == "OUTPUT_IO"
    assert "Cannot flush the file to disk" in str(failed.value)
    assert not list((out / ".llama-convert").rglob("*.safetensors"))
    assert not (out / "config.json").exists()
    convert(tmp_path / "meta", out)


def test_a_tokenizer_that_fails_next_to_the_weights(tmp_path: Path) -> None:
    """It ends the run as it would before them, and says so itself."""
    synthetic.make(tmp_path / "meta", LLAMA2)
    error = InputError("TOKENIZER", "is none")
    target = "llama_convert.conversion.to_huggingface._Conversion._write_configs"
    with mock.patch(target, side_effect=error), pytest.raises(InputError, match="is none"):
        convert(tmp_path / "meta", tmp_path / "out")
    assert not (tmp_path / "out").exists()
