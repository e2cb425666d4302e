"""Whether a manifest describes the weights next to it.

Fine-tuning tools copy every small file of a model's folder next to the weights that they write: then the
manifest and the model card describe other weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.manifest import file_matches, read_manifest
from llama_convert.checkpoints.row_reader import digest_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight
from llama_convert.errors import LlamaConvertError

STALE = "The weights are newer than this manifest and the model card next to it: no checksum matches."
SAMPLE_BYTES = 64 << 20
GLANCE_BYTES = 1 << 20
"""As much as may be read where only headers are otherwise."""
_BLOCK = 4 << 20


@dataclass(frozen=True)
class Agreement:
    """How checksums of weights compare with those in a manifest."""

    matching: tuple[str, ...]
    """Tensors and rank files whose checksum is the manifest's."""
    differing: tuple[str, ...]
    """Those whose checksum is not, and rank files that are missing."""
    lists_weights: bool
    """Whether the manifest has any checksum of weights."""

    @property
    def is_stale(self) -> bool:
        """Whether no checksum matches: the manifest is of other weights. If only some match, it is damage."""
        return self.lists_weights and not self.matching


def agreement(folder: Path, manifest: Mapping[str, Any], digests: Mapping[str, str]) -> Agreement:
    """Compare weights with a manifest.

    Args:
        folder: where the manifest is.
        manifest: its content.
        digests: XXH3-128 of tensors, by name; of all, or of some.
    """
    said = manifest["tensors"]
    equal = {name: digest == said[name] for name, digest in digests.items() if name in said}
    rank_files = {name: entry for name, entry in manifest["files"].items() if name.endswith(".pth")}
    equal |= {name: _is_same_file(folder / name, entry) for name, entry in rank_files.items()}
    return Agreement(
        tuple(name for name, is_equal in equal.items() if is_equal),
        tuple(name for name, is_equal in equal.items() if not is_equal),
        bool(said or rank_files),
    )


def _is_same_file(file: Path, entry: Mapping[str, Any]) -> bool:
    """By the CRC-32s of its records, without reading them."""
    try:
        return file.is_file() and file_matches(file, entry)
    except LlamaConvertError:
        return False


def sample_digests(weights: Iterable[StoredWeight], most_bytes: int = SAMPLE_BYTES) -> dict[str, str]:
    """XXH3-128 of a few weights: of each kind that of the last layer, which few fine-tunes leave as it was.

    Args:
        weights: all of them, in the order of the layers.
        most_bytes: how much to read; the smallest kinds come first, the smallest one in any case.

    Raises:
        InputError: a file is not what it was.
        OutputError: the machine cannot read.
    """
    of_each_kind = {re.sub(r"\d+", "", weight.name): weight for weight in weights}
    digests: dict[str, str] = {}
    left = most_bytes
    with SourceFiles() as files:
        for weight in sorted(of_each_kind.values(), key=lambda weight: weight.nbytes):
            left -= weight.nbytes
            if left < 0 and digests:
                break
            digests[weight.name] = digest_of(files, weight, _BLOCK)
    return digests


def current_manifest(
    folder: Path, weights: Iterable[StoredWeight], most_bytes: int = SAMPLE_BYTES
) -> dict[str, Any] | None:
    """The folder's manifest, unless there is none or a sample of the weights shows that it is of others.

    Raises:
        InputError: it is damaged, or a file is not what it was.
        OutputError: the machine cannot read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    stale = agreement(folder, manifest, sample_digests(weights, most_bytes)).is_stale
    return None if stale else manifest


def recorded_version(folder: Path, weights: Iterable[StoredWeight]) -> str | None:
    """The version of the release in a folder's current manifest; None if there is none that can be read."""
    with suppress(LlamaConvertError):  # verification says what is wrong with it
        version = (current_manifest(folder, weights, GLANCE_BYTES) or {}).get("version")
        return version if isinstance(version, str) else None
    return None
