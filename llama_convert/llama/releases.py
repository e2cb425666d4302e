"""The table of Meta's releases, and the art of telling them apart by their files.

Files rarely name their release, and some releases cannot be told apart at all.  `identify` collects every
reading the files allow, picks one, and says why; a flag or a folder's name may choose among the readings but
never beyond them.  Figures: the ``params.json`` files and Hugging Face configs Meta published.
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
    """The shape of one size, and what it is called on the command line."""

    label: str
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    norm_eps: tuple[float, ...] = (1e-5,)


@dataclass(frozen=True)
class Release:
    """One of Meta's releases: what its files look like and what its Hugging Face folder says."""

    version: str
    """The word that ``--llama_version`` takes."""
    title: str
    tokenizer: TokenizerKind
    sizes: tuple[Size, ...]
    context_length: int
    name_pattern: str
    """Matches the names its folders go by, in lower case."""
    rope_theta: float = 10000.0
    """Used where ``params.json`` says nothing."""
    rope_factor: float | None = None
    """The factor that ``use_scaled_rope`` stands for, which ``params.json`` does not hold."""
    tied: bool = False
    grouped_query: bool = True
    """Whether any of its sizes has fewer KV heads than heads."""
    also_called: tuple[str, ...] = ()
    """Further versions that the Hugging Face script's users give for it."""
    instruct: bool | None = None
    """Whether it follows instructions; None: both kinds were released, and the files do not tell."""
    chat_template: str | None = None
    nested: bool = False
    """Its ``params.json`` keeps everything under a key ``model``."""
    scaling_unsaid: bool = False
    """Its ``params.json`` may leave ``use_scaled_rope`` out although the model has it."""
    special_tokens: Literal["llama3", "llama3.1"] = "llama3.1"
    """Which naming of the 256 tiktoken special tokens."""
    sampling: tuple[tuple[str, object], ...] = ()
    """What generation_config.json says besides the bos and eos ids."""
    model_max_length: int | None = None
    """What tokenizer_config.json says; None: no limit."""


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
        # 1e-06 stood in the first upload of 7B-chat; Meta later named 1e-05 the right one.
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
        also_called=("1", "2"),
        chat_template="llama2",
    ),
    Release(
        version="Guard-1",
        title="Llama Guard 1",
        tokenizer="sentencepiece",
        sizes=(Size("7B", *_7B),),
        context_length=4096,
        name_pattern=r"guard(?![-_ ]?[234])",
        also_called=("2",),
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
        also_called=("3",),
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
        also_called=("3.1",),
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
        scaling_unsaid=True,
        sampling=_SAMPLING,
        model_max_length=131072,
    ),
)
"""In order of preference where the files allow several and nothing else speaks."""

VERSIONS = tuple(release.version for release in RELEASES)


def released_kv_heads(dim: int, n_layers: int, n_heads: int, ffn_dim: int) -> int | None:
    """How many KV heads the release of this shape has; None for a shape that Meta never released."""
    for release in RELEASES:
        for size in release.sizes:
            if (size.dim, size.n_layers, size.n_heads, size.ffn_dim) == (dim, n_layers, n_heads, ffn_dim):
                return size.n_kv_heads
    return None


@dataclass(frozen=True)
class Traits:
    """What the files say that bears on the release."""

    shape: tuple[int, int, int, int, int]
    """dim, n_layers, n_heads, n_kv_heads (distinct ones), ffn_dim."""
    vocab_size: int
    norm_eps: float
    rope_theta: float | None
    use_scaled_rope: bool
    tied: bool
    nested: bool
    """``params.json`` keeps everything under ``model``."""
    dtype: str
    tokenizer: TokenizerKind | None
    names: str
    """The folder's name and its parent's, in lower case."""

    @property
    def grouped_query(self) -> bool:
        """Fewer KV heads than heads."""
        return self.shape[3] < self.shape[2]


@dataclass(frozen=True)
class Identity:
    """The release a checkpoint was taken for, and why."""

    release: Release
    size: Size | None
    """None: a shape that Meta never released."""
    evidence: tuple[str, ...]
    alternatives: tuple[Release, ...]
    """Other readings that the files allow; ``--llama-version`` chooses."""

    @property
    def title(self) -> str:
        """For example ``Llama 3.1 8B``; of a size that Meta never released, the architecture alone."""
        return f"{self.release.title} {self.size.label if self.size else 'architecture (custom size)'}"

    @property
    def readings(self) -> tuple[Release, ...]:
        """Every release that the files allow, the chosen one first."""
        return self.release, *self.alternatives

    def proved(self, release: Release, readings: Iterable[Release], *signs: str) -> Identity:
        """The identity once ``signs``, stronger than a guess or a name, speak for one of ``readings``."""
        proof = [sign for sign in self.evidence if sign not in _GUESSES and "with norm_eps" not in sign]
        others = tuple(row for row in readings if row is not release)
        return replace(self, release=release, evidence=(*proof, *signs), alternatives=others)


_GUESSES = ("the most common of the possible releases", "the folder's name says so")


def _family(traits: Traits) -> tuple[TokenizerKind, str]:
    """Which kind of tokenizer the checkpoint was trained with, and how that shows."""
    if traits.tokenizer:
        return traits.tokenizer, f"the tokenizer is {traits.tokenizer}'s"
    if traits.vocab_size in (32000, 32016):
        return "sentencepiece", f"{traits.vocab_size} words"
    if traits.vocab_size == 128256:
        return "tiktoken", "128256 words"
    if traits.use_scaled_rope or traits.rope_theta == 500000.0:
        return "tiktoken", "rotary settings of Llama 3 or later"
    return "sentencepiece", "nothing of Llama 3 or later"


def _contradiction(release: Release, traits: Traits) -> str | None:
    """Why these files cannot be that release's, sizes aside; None when they can."""
    family, sign = _family(traits)
    raised_theta = (traits.rope_theta or 0) > 10000 or traits.vocab_size == 32016
    if release.tokenizer != family:
        return f"{release.title} has {release.tokenizer}'s tokenizer; here {sign}"
    if release.nested != traits.nested:
        return f'only Llama Guard 1 keeps its params.json under a key "model"; {release.title} was asked for'
    if traits.grouped_query and not release.grouped_query:
        return f"{release.title} has no grouped-query attention; here n_kv_heads is {traits.shape[3]}"
    if traits.use_scaled_rope and not release.rope_factor:
        return f"{release.title} does not scale its rotary embedding; params.json says use_scaled_rope"
    if release.rope_factor and not traits.use_scaled_rope and not release.scaling_unsaid:
        return f"{release.title} scales its rotary embedding; params.json does not say use_scaled_rope"
    if family == "sentencepiece" and raised_theta != (release.version == "code"):
        found = f"rope_theta {traits.rope_theta or 10000.0:g} and {traits.vocab_size} words"
        return f"rope_theta above 10000 or 32016 words are Code Llama's alone; here {found}"
    return None


def _size(release: Release, traits: Traits, *, exact: bool = True) -> Size | None:
    """The release's size that has this shape; if `exact`, with these settings too."""
    for size in release.sizes:
        if (size.dim, size.n_layers, size.n_heads, size.n_kv_heads, size.ffn_dim) == traits.shape:
            settings_agree = traits.norm_eps in size.norm_eps and (release.tied or not traits.tied)
            return size if settings_agree or not exact else None
    return None


def _readings(traits: Traits) -> list[Release]:
    """Every release these files can be, most likely first; at least one."""
    possible = [release for release in RELEASES if _contradiction(release, traits) is None]
    for exact in (True, False):
        if of_this_size := [release for release in possible if _size(release, traits, exact=exact)]:
            possible = of_this_size
            break
    if not possible:
        possible = [next(release for release in RELEASES if release.tokenizer == _family(traits)[0])]
    llama1 = traits.dtype == "float16" and traits.norm_eps == 1e-6

    def unlikely(release: Release) -> tuple[bool, bool]:
        return release.tied != traits.tied, (release.version == "1") != llama1

    return sorted(possible, key=unlikely)


def parse_version(text: str) -> Release:
    """The release that a word such as ``3.1``, ``v3.1``, ``Llama-3.1`` or ``guard3`` means.

    Raises:
        UsageError: it means none.
    """

    def bare(name: str) -> str:
        return re.sub(r"[^a-z0-9.]", "", name.lower())

    word = bare(text).removeprefix("meta").removeprefix("v").removesuffix(".0")
    for release in RELEASES:
        if word in (bare(release.version), bare(release.title)):
            return release
    known = ", ".join(sorted(VERSIONS))
    raise UsageError("BAD_VERSION", f"--llama-version {text}: choose one of {known}")


def _asked_for(version: str, readings: list[Release], traits: Traits) -> Release:
    """The reading that ``--llama-version`` names."""
    asked = parse_version(version)
    if asked in readings:
        return asked
    for release in readings:
        if asked.version in release.also_called:
            return release
    reason = _contradiction(asked, traits) or f"{asked.title} was not released in this shape and settings"
    found = " or ".join(_title(release, traits) for release in readings)
    raise UsageError(
        "VERSION_CONTRADICTED",
        f"--llama-version {version} ({asked.title}) cannot be true of these files, "
        f"which are {found}: {reason}",
        hint="leave the flag out; the release is read from the files",
    )


def _title(release: Release, traits: Traits) -> str:
    size = _size(release, traits, exact=False)
    return f"{release.title} {size.label}" if size else release.title


def identify(traits: Traits, version: str | None = None) -> Identity:
    """The release that ``traits`` are those of; ``version`` chooses where they allow several.

    Raises:
        UsageError: ``version`` is unknown, or cannot be true of the files.
    """
    readings = _readings(traits)
    _, sign = _family(traits)
    named = [release for release in readings if re.search(release.name_pattern, traits.names)]
    evidence = [sign]
    evidence += [f"rope_theta {traits.rope_theta:g}"] if traits.rope_theta else []
    evidence += ["use_scaled_rope"] if traits.use_scaled_rope else []
    evidence += ["LM head tied to the embedding"] if traits.tied else []
    chosen = readings[0]
    if version is not None:
        chosen = _asked_for(version, readings, traits)
        evidence.append(f"--llama-version {version}")
    elif len(readings) > 1 and named:
        chosen = named[0]
        evidence.append("the folder's name says so")
    elif len(readings) > 1:
        evidence.append(_preference(chosen, traits))
    size = _size(chosen, traits, exact=False)
    if size:
        evidence.append(f"the shape of {size.label}")
    alternatives = tuple(release for release in readings if release is not chosen)
    return Identity(chosen, size, tuple(evidence), alternatives)


def _preference(chosen: Release, traits: Traits) -> str:
    """Why the first of several readings was taken."""
    if chosen.version in ("1", "2"):
        return f"{traits.dtype} weights with norm_eps {traits.norm_eps:g}"
    if chosen.version == "Guard-3" and not traits.tied:
        return "Llama 3.2 1B is tied to its embedding, Guard 3 1B is not"
    return "the most common of the possible releases"
