"""Checkpoints to verify or to verify against: opened as far as possible, and their release agreed upon."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from llama_convert.checkpoints.folders import folders_below, is_huggingface
from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint, read_headers
from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.manifest_check import recorded_version
from llama_convert.checkpoints.meta import MetaCheckpoint, open_meta
from llama_convert.checkpoints.meta_folder import MetaFolder
from llama_convert.checkpoints.source import Checkpoint, HuggingFaceFolder, find_checkpoint
from llama_convert.checkpoints.suggestions import no_checkpoint_at
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.releases import DetectedRelease, Release
from llama_convert.tokenizers import Tokenizer, open_tokenizer

_NO_CHECKPOINT = ("INPUT_NOT_FOUND", "INPUT_AMBIGUOUS", "CONFIG_MISSING", "UNSUPPORTED_MODEL")
"""Codes of the errors for folders without a checkpoint that could be verified."""


@dataclass(frozen=True)
class Input:
    """A folder with a checkpoint in Meta or Hugging Face format."""

    folder: Path
    format: str
    """``meta`` or ``huggingface``."""
    checkpoint: Checkpoint | None
    """None if the headers are too damaged to open it."""
    problems: list[LlamaConvertError] = field(default_factory=list)
    """Everything that is wrong with the headers."""
    tokenizer: Path | None = None
    """``tokenizer.model`` in Meta format, ``tokenizer.json`` in Hugging Face format."""
    meta_tokenizer: Tokenizer | None = None
    """The content of a Meta folder's ``tokenizer.model``; None if it is missing or damaged."""

    @property
    def detected(self) -> DetectedRelease | None:
        """The detected release; None for Hugging Face format, whose files do not name it."""
        return self.checkpoint.detected if isinstance(self.checkpoint, MetaCheckpoint) else None


def open_input(
    path: Path, version: str | None = None, tokenizer: Path | None = None, config_from: Path | None = None
) -> Input:
    """Open a checkpoint of any format as far as possible.

    Args:
        path: its folder or file.
        version: the release of a Meta checkpoint, where its files allow several.
        tokenizer: the ``tokenizer.model`` of a Meta checkpoint, if it is in another folder.
        config_from: the folder with settings and tokenizer, if it is another one.

    Raises:
        InputError: the folder contains no checkpoint.
        UsageError: the files rule ``version`` out.
    """
    try:
        found = find_checkpoint(path, config_from=config_from)
    except InputError as error:
        has_settings = any((path / name).exists() for name in ("config.json", "tokenizer.json"))
        if error.code == "INPUT_NOT_FOUND" and path.is_dir() and has_settings:
            return _open_huggingface(HuggingFaceFolder(path, path))
        if error.code in _NO_CHECKPOINT or not path.is_dir():
            raise
        return Input(path, "meta", None, [error])
    if isinstance(found, HuggingFaceFolder):
        return _open_huggingface(found)
    if found.path != path and path.is_dir() and any(folders_below(path, is_huggingface)):
        raise no_checkpoint_at(path, None)
    return _open_meta(replace(found, tokenizer=tokenizer or found.tokenizer), version)


def _open_huggingface(found: HuggingFaceFolder) -> Input:
    checkpoint, problems = read_headers(found.path, found.found, found.settings)
    tokenizer = found.settings / "tokenizer.json"
    return Input(found.path, "huggingface", checkpoint, problems, tokenizer if tokenizer.exists() else None)


def _open_meta(folder: MetaFolder, version: str | None) -> Input:
    tokenizer = None
    if folder.tokenizer is not None:
        try:
            tokenizer = open_tokenizer(folder.tokenizer)
        except InputError:
            tokenizer = None  # the tokenizer check reports it
    try:
        checkpoint = open_meta(folder, tokenizer.kind if tokenizer else None, version)
    except InputError as error:
        return Input(folder.path, "meta", None, [error], folder.tokenizer, tokenizer)
    return Input(folder.path, "meta", checkpoint, [], folder.tokenizer, tokenizer)


def declared_config(checkpoint: Checkpoint) -> LlamaConfig:
    """The hyper-parameters that other readers take from the folder, which may read config.json alone."""
    if isinstance(checkpoint, HuggingFaceCheckpoint):
        return checkpoint.settings.llama
    return checkpoint.config


def config_file(checkpoint: Checkpoint) -> str:
    """Name of the file with the hyper-parameters."""
    return "config.json" if isinstance(checkpoint, HuggingFaceCheckpoint) else "params.json"


def with_agreed_release(output: Input, source: Input) -> tuple[Input, Input, list[str]]:
    """Output and source, each read as the release that the conversion assumed, if its files allow that.

    Files in Meta format do not always identify their release, which decides the RoPE factor and the context
    length.  The manifest of the output names it; without a manifest, the settings of the other checkpoint do.

    Returns:
        The output, the source, and a note for each whose release differs from the default.
    """
    weights = output.checkpoint.weights.values() if output.checkpoint else ()
    recorded = recorded_version(output.folder, weights)
    source, note_on_source = _as_release(source, output, recorded)
    output, note_on_output = _as_release(output, source, recorded)
    return output, source, [note for note in (note_on_source, note_on_output) if note]


def _as_release(one: Input, other: Input, recorded: str | None) -> tuple[Input, str | None]:
    checkpoint = one.checkpoint
    if not isinstance(checkpoint, MetaCheckpoint) or not checkpoint.detected.alternatives:
        return one, None
    readings = checkpoint.detected.candidates
    release = next((each for each in readings if each.version == recorded), None)
    reason = f"recorded in {MANIFEST}"
    if release is None and other.checkpoint is not None:
        release = _release_like(checkpoint, other.checkpoint)
        reason = f"matches {config_file(other.checkpoint)} of {other.folder}"
    if release is None or release is checkpoint.detected.release:
        return one, None
    read = checkpoint.as_release(release, reason)
    note = (
        f"{one.folder}: Assuming {read.detected.title} ({reason}) instead of {checkpoint.detected.title}. "
        "Use --llama-version to override."
    )
    return replace(one, checkpoint=read), note


def _release_like(checkpoint: MetaCheckpoint, other: Checkpoint) -> Release | None:
    """The possible release with the RoPE settings, and preferably the context length, of another one."""
    wanted = declared_config(other)
    configs = {each: checkpoint.as_release(each, "").config for each in checkpoint.detected.candidates}
    same_rope = [
        each
        for each, config in configs.items()
        if (config.rope_theta, config.rope_scaling) == (wanted.rope_theta, wanted.rope_scaling)
    ]
    same_length = [each for each in same_rope if configs[each].context_length == wanted.context_length]
    return next(iter(same_length or same_rope), None)
