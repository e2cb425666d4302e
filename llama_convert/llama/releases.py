"""Table of Meta's Llama releases, and detection of the release of a checkpoint.

Files rarely name their release, and some releases have the same files.  `detect_release` lists all releases
that match the files and chooses one; ``--llama-version`` and the folder's name choose only among these.
Values: the ``params.json`` files and Hugging Face configs that Meta published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from llama_convert.errors import UsageError

TokenizerKind = Literal["sentencepiece", "tiktoken"]


@dataclass(frozen=True)
class Size:
    """Hyper-parameters of one size of a release."""

    label: str
    """For example ``8B``, as in ``--model-size``."""
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    norm_eps: tuple[float, ...] = (1e-5,)
    """Values that ``params.json`` may have."""


@dataclass(frozen=True)
class Release:
    """A release of Meta: properties of its files, and settings of its Hugging Face checkpoints."""

    version: str
    """Value of ``--llama-version``."""
    title: str
    """For example ``Llama 3.1``."""
    tokenizer: TokenizerKind
    sizes: tuple[Size, ...]
    context_length: int
    """Tokens."""
    name_pattern: str
    """Regular expression for the names of its folders, in lower case."""
    rope_theta: float = 10000.0
    """Default if ``params.json`` has no ``rope_theta``."""
    rope_factor: float | None = None
    """RoPE scaling factor if ``use_scaled_rope`` is set; ``params.json`` does not contain it."""
    tied: bool = False
    """The LM head is the embedding matrix."""
    grouped_query: bool = True
    """Whether any size has fewer KV heads than query heads."""
    accepted_versions: tuple[str, ...] = ()
    """Other values of ``--llama-version`` that select it, as users of the Hugging Face script pass them."""
    instruct: bool | None = None
    """Whether it is a chat model; None if base and chat models were released with the same settings."""
    chat_template: str | None = None
    """Name in `tokenizers.CHAT_TEMPLATES`."""
    nested: bool = False
    """All keys of its ``params.json`` are below a key ``model``."""
    implies_scaling: bool = False
    """The model has RoPE scaling even if ``params.json`` has no ``use_scaled_rope``."""
    special_tokens: Literal["llama3", "llama3.1"] = "llama3.1"
    """Names of the 256 special tokens of a tiktoken vocabulary."""
    sampling: tuple[tuple[str, object], ...] = ()
    """Keys of ``generation_config.json`` besides the BOS and EOS ids."""
    model_max_length: int | None = None
    """Tokens in ``tokenizer_config.json``; None for no limit."""


_SAMPLING = (("do_sample", True), ("temperature", 0.6), ("top_p", 0.9))
_7B = (4096, 32, 32, 32, 11008)
_13B = (5120, 40, 40, 40, 13824)
_8B = (4096, 32, 32, 8, 14336)
_70B = (8192, 80, 64, 8, 28672)
_1B = (2048, 16, 32, 8, 8192)

RELEASES: tuple[Release, ...] = (
    Release(
        version="2",
        title="Llama 2",
        tokenizer="sentencepiece",
        # The first upload of 7B-chat had 1e-06; Meta later stated that 1e-05 is correct.
        sizes=(Size("7B", *_7B, (1e-5, 1e-6)), Size("13B", *_13B, (1e-5, 1e-6)), Size("70B", *_70B)),
        context_length=4096,
        name_pattern=r"llama[-_ ]?2",
        chat_template="llama2",
        sampling=(*_SAMPLING, ("max_length", 4096), ("pad_token_id", 0)),
    ),
    Release(
        version="1",
        title="LLaMA 1",
        tokenizer="sentencepiece",
        sizes=(
            Size("7B", *_7B, (1e-6,)),
            Size("13B", *_13B, (1e-6,)),
            Size("30B", 6656, 60, 52, 52, 17920, (1e-6,)),
            Size("65B", 8192, 80, 64, 64, 22016),
        ),
        context_length=2048,
        name_pattern=r"llama[-_ ]?1(?!\d)",
        grouped_query=False,
        instruct=False,
    ),
    Release(
        version="code",
        title="Code Llama",
        tokenizer="sentencepiece",
        sizes=(
            Size("7B", *_7B),
            Size("13B", *_13B),
            Size("34B", 8192, 48, 64, 8, 22016),
            Size("70B", *_70B),
        ),
        context_length=16384,
        name_pattern=r"code[-_ ]?llama",
        rope_theta=1e6,
        accepted_versions=("1", "2"),
        chat_template="llama2",
    ),
    Release(
        version="Guard-1",
        title="Llama Guard 1",
        tokenizer="sentencepiece",
        sizes=(Size("7B", *_7B),),
        context_length=4096,
        name_pattern=r"guard(?![-_ ]?[234])",
        accepted_versions=("2",),
        grouped_query=False,
        instruct=False,
        nested=True,
    ),
    Release(
        version="3",
        title="Llama 3",
        tokenizer="tiktoken",
        sizes=(Size("8B", *_8B), Size("70B", *_70B)),
        context_length=8192,
        name_pattern=r"llama[-_ ]?3(?!\.\d)",
        rope_theta=500000.0,
        chat_template="llama3",
        special_tokens="llama3",
        sampling=(*_SAMPLING, ("max_length", 4096)),
    ),
    Release(
        version="Guard-2",
        title="Llama Guard 2",
        tokenizer="tiktoken",
        sizes=(Size("8B", *_8B),),
        context_length=8192,
        name_pattern=r"guard[-_ ]?2",
        rope_theta=500000.0,
        instruct=False,
        special_tokens="llama3",
        accepted_versions=("3",),
        sampling=(*_SAMPLING, ("max_length", 4096)),
    ),
    Release(
        version="3.1",
        title="Llama 3.1",
        tokenizer="tiktoken",
        sizes=(Size("8B", *_8B), Size("70B", *_70B), Size("405B", 16384, 126, 128, 8, 53248)),
        context_length=131072,
        name_pattern=r"llama[-_ ]?3\.1",
        rope_theta=500000.0,
        rope_factor=8.0,
        chat_template="llama3.1",
        sampling=_SAMPLING,
        model_max_length=131072,
    ),
    Release(
        version="3.2",
        title="Llama 3.2",
        tokenizer="tiktoken",
        sizes=(Size("1B", *_1B), Size("3B", 3072, 28, 24, 8, 8192)),
        context_length=131072,
        name_pattern=r"llama[-_ ]?3\.2",
        rope_theta=500000.0,
        rope_factor=32.0,
        tied=True,
        chat_template="llama3.2",
        sampling=_SAMPLING,
        model_max_length=131072,
    ),
    Release(
        version="3.3",
        title="Llama 3.3",
        tokenizer="tiktoken",
        sizes=(Size("70B", *_70B),),
        context_length=131072,
        name_pattern=r"llama[-_ ]?3\.3",
        rope_theta=500000.0,
        rope_factor=8.0,
        accepted_versions=("3.1",),
        instruct=True,  # no base model was released
        chat_template="llama3.1",
        sampling=_SAMPLING,
        model_max_length=131072,
    ),
    Release(
        version="Guard-3",
        title="Llama Guard 3",
        tokenizer="tiktoken",
        sizes=(Size("8B", *_8B), Size("1B", *_1B)),
        context_length=131072,
        name_pattern=r"guard[-_ ]?3",
        rope_theta=500000.0,
        rope_factor=8.0,
        instruct=True,
        implies_scaling=True,
        sampling=_SAMPLING,
        model_max_length=131072,
    ),
)
"""In order of preference if several match and there is no other evidence."""

VERSIONS = tuple(release.version for release in RELEASES)


def released_kv_heads(dim: int, n_layers: int, n_heads: int, ffn_dim: int) -> int | None:
    """KV heads of the release with this shape; None for a shape that Meta did not release."""
    for release in RELEASES:
        for size in release.sizes:
            if (size.dim, size.n_layers, size.n_heads, size.ffn_dim) == (dim, n_layers, n_heads, ffn_dim):
                return size.n_kv_heads
    return None


@dataclass(frozen=True)
class ReleaseTraits:
    """Properties of a checkpoint that distinguish releases."""

    shape: tuple[int, int, int, int, int]
    """dim, n_layers, n_heads, n_kv_heads (distinct), ffn_dim."""
    vocab_size: int
    norm_eps: float
    rope_theta: float | None
    """None if ``params.json`` has none."""
    use_scaled_rope: bool
    tied: bool
    nested: bool
    """All keys of ``params.json`` are below a key ``model``."""
    dtype: str
    tokenizer: TokenizerKind | None
    """None if there is no tokenizer."""
    names: str
    """Names of the folder and its parents that may name the release, in lower case."""

    @property
    def grouped_query(self) -> bool:
        """Whether there are fewer KV heads than query heads."""
        return self.shape[3] < self.shape[2]


@dataclass(frozen=True)
class DetectedRelease:
    """The release detected for a checkpoint."""

    release: Release
    size: Size | None
    """None for a shape that Meta did not release."""
    evidence: tuple[str, ...]
    """Why this release, for example ``128256 tokens``."""
    alternatives: tuple[Release, ...]
    """Other releases that match the files; empty if ``--llama-version`` was given."""

    @property
    def title(self) -> str:
        """For example ``Llama 3.1 8B``; for other shapes ``Llama 3.1 architecture (custom size)``."""
        return f"{self.release.title} {self.size.label if self.size else 'architecture (custom size)'}"

    @property
    def candidates(self) -> tuple[Release, ...]:
        """All releases that match the files, the detected one first."""
        return self.release, *self.alternatives

    def narrowed_to(self, release: Release, candidates: Iterable[Release], *evidence: str) -> DetectedRelease:
        """The result after stronger evidence than a guess.

        Args:
            release: the release that the evidence selects.
            candidates: all releases that still match, ``release`` among them.
            evidence: added to that of this result, from which guesses are removed.
        """
        kept = [each for each in self.evidence if each not in _GUESSES and _DTYPE_GUESS not in each]
        others = tuple(each for each in candidates if each is not release)
        return replace(self, release=release, evidence=(*kept, *evidence), alternatives=others)


_FOLDER_NAME = "name of the folder"
_MOST_COMMON = "most common of the matching releases"
_GUESSES = (_FOLDER_NAME, _MOST_COMMON)
_DTYPE_GUESS = "with norm_eps"


def _tokenizer_kind(traits: ReleaseTraits) -> tuple[TokenizerKind, str]:
    """Kind of tokenizer of the release, and the evidence for it."""
    if traits.tokenizer:
        return traits.tokenizer, f"{traits.tokenizer} tokenizer"
    if traits.vocab_size in (32000, 32016):
        return "sentencepiece", f"{traits.vocab_size} tokens"
    if traits.vocab_size == 128256:
        return "tiktoken", "128256 tokens"
    if traits.use_scaled_rope or traits.rope_theta == 500000.0:
        return "tiktoken", "RoPE settings of Llama 3 or later"
    return "sentencepiece", "no settings of Llama 3 or later"


def _contradiction(release: Release, traits: ReleaseTraits) -> str | None:
    """Why the files cannot be of a release, regardless of its sizes; None if they can."""
    kind, evidence = _tokenizer_kind(traits)
    raised_theta = (traits.rope_theta or 0) > 10000 or traits.vocab_size == 32016
    if release.tokenizer != kind:
        return f"{release.title} has a {release.tokenizer} tokenizer, these files have {evidence}"
    if release.nested != traits.nested:
        return 'only Llama Guard 1 has a key "model" in params.json'
    if traits.grouped_query and not release.grouped_query:
        return f"{release.title} has no grouped-query attention, but n_kv_heads is {traits.shape[3]}"
    if traits.use_scaled_rope and not release.rope_factor:
        return f"{release.title} has no RoPE scaling, but params.json has use_scaled_rope"
    if release.rope_factor and not traits.use_scaled_rope and not release.implies_scaling:
        return f"{release.title} has RoPE scaling, but params.json has no use_scaled_rope"
    if kind == "sentencepiece" and raised_theta != (release.version == "code"):
        found = f"rope_theta {traits.rope_theta or 10000.0:g} and {traits.vocab_size} tokens"
        return f"only Code Llama has rope_theta above 10000 or 32016 tokens, these files have {found}"
    return None


def _size(release: Release, traits: ReleaseTraits, *, exact: bool = True) -> Size | None:
    """The size of a release with this shape and, if ``exact``, with these settings."""
    for size in release.sizes:
        if (size.dim, size.n_layers, size.n_heads, size.n_kv_heads, size.ffn_dim) == traits.shape:
            settings_match = traits.norm_eps in size.norm_eps and (release.tied or not traits.tied)
            return size if settings_match or not exact else None
    return None


def _candidates(traits: ReleaseTraits) -> list[Release]:
    """All releases that match the files, the most likely first; at least one."""
    possible = [release for release in RELEASES if _contradiction(release, traits) is None]
    for exact in (True, False):
        if of_this_size := [release for release in possible if _size(release, traits, exact=exact)]:
            possible = of_this_size
            break
    if not possible:
        kind, _ = _tokenizer_kind(traits)
        possible = [next(release for release in RELEASES if release.tokenizer == kind)]
    llama1 = traits.dtype == "float16" and traits.norm_eps == 1e-6

    def unlikely(release: Release) -> tuple[bool, bool]:
        return release.tied != traits.tied, (release.version == "1") != llama1

    return sorted(possible, key=unlikely)


def parse_version(text: str) -> Release:
    """The release named by, for example, ``3.1``, ``v3.1``, ``Llama-3.1`` or ``guard3``.

    Raises:
        UsageError: no release has this name.
    """

    def normalized(name: str) -> str:
        return re.sub(r"[^a-z0-9.]", "", name.lower())

    name = normalized(text).removeprefix("meta").removeprefix("v").removesuffix(".0")
    for release in RELEASES:
        if name in (normalized(release.version), normalized(release.title)):
            return release
    hint = f"Choose one of {', '.join(sorted(VERSIONS))}."
    raise UsageError("BAD_VERSION", f"Unknown release: --llama-version {text}.", hint=hint)


def _selected(version: str, candidates: list[Release], traits: ReleaseTraits) -> Release:
    """The candidate that ``--llama-version`` names.

    Raises:
        UsageError: it names none of them.
    """
    named = parse_version(version)
    if named in candidates:
        return named
    for release in candidates:
        if named.version in release.accepted_versions:
            return release
    reason = _contradiction(named, traits)
    reason = reason or f"{named.title} was not released with this shape and these settings"
    found = " or ".join(_title(release, traits) for release in candidates)
    raise UsageError(
        "VERSION_MISMATCH",
        f"--llama-version {version} ({named.title}) does not match the files ({found}): {reason}.",
        hint="Omit --llama-version. The release is detected from the files.",
    )


def _title(release: Release, traits: ReleaseTraits) -> str:
    size = _size(release, traits, exact=False)
    return f"{release.title} {size.label}" if size else release.title


def detect_release(traits: ReleaseTraits, version: str | None = None) -> DetectedRelease:
    """The release of a checkpoint with these traits.

    Args:
        traits: properties of the checkpoint.
        version: ``--llama-version``, which selects one of the matching releases and leaves no alternatives.

    Raises:
        UsageError: ``version`` is unknown or does not match the traits.
    """
    candidates = _candidates(traits)
    _, tokenizer_evidence = _tokenizer_kind(traits)
    named = [release for release in candidates if re.search(release.name_pattern, traits.names)]
    evidence = [tokenizer_evidence]
    evidence += [f"rope_theta {traits.rope_theta:g}"] if traits.rope_theta else []
    evidence += ["use_scaled_rope"] if traits.use_scaled_rope else []
    evidence += ["tied LM head"] if traits.tied else []
    chosen = candidates[0]
    if version is not None:
        chosen = _selected(version, candidates, traits)
        candidates = [chosen]
        evidence.append(f"--llama-version {version}")
    elif len(candidates) > 1 and named:
        chosen = named[0]
        evidence.append(_FOLDER_NAME)
    elif len(candidates) > 1:
        evidence.append(_preference(chosen, traits))
    size = _size(chosen, traits, exact=False)
    if size:
        evidence.append(f"shape of {size.label}")
    alternatives = tuple(release for release in candidates if release is not chosen)
    return DetectedRelease(chosen, size, tuple(evidence), alternatives)


def _preference(chosen: Release, traits: ReleaseTraits) -> str:
    """Why the first candidate was chosen."""
    if chosen.version in ("1", "2"):
        return f"{traits.dtype} weights {_DTYPE_GUESS} {traits.norm_eps:g}"
    if chosen.version == "Guard-3" and not traits.tied:
        return "LM head not tied, unlike Llama 3.2 1B"
    return _MOST_COMMON
