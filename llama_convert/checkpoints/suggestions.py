"""What somebody may have meant who named a path that holds no checkpoint, or not the one that is wanted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from llama_convert.checkpoints.content import Content, content_of, content_of_file
from llama_convert.checkpoints.folders import Holds, below, has_rank_files, is_either, is_huggingface
from llama_convert.errors import InputError
from llama_convert.llama.rotary import CheckpointLayout
from llama_convert.redaction import redact_url

Otherwise = Callable[[Path], str]
"""The command to type for a folder in the other layout."""

_OF_LAYOUT: dict[CheckpointLayout | None, tuple[Holds, str, str]] = {
    "meta": (has_rank_files, "consolidated.*.pth", "params.json and consolidated.00.pth"),
    "huggingface": (is_huggingface, "safetensors", "config.json and model.safetensors"),
    None: (
        is_either,
        "checkpoint: neither consolidated.*.pth nor *.safetensors",
        "params.json and consolidated.00.pth, or config.json and model.safetensors",
    ),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class SuggestionError(InputError):
    """Another path seems to have been meant.

    Args:
        message: what is the matter with the one that was named.
        file: the path that was named.
        instead: words of the command, and what seems to have been meant by them.
        several: whether there are several that may be meant.
    """

    def __init__(self, message: str, *, file: Path, instead: dict[str, str], several: bool = False) -> None:
        code = "INPUT_SEVERAL" if several else "INPUT_NOT_FOUND"
        meant = instead[str(file)]
        hint = f"name one of them: {meant}" if several else f"name this instead: {meant}"
        super().__init__(code, message, file=file, hint=hint)
        self.instead = instead


def command(*words: object) -> str:
    """A command to type; URLs are without their secrets."""
    return shlex.join(["llama-convert", *(redact_url(str(word)) for word in words)])


def no_checkpoint_at(
    path: Path,
    layout: CheckpointLayout | None,
    *,
    output: Path | None = None,
    otherwise: Otherwise | None = None,
) -> InputError:
    """Why a path is refused: what lies there, and what seems to have been meant.

    Args:
        path: what was named.
        layout: the layout that is wanted; None for either.
        output: the folder to write; if the checkpoint is there, the two were swapped.
        otherwise: gives the command for a folder in the other layout.
    """
    holds, _, _ = _OF_LAYOUT[layout]
    if not path.exists():
        return _not_found(path, holds, output)
    if not path.is_dir():
        return _a_file(path, layout, otherwise)
    if found := list(below(path, holds)) or list(below(path, holds, names=2)):
        listed = ", ".join(str(folder.relative_to(path)) for folder in found[:8])
        several = len(found) > 1
        message = f"holds {len(found)} checkpoints: {listed}" if several else f"the checkpoint is in {listed}"
        return SuggestionError(message, file=path, instead={str(path): str(found[0])}, several=several)
    other: CheckpointLayout = "huggingface" if layout == "meta" else "meta"
    is_other, _, _ = _OF_LAYOUT[other]
    if otherwise and (found := [path] if is_other(path) else list(below(path, is_other))):
        where = "" if found[0] == path else f" in {found[0].relative_to(path)}"
        message = f"holds no safetensors, but files of Meta's layout{where}"
        if layout == "meta":
            message = f"holds safetensors{where}: already in Hugging Face's layout"
        return InputError("INPUT_NOT_FOUND", message, file=path, hint=otherwise(found[0]))
    return _swapped(path, holds, output) or _other_content(path, layout)


def _not_found(path: Path, holds: Holds, output: Path | None) -> InputError:
    likely = nearest(path)
    if likely and likely.is_dir() and (holds(likely) or any(below(likely, holds))):
        return SuggestionError("not found", file=path, instead={str(path): str(likely)})
    if swapped := _swapped(path, holds, output):
        return swapped
    if _HUB_NAME.fullmatch(str(path)) and not path.parent.exists():
        return SuggestionError("not found", file=path, instead={str(path): f"hf://{path}"})
    return InputError("INPUT_NOT_FOUND", "not found", file=path)


def _swapped(path: Path, holds: Holds, output: Path | None) -> InputError | None:
    if output is None or not output.is_dir() or not holds(output) or (path.exists() and any(path.iterdir())):
        return None
    message = f"{'is empty' if path.exists() else 'not found'}, but {output} holds a checkpoint"
    return SuggestionError(message, file=path, instead={str(path): str(output), str(output): str(path)})


def _a_file(path: Path, layout: CheckpointLayout | None, otherwise: Otherwise | None) -> InputError:
    message, folder = "a file; expected the folder it lies in", path.parent
    holds, _, _ = _OF_LAYOUT[layout]
    if holds(folder):
        return SuggestionError(message, file=path, instead={str(path): str(folder)})
    if otherwise and is_either(folder):
        return InputError("INPUT_NOT_FOUND", message, file=path, hint=otherwise(folder))
    if content := content_of_file(path):
        message = f"is {content.what}; expected a folder with a checkpoint"
        return InputError("INPUT_NOT_FOUND", message, file=path, hint=content.hint)
    return InputError("INPUT_NOT_FOUND", message, file=path, hint=_other_content(folder, layout).hint)


def _other_content(path: Path, layout: CheckpointLayout | None) -> InputError:
    """What a folder holds that has no checkpoint."""
    if content := content_of(path):
        return no_checkpoint(path, content)
    names = sorted(entry.name for entry in path.iterdir())
    here = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    _, expected, files = _OF_LAYOUT[layout]
    message = f"holds no {expected}; here is {here}" if names else "is empty"
    return InputError("INPUT_NOT_FOUND", message, file=path, hint=f"a checkpoint has {files}")


def no_checkpoint(path: Path, content: Content) -> InputError:
    """Why a folder is refused that holds something else."""
    return InputError("INPUT_NOT_FOUND", f"holds {content.what}", file=path, hint=content.hint)


def tokenizer_named(path: Path) -> Path:
    """The ``tokenizer.model`` that a path names, or a folder that holds one.

    Raises:
        InputError: it does not exist, but another does that is called much the same.
    """
    path = path.expanduser()
    likely = None if path.exists() else nearest(path)
    if likely and likely.is_file():
        raise SuggestionError("not found", file=path, instead={str(path): str(likely)})
    return path / "tokenizer.model" if path.is_dir() else path


def nearest(path: Path) -> Path | None:
    """The path whose names are most like those of one that does not exist."""
    from difflib import get_close_matches  # only for who has mistyped

    likely = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if (likely / part).exists():
            likely /= part
            continue
        try:
            names = {entry.name.lower(): entry.name for entry in likely.iterdir()}
        except OSError:
            return None
        close = get_close_matches(part.lower(), names, n=1, cutoff=0.7)
        if not close:
            return None
        likely /= names[close[0]]
    return likely
