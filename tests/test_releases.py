"""Telling releases apart: every row of the table is recognised from its own files, and doubts are spoken."""

from __future__ import annotations

import pytest

from llama_convert.errors import UsageError
from llama_convert.llama.releases import RELEASES, Release, ReleaseTraits, Size, detect_release

L7B, L8B = (4096, 32, 32, 32, 11008), (4096, 32, 32, 8, 14336)
L70B, L1B = (8192, 80, 64, 8, 28672), (2048, 16, 32, 8, 8192)


def traits(
    shape: tuple[int, int, int, int, int],
    *,
    vocab: int = 32000,
    eps: float = 1e-5,
    theta: float | None = None,
    scaled: bool = False,
    tied: bool = False,
    nested: bool = False,
    dtype: str = "bfloat16",
    tokenizer: str | None = None,
    names: str = "download",
) -> ReleaseTraits:
    return ReleaseTraits(shape, vocab, eps, theta, scaled, tied, nested, dtype, tokenizer, names)  # type: ignore[arg-type]


def llama3(
    shape: tuple[int, int, int, int, int], *, scaled: bool = True, tied: bool = False, names: str = ""
) -> ReleaseTraits:
    return traits(shape, vocab=128256, theta=5e5, scaled=scaled, tied=tied, names=names)


@pytest.mark.parametrize(
    ("release", "size"),
    [(release, size) for release in RELEASES for size in release.sizes],
    ids=lambda x: getattr(x, "version", getattr(x, "label", "")),
)
def test_every_release_can_be_had_by_its_flag(release: Release, size: Size) -> None:
    tiktoken = release.tokenizer == "tiktoken"
    files = traits(
        (size.dim, size.n_layers, size.n_heads, size.n_kv_heads, size.ffn_dim),
        vocab=128256 if tiktoken else 32000,
        eps=size.norm_eps[0],
        theta=release.rope_theta if tiktoken or release.version == "code" else None,
        scaled=release.rope_factor is not None,
        tied=release.tied,
        nested=release.nested,
        dtype="float16" if release.version == "1" else "bfloat16",
    )
    assert detect_release(files, release.version).title == f"{release.title} {size.label}"
    plain = detect_release(files)
    assert release is plain.release or release in plain.alternatives


@pytest.mark.parametrize(
    ("files", "title"),
    [
        (traits(L7B, eps=1e-6, dtype="float16"), "LLaMA 1 7B"),
        (traits(L7B, eps=1e-6), "Llama 2 7B"),  # the early Llama-2-7b-chat
        (traits(L7B), "Llama 2 7B"),
        (traits((8192, 80, 64, 64, 22016), dtype="float16"), "LLaMA 1 65B"),
        (traits(L70B), "Llama 2 70B"),
        (traits(L7B, vocab=32016, theta=1e6), "Code Llama 7B"),
        (traits(L7B, theta=1e6), "Code Llama 7B"),  # Python
        (traits(L70B, vocab=32016, theta=1e4), "Code Llama 70B"),  # Instruct
        (traits(L7B, nested=True), "Llama Guard 1 7B"),
        (llama3(L8B, scaled=False), "Llama 3 8B"),
        (llama3(L8B), "Llama 3.1 8B"),
        (llama3(L70B), "Llama 3.1 70B"),
        (llama3(L70B, names="llama3.3-70b-instruct"), "Llama 3.3 70B"),
        (llama3(L8B, names="original/llama-guard-3-8b"), "Llama Guard 3 8B"),
        (llama3(L1B, tied=True), "Llama 3.2 1B"),
        (llama3(L1B), "Llama Guard 3 1B"),
        (llama3(L1B, names="my-llama-3.2-1b-untied"), "Llama 3.2 1B"),
        (traits(L8B, vocab=128264, theta=5e5, scaled=True), "Llama 3.1 8B"),  # words added
        (
            traits((64, 2, 4, 2, 128), vocab=512, tokenizer="sentencepiece"),
            "Llama 2 architecture (custom size)",
        ),
        (traits((64, 2, 4, 2, 128), vocab=768, tokenizer="tiktoken"), "Llama 3 architecture (custom size)"),
        (
            traits((64, 2, 4, 2, 128), vocab=768, tokenizer="tiktoken", scaled=True, tied=True),
            "Llama 3.2 architecture (custom size)",
        ),
        (
            traits((64, 2, 4, 4, 128), vocab=512, eps=1e-6, dtype="float16"),
            "LLaMA 1 architecture (custom size)",
        ),
    ],
)
def test_readings(files: ReleaseTraits, title: str) -> None:
    assert detect_release(files).title == title


@pytest.mark.parametrize(
    ("files", "others"),
    [
        (traits(L7B, eps=1e-6), {"1"}),
        (traits(L7B), set()),
        (llama3(L70B), {"3.3"}),
        (llama3(L1B), {"3.2"}),
        (llama3(L1B, tied=True), set()),
    ],
)
def test_uncertainties_are_listed(files: ReleaseTraits, others: set[str]) -> None:
    identity = detect_release(files)
    assert {release.version for release in identity.alternatives} == others
    assert identity.evidence


@pytest.mark.parametrize(
    ("files", "version"),
    [
        (traits(L7B), "1"),  # no LLaMA 1 7B had norm_eps 1e-05
        (traits(L7B), "3"),
        (traits(L70B), "1"),
        (traits(L7B), "code"),
        (traits((8192, 80, 64, 64, 22016), dtype="float16"), "2"),
        (llama3(L8B, scaled=False), "2"),
        (llama3(L8B, scaled=False), "3.1"),
        (llama3(L8B), "3"),
        (llama3(L8B), "3.2"),
        (llama3(L8B), "3.3"),
        (llama3(L1B, tied=True), "3.1"),
        (llama3(L1B, tied=True), "Guard-3"),
    ],
)
def test_flags_that_cannot_be_true_name_both(files: ReleaseTraits, version: str) -> None:
    with pytest.raises(UsageError) as caught:
        detect_release(files, version)
    asked = next(release for release in RELEASES if release.version == version)
    assert asked.title in str(caught.value)
    assert detect_release(files).title in str(caught.value)


@pytest.mark.parametrize(
    ("files", "version", "title"),
    [
        (traits(L7B, vocab=32016, theta=1e6), "2", "Code Llama 7B"),  # what the HF script's users typed
        (traits(L7B, nested=True), "2", "Llama Guard 1 7B"),
        (llama3(L70B), "3.3", "Llama 3.3 70B"),
        (llama3(L70B), "3.1", "Llama 3.1 70B"),
        (llama3(L1B), "guard-3", "Llama Guard 3 1B"),
        (llama3(L1B), "3.2", "Llama 3.2 1B"),
        (traits(L7B, eps=1e-6), "1", "LLaMA 1 7B"),
    ],
)
def test_flags_choose(files: ReleaseTraits, version: str, title: str) -> None:
    assert detect_release(files, version).title == title
    assert not detect_release(files, version).alternatives


def test_unknown_version() -> None:
    with pytest.raises(UsageError, match="Unknown release"):
        detect_release(traits(L7B), "4")
