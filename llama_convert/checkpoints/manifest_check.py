"""Comparison of a manifest with the weights next to it.

Fine-tuning tools copy the small files of a model to the folder of their output.  Then the manifest and the
model card there describe other weights: they are stale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.manifest import file_matches, read_manifest
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight
from llama_convert.errors import LlamaConvertError

STALE = "The weights are newer than this manifest and the model card next to it: no checksum matches."
SAMPLE_BYTES = 64 << 20
"""Bytes of weights to compare."""
GLANCE_BYTES = 1 << 20
"""Bytes of weights to compare in commands that otherwise read only headers."""
_BLOCK = 4 << 20


@dataclass(frozen=True)
class ManifestMatch:
    """Result of comparing checksums of weights with those in a manifest."""

    matching: tuple[str, ...]
    """Tensors and rank files whose checksum matches."""
    differing: tuple[str, ...]
    """Tensors and rank files whose checksum differs, and missing rank files."""
    lists_weights: bool
    """Whether the manifest has any checksum of weights."""

    @property
    def is_stale(self) -> bool:
        """Whether no checksum matches: the manifest is of other weights.  If some match, there is damage."""
        return self.lists_weights and not self.matching


def match_manifest(folder: Path, manifest: Mapping[str, Any], checksums: Mapping[str, str]) -> ManifestMatch:
    """Compare weights with a manifest.

    Args:
        folder: the folder of the manifest.
        manifest: its content.
        checksums: XXH3-128 of all or some tensors, by name.
    """
    recorded = manifest["tensors"]
    matches = {name: checksum == recorded[name] for name, checksum in checksums.items() if name in recorded}
    rank_files = {name: record for name, record in manifest["files"].items() if name.endswith(".pth")}
    matches |= {name: _matches(folder / name, record) for name, record in rank_files.items()}
    return ManifestMatch(
        tuple(name for name, is_match in matches.items() if is_match),
        tuple(name for name, is_match in matches.items() if not is_match),
        bool(recorded or rank_files),
    )


def _matches(file: Path, record: Mapping[str, Any]) -> bool:
    """Whether a rank file matches by the CRC-32s in its directory; reads no weights."""
    try:
        return file.is_file() and file_matches(file, record)
    except LlamaConvertError:
        return False


def sample_checksums(weights: Iterable[StoredWeight], max_bytes: int = SAMPLE_BYTES) -> dict[str, str]:
    """XXH3-128 of some weights: those of the last layer, which most fine-tuning changes.

    Args:
        weights: all weights, in the order of the layers.
        max_bytes: limit for the bytes to read.  Short weights are read first, at least one.

    Raises:
        InputError: a file is damaged.
        OutputError: a read error.
    """
    from llama_convert.checkpoints.row_reader import weight_checksum  # imports numpy, which is slow

    of_each_kind = {re.sub(r"\d+", "", weight.name): weight for weight in weights}
    checksums: dict[str, str] = {}
    left = max_bytes
    with SourceFiles() as files:
        for weight in sorted(of_each_kind.values(), key=lambda weight: weight.nbytes):
            left -= weight.nbytes
            if left < 0 and checksums:
                break
            checksums[weight.name] = weight_checksum(files, weight, _BLOCK)
    return checksums


def current_manifest(
    folder: Path, weights: Iterable[StoredWeight], max_bytes: int = SAMPLE_BYTES
) -> dict[str, Any] | None:
    """The manifest of a folder; None if there is none, or if it is stale by a sample of the weights.

    Raises:
        InputError: the manifest or a file is damaged.
        OutputError: a read error.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    stale = match_manifest(folder, manifest, sample_checksums(weights, max_bytes)).is_stale
    return None if stale else manifest


def recorded_version(folder: Path, weights: Iterable[StoredWeight]) -> str | None:
    """Version of the release in the current manifest of a folder; None if there is none, or it is damaged."""
    with suppress(LlamaConvertError):  # verification reports the error
        version = (current_manifest(folder, weights, GLANCE_BYTES) or {}).get("version")
        return version if isinstance(version, str) else None
    return None
