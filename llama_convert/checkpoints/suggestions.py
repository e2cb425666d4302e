"""Errors for paths without the expected checkpoint, with a hint on what to pass or type instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from llama_convert.checkpoints.folders import (
    FolderTest,
    folders_below,
    has_rank_files,
    is_checkpoint,
    is_dcp,
    is_huggingface,
)
from llama_convert.checkpoints.unsupported import unsupported_content, unsupported_file
from llama_convert.errors import InputError
from llama_convert.llama.weights import CheckpointFormat
from llama_convert.redaction import redact_url
from llama_convert.text import listed

Otherwise = Callable[[Path], str]
"""Returns the command for a folder in the other format."""

_FORMATS: dict[CheckpointFormat | None, tuple[FolderTest, str, str]] = {
    "meta": (has_rank_files, "No consolidated.*.pth", "params.json and consolidated.00.pth"),
    "huggingface": (is_huggingface, "No safetensors", "config.json and model.safetensors"),
    None: (
        is_checkpoint,
        "No checkpoint",
        "params.json and consolidated.00.pth, or config.json and model.safetensors",
    ),
}
"""Of each format: the test for folders, the message if it is missing, and files that it has."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class SuggestionError(InputError):
    """An error whose hint suggests a path, or for the command line, the command with this path.

    Args:
        message: what is wrong with the path.
        file: the path that was passed.
        instead: replacements for arguments of the command, that of the path among them.
        several: whether the replacement is one of several possible paths.
    """

    def __init__(self, message: str, *, file: Path, instead: dict[str, str], several: bool = False) -> None:
        code = "INPUT_AMBIGUOUS" if several else "INPUT_NOT_FOUND"
        replacement = instead[str(file)]
        hint = f"Pass one of them, for example {replacement}." if several else f"Pass {replacement} instead."
        super().__init__(code, message, file=file, hint=hint)
        self.instead = instead


def command(*arguments: object) -> str:
    """A llama-convert command to type; URLs are without secrets."""
    return shlex.join(["llama-convert", *(redact_url(str(argument)) for argument in arguments)])


def no_checkpoint_at(
    path: Path,
    expected: CheckpointFormat | None,
    *,
    output: Path | None = None,
    otherwise: Otherwise | None = None,
) -> InputError:
    """The error for a path that is not a checkpoint folder.

    Args:
        path: the path that was passed.
        expected: the format that the command reads; None for either.
        output: the folder to write; if it is a checkpoint, the hint is to swap the two.
        otherwise: returns the command for a folder in the other format.
    """
    test, _, _ = _FORMATS[expected]
    if not path.exists():
        return _not_found(path, test, output)
    if not path.is_dir():
        return _not_a_folder(path, expected, otherwise)
    if found := list(folders_below(path, test)) or list(folders_below(path, test, levels=2)):
        names = listed(str(folder.relative_to(path)) for folder in found)
        several = len(found) > 1
        message = f"Contains {len(found)} checkpoints: {names}."
        if not several:
            message = f"The checkpoint is in {names}."
        return SuggestionError(message, file=path, instead={str(path): str(found[0])}, several=several)
    other: CheckpointFormat = "huggingface" if expected == "meta" else "meta"
    other_test, _, _ = _FORMATS[other]
    if otherwise and (found := [path] if other_test(path) else list(folders_below(path, other_test))):
        where = "" if found[0] == path else f" in {found[0].relative_to(path)}"
        message = f"No safetensors, but a checkpoint in Meta format{where}."
        if expected == "meta":
            message = f"The checkpoint{where} is already in Hugging Face format."
        return InputError("INPUT_NOT_FOUND", message, file=path, hint=f"Run: {otherwise(found[0])}")
    if otherwise and is_dcp(path):
        message = "A distributed checkpoint, which only convert and verify read."
        hint = f"Run: {otherwise(path)} --config-from FOLDER"
        return InputError("INPUT_NOT_FOUND", message, file=path, hint=hint)
    return _swapped(path, test, output) or _without_checkpoint(path, expected)


def _not_found(path: Path, test: FolderTest, output: Path | None) -> InputError:
    similar = nearest(path)
    if similar and similar.is_dir() and (test(similar) or any(folders_below(similar, test))):
        return SuggestionError("Not found.", file=path, instead={str(path): str(similar)})
    if swapped := _swapped(path, test, output):
        return swapped
    if _HUB_NAME.fullmatch(str(path)) and not path.parent.exists():
        return SuggestionError("Not found.", file=path, instead={str(path): f"hf://{path}"})
    return InputError("INPUT_NOT_FOUND", "Not found.", file=path)


def _swapped(path: Path, test: FolderTest, output: Path | None) -> InputError | None:
    if output is None or not output.is_dir() or not test(output) or (path.exists() and any(path.iterdir())):
        return None
    message = f"{'Empty' if path.exists() else 'Not found'}, but {output} is a checkpoint."
    return SuggestionError(message, file=path, instead={str(path): str(output), str(output): str(path)})


def _not_a_folder(path: Path, expected: CheckpointFormat | None, otherwise: Otherwise | None) -> InputError:
    message, folder = "This is a file, not a checkpoint folder.", path.parent
    test, _, _ = _FORMATS[expected]
    if test(folder):
        return SuggestionError(message, file=path, instead={str(path): str(folder)})
    if otherwise and is_checkpoint(folder):
        return InputError("INPUT_NOT_FOUND", message, file=path, hint=f"Run: {otherwise(folder)}")
    if error := unsupported_file(path):
        return error
    return InputError("INPUT_NOT_FOUND", message, file=path, hint=_without_checkpoint(folder, expected).hint)


def _without_checkpoint(path: Path, expected: CheckpointFormat | None) -> InputError:
    """The error for a folder without any checkpoint."""
    if error := unsupported_content(path):
        return error
    names = [entry.name for entry in path.iterdir()]
    _, missing, files = _FORMATS[expected]
    message = f"{missing}; found {listed(names)}." if names else "The folder is empty."
    return InputError("INPUT_NOT_FOUND", message, file=path, hint=f"Pass a folder with {files}.")


def existing_folder(path: Path) -> Path:
    """A folder that the user named.

    Raises:
        InputError: it does not exist, or is not a folder.
    """
    path = path.expanduser()
    if path.is_dir():
        return path
    similar = None if path.exists() else nearest(path)
    if similar and similar.is_dir():
        raise SuggestionError("Not found.", file=path, instead={str(path): str(similar)})
    message = "This is a file, not a folder." if path.exists() else "Not found."
    raise InputError("INPUT_NOT_FOUND", message, file=path)


def tokenizer_named(path: Path) -> Path:
    """The ``tokenizer.model`` at a path or in a folder.

    Raises:
        InputError: the path does not exist, but a file with a similar name does.
    """
    path = path.expanduser()
    similar = None if path.exists() else nearest(path)
    if similar and similar.is_file():
        raise SuggestionError("Not found.", file=path, instead={str(path): str(similar)})
    return path / "tokenizer.model" if path.is_dir() else path


def nearest(path: Path) -> Path | None:
    """The existing path most similar to a path that does not exist; None if none is similar."""
    from difflib import get_close_matches  # imported only for mistyped paths

    similar = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if (similar / part).exists():
            similar /= part
            continue
        try:
            names = {entry.name.lower(): entry.name for entry in similar.iterdir()}
        except OSError:
            return None
        close = get_close_matches(part.lower(), names, n=1, cutoff=0.7)
        if not close:
            return None
        similar /= names[close[0]]
    return similar
