"""Opens safetensors files with the safetensors library, as loaders do: a reader independent of ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llama_convert.checkpoints.stored_weight import StoredWeight
from llama_convert.findings import Finding
from llama_convert.formats.files import remote_files


def check_with_library(files: Iterable[Path], weights: Iterable[StoredWeight]) -> list[Finding]:
    """A finding for each file that the library refuses, and each tensor that it reads differently.

    Reads headers only. Skips remote files, which the library cannot open.

    Args:
        files: safetensors files.
        weights: what our reader found in them.
    """
    by_file: dict[Path, list[StoredWeight]] = {file: [] for file in files if file not in remote_files}
    for weight in weights:
        by_file.get(weight.file_of(0, 0), []).append(weight)
    return [finding for file, of_file in by_file.items() for finding in _check_file(file, of_file)]


def _check_file(file: Path, weights: list[StoredWeight]) -> list[Finding]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as content:
            names = {*content.keys()}
            found = {name: content.get_slice(name) for name in names}
            headers = {name: (each.get_dtype(), each.get_shape()) for name, each in found.items()}
    except (SafetensorError, OSError) as error:
        message = f"The safetensors library refuses the file: {error}."
        return [Finding("INPUT_SAFETENSORS", message, file=file.name)]
    return [
        Finding(
            "INPUT_SAFETENSORS",
            "The safetensors library reads another tensor.",
            file=file.name,
            tensor=weight.name,
            expected=_text(expected),
            found=_text(headers.get(weight.name)),
        )
        for weight in weights
        if headers.get(weight.name) != (expected := (weight.dtype.safetensors, [*weight.shape]))
    ]


def _text(header: tuple[str, list[int]] | None) -> str:
    return "no tensor" if header is None else f"{header[0]} {header[1]}"
