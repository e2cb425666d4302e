"""The release of a checkpoint, as far as its settings, its shapes and its manifest tell it."""

from __future__ import annotations

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.inspection.records import Release
from llama_convert.llama.releases import DetectedRelease, TokenizerKind
from llama_convert.verification.inputs import Checkpoint


def release_of(checkpoint: Checkpoint, tokenizer: TokenizerKind | None, manifest: str | None) -> Release:
    """Which release it is, and how that shows.

    Args:
        checkpoint: what was opened.
        tokenizer: the kind of tokenizer beside it.
        manifest: the release that a conversion wrote down.
    """
    if isinstance(checkpoint, MetaCheckpoint):
        return _shown(checkpoint.detected)
    identity = checkpoint.detect(None, tokenizer)
    candidates = identity.candidates
    said = next((row for row in candidates if manifest and manifest.startswith(f"{row.title} ")), None)
    if said is None:
        return _shown(identity)
    return _shown(identity.narrowed_to(said, identity.candidates, f"llama-convert.json says {manifest}"))


def _shown(identity: DetectedRelease) -> Release:
    return Release(
        title=identity.title,
        version=identity.release.version,
        size=identity.size.label if identity.size else None,
        evidence=identity.evidence,
        alternatives=tuple(release.title for release in identity.alternatives),
    )
