"""What is verified, or verified against: a checkpoint in either layout, opened as far as it can be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from llama_convert.checkpoints.folders import below, is_huggingface
from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint, survey
from llama_convert.checkpoints.locate import MetaFolder, locate
from llama_convert.checkpoints.meta import MetaCheckpoint, open_meta
from llama_convert.checkpoints.suggestions import no_checkpoint_at
from llama_convert.errors import InputError, LlamaConvertError
from llama_convert.llama.releases import Identity
from llama_convert.tokenizers import Tokenizer, open_tokenizer

Checkpoint = MetaCheckpoint | HuggingFaceCheckpoint


@dataclass(frozen=True)
class Input:
    """A folder, its layout, and its checkpoint unless its headers are too wrong for one."""

    folder: Path
    layout: str
    checkpoint: Checkpoint | None
    problems: list[LlamaConvertError] = field(default_factory=list)
    """Everything that is wrong with its headers."""
    tokenizer: Path | None = None
    """``tokenizer.model`` of a Meta folder, ``tokenizer.json`` of the other kind."""
    words: Tokenizer | None = None
    """What a Meta folder's ``tokenizer.model`` holds, unless it is damaged."""

    @property
    def identity(self) -> Identity | None:
        """The release that a Meta checkpoint was detected as; None for other checkpoints."""
        return self.checkpoint.identity if isinstance(self.checkpoint, MetaCheckpoint) else None


def open_input(path: Path, version: str | None = None, tokenizer: Path | None = None) -> Input:
    """The checkpoint in a folder, whichever layout it has.

    Args:
        path: what the user named.
        version: the release to take a Meta checkpoint for, where its files allow several.
        tokenizer: ``tokenizer.model`` of a Meta checkpoint that lies elsewhere.

    Raises:
        InputError: there is no checkpoint here.
        UsageError: ``version`` cannot be true of the files.
    """
    if not path.is_dir():
        raise no_checkpoint_at(path, None)
    if is_huggingface(path):
        return _huggingface_side(path)
    try:
        folder = locate(path)
    except InputError as error:
        if error.code not in ("INPUT_NOT_FOUND", "INPUT_SEVERAL"):
            return Input(path, "meta", None, [error])
        settings = any((path / name).exists() for name in ("config.json", "tokenizer.json"))
        if settings and error.code == "INPUT_NOT_FOUND":
            return _huggingface_side(path)
        if error.file != path:
            raise
        raise no_checkpoint_at(path, None) from None
    if folder.path != path and any(below(path, is_huggingface)):
        raise no_checkpoint_at(path, None)
    return _meta_side(replace(folder, tokenizer=tokenizer or folder.tokenizer), version)


def _huggingface_side(path: Path) -> Input:
    checkpoint, problems = survey(path)
    tokenizer = path / "tokenizer.json"
    return Input(path, "huggingface", checkpoint, problems, tokenizer if tokenizer.exists() else None)


def _meta_side(folder: MetaFolder, version: str | None) -> Input:
    words = None
    if folder.tokenizer is not None:
        try:
            words = open_tokenizer(folder.tokenizer)
        except InputError:
            words = None  # the tokenizer level says what is wrong with it
    try:
        checkpoint = open_meta(folder, words.kind if words else None, version)
    except InputError as error:
        return Input(folder.path, "meta", None, [error], folder.tokenizer, words)
    return Input(folder.path, "meta", checkpoint, [], folder.tokenizer, words)
