"""Writes into an output folder how its verification ended, for whoever finds it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.manifest import CARD, MANIFEST, describe_content, read_manifest, write_manifest
from llama_convert.checkpoints.manifest_check import STALE, agreement, sample_digests
from llama_convert.checkpoints.open import open_checkpoint
from llama_convert.conversion.atomic_file import write_atomically
from llama_convert.conversion.model_card import is_complete, is_ours, render
from llama_convert.conversion.sync import failure
from llama_convert.errors import InputError, UsageError
from llama_convert.stores.filesystem import is_url
from llama_convert.stores.mount import mounted


def record_verification(location: Path | str, verification: Mapping[str, Any]) -> dict[str, int]:
    """Write a verification's result into the manifest, and into the model card where that is still ours.

    Args:
        location: a folder that a conversion has made, or its URL.
        verification: `VerifyReport.abstract`.

    Returns:
        Bytes of each file that was written.

    Raises:
        UsageError: there is no manifest.
        InputError: the manifest is damaged, or describes other weights.
        OutputError: it cannot be written.
    """
    with mounted(location) as place:
        folder = place.path
        written = _written(folder, verification)
        if is_url(location):
            from llama_convert.conversion.upload import Store

            put = Store(str(location), folder).put
        else:
            put = partial(_replace, folder)
        for name, content in written.items():
            put(name, content)
        return {name: len(content) for name, content in written.items()}


def require_manifest(location: Path | str) -> None:
    """See, before hours are spent, whether there is anything to write a result into.

    Raises:
        UsageError: there is no manifest.
        InputError: it is damaged, or describes other weights.
    """
    if not is_url(location):
        _manifest_of(Path(location).expanduser())


def _manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest, if a result can be written into it.

    Raises:
        UsageError: there is none.
        InputError: it is damaged, or describes other weights.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError("BAD_USAGE", f"--record: there is no {MANIFEST} to write the result into")
    if not is_complete(manifest):
        message = "Does not describe a conversion: entries are missing or of the wrong type."
        raise InputError("MANIFEST_VALUE", message, file=folder / MANIFEST)
    if _is_stale(folder, manifest):
        hint = "Remove it, README.md and NOTICE, or leave out --record."
        raise InputError("MANIFEST_STALE", STALE, file=folder / MANIFEST, hint=hint)
    return manifest


def _is_stale(folder: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        digests = sample_digests(open_checkpoint(folder).weights.values())
    except InputError:  # what is wrong with the weights is the result to be written
        return False
    return agreement(folder, manifest, digests).is_stale


def _written(folder: Path, verification: Mapping[str, Any]) -> dict[str, bytes]:
    """The card, if it may be written, and the manifest, which comes last."""
    manifest = _manifest_of(folder)
    manifest["verification"] = verification
    files: dict[str, Any] = manifest["files"]
    content: dict[str, bytes] = {}
    if CARD in files and (folder / CARD).is_file() and is_ours(folder / CARD):
        content[CARD] = render(manifest, sorted(files))
        files[CARD] = describe_content(content[CARD])
    return content | {MANIFEST: write_manifest(manifest)}


def _replace(folder: Path, name: str, content: bytes) -> None:
    try:
        write_atomically(folder / name, content)
    except OSError as error:
        raise failure("cannot be written", error, folder / name) from error
