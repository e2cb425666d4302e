"""The result of a verification, recorded in the manifest and model card of an output folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.manifest import CARD, MANIFEST, content_record, manifest_json, read_manifest
from llama_convert.checkpoints.manifest_check import STALE, match_manifest, sample_checksums
from llama_convert.checkpoints.source import read_checkpoint
from llama_convert.conversion.atomic_file import write_atomically
from llama_convert.conversion.disk import output_error
from llama_convert.conversion.model_card import is_complete, is_unedited, render
from llama_convert.errors import InputError, UsageError
from llama_convert.stores.filesystem import is_url
from llama_convert.stores.mount import mounted


def record_verification(location: Path | str, verification: Mapping[str, Any]) -> dict[str, int]:
    """Write the result of a verification into the manifest, and into the model card unless it was edited.

    Args:
        location: an output folder or its URL.
        verification: `VerifyReport.abstract`.

    Returns:
        Bytes of each file that was written, by name.

    Raises:
        UsageError: there is no manifest.
        InputError: the manifest is damaged or describes other weights.
        OutputError: a file cannot be written.
    """
    with mounted(location) as mount:
        folder = mount.path
        contents = _new_contents(folder, verification)
        if is_url(location):
            from llama_convert.conversion.upload import Store

            write = Store(str(location), folder).write
        else:
            write = partial(_replace, folder)
        for name, content in contents.items():
            write(name, content)
        return {name: len(content) for name, content in contents.items()}


def require_manifest(location: Path | str) -> None:
    """Check that a result can be recorded, before hours are spent on the verification.

    Raises:
        UsageError: there is no manifest.
        InputError: the manifest is damaged or describes other weights.
    """
    if not is_url(location):
        _recordable_manifest(Path(location).expanduser())


def _recordable_manifest(folder: Path) -> dict[str, Any]:
    """Return the folder's manifest if a result can be written into it.

    Raises:
        UsageError: there is no manifest.
        InputError: the manifest is damaged or describes other weights.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        hint = "Leave out --record. Only folders that llama-convert wrote have a manifest."
        raise UsageError("BAD_USAGE", f"--record: {folder} has no {MANIFEST}.", hint=hint)
    if not is_complete(manifest):
        message = "Does not describe a conversion: entries are missing or of the wrong type."
        raise InputError("MANIFEST_VALUE", message, file=folder / MANIFEST)
    if _is_stale(folder, manifest):
        hint = "Remove it, README.md and NOTICE, or leave out --record."
        raise InputError("MANIFEST_STALE", STALE, file=folder / MANIFEST, hint=hint)
    return manifest


def _is_stale(folder: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        hashes = sample_checksums(read_checkpoint(folder).weights.values())
    except InputError:  # the verification reports what is wrong with the weights
        return False
    return match_manifest(folder, manifest, hashes).is_stale


def _new_contents(folder: Path, verification: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the new card, if it may be replaced, and the new manifest, which is written last."""
    manifest = _recordable_manifest(folder)
    manifest["verification"] = verification
    files: dict[str, Any] = manifest["files"]
    contents: dict[str, bytes] = {}
    if CARD in files and (folder / CARD).is_file() and is_unedited(folder / CARD):
        contents[CARD] = render(manifest, sorted(files))
        files[CARD] = content_record(contents[CARD])
    return contents | {MANIFEST: manifest_json(manifest)}


def _replace(folder: Path, name: str, content: bytes) -> None:
    try:
        write_atomically(folder / name, content)
    except OSError as error:
        raise output_error("Cannot write the file", error, folder / name) from error
