"""The release of a checkpoint in Hugging Face's layout, as far as config and shapes tell it."""

from __future__ import annotations

import re

from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.inspection.model import Release
from llama_convert.llama.releases import Identity, Size, TokenizerKind, Traits, identify
from llama_convert.llama.releases import Release as ReleaseRow
from llama_convert.verification.sides import Checkpoint


def release_of(checkpoint: Checkpoint, tokenizer: TokenizerKind | None, manifest: str | None) -> Release:
    """Which release it is, and how that shows.

    Args:
        checkpoint: what was opened.
        tokenizer: the kind of tokenizer beside it.
        manifest: the release that a conversion wrote down.
    """
    if isinstance(checkpoint, MetaCheckpoint):
        return _shown(checkpoint.identity)
    identity = _identity(checkpoint, tokenizer)
    if manifest is None:
        return _shown(identity)
    readings = (identity.release, *identity.alternatives)
    said = next((row for row in readings if manifest.startswith(f"{row.title} ")), None)
    if said is None:
        return _shown(identity)
    others = tuple(row for row in readings if row is not said)
    evidence = (*_proof(identity.evidence), f"llama-convert.json says {manifest}")
    return _shown(Identity(said, _size(said, checkpoint), evidence, others))


def _shown(identity: Identity) -> Release:
    return Release(
        title=identity.title,
        version=identity.release.version,
        size=identity.size.label if identity.size else None,
        evidence=identity.evidence,
        alternatives=tuple(release.title for release in identity.alternatives),
    )


def _identity(checkpoint: HuggingFaceCheckpoint, tokenizer: TokenizerKind | None) -> Identity:
    """As a Meta folder is identified; the context length tells some releases apart, which Meta leaves out."""
    config = checkpoint.config
    folder = checkpoint.folder.resolve()
    traits = Traits(
        shape=_shape(checkpoint),
        vocab_size=config.vocab_size,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        use_scaled_rope=config.rope_scaling is not None,
        tied=config.tied,
        nested=False,
        dtype=checkpoint.dtype.name,
        tokenizer=tokenizer,
        names=folder.name.lower(),
    )
    identity = identify(traits)
    readings = (identity.release, *identity.alternatives)
    factor = config.rope_scaling.factor if config.rope_scaling else None
    settings = (config.context_length, factor)
    fitting = [row for row in readings if (row.context_length, row.rope_factor) == settings]
    if not fitting or len(fitting) == len(readings):
        return identity
    named = [row for row in fitting if re.search(row.name_pattern, traits.names)]
    chosen = identity.release if identity.release in fitting else (named or fitting)[0]
    told = (f"a context of {config.context_length} tokens", *([f"rope factor {factor:g}"] if factor else []))
    evidence = (*_proof(identity.evidence), *told)
    others = tuple(row for row in fitting if row is not chosen)
    return Identity(chosen, _size(chosen, checkpoint), evidence, others)


def _proof(evidence: tuple[str, ...]) -> tuple[str, ...]:
    """What still stands once something stronger than a guess or a name has spoken."""
    guesses = ("the most common of the possible releases", "the folder's name says so")
    return tuple(sign for sign in evidence if sign not in guesses and "weights with norm_eps" not in sign)


def _shape(checkpoint: HuggingFaceCheckpoint) -> tuple[int, int, int, int, int]:
    config = checkpoint.config
    return config.dim, config.n_layers, config.n_heads, config.n_kv_heads, config.ffn_dim


def _size(release: ReleaseRow, checkpoint: HuggingFaceCheckpoint) -> Size | None:
    shape = _shape(checkpoint)
    of_shape = (s for s in release.sizes if (s.dim, s.n_layers, s.n_heads, s.n_kv_heads, s.ffn_dim) == shape)
    return next(of_shape, None)
