"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.peers import ROOT, Peer

# A busy machine is slow, not wrong.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def _peer(name: str) -> Iterator[Peer]:
    peer = Peer(name)
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def transformers4() -> Iterator[Peer]:
    """transformers 4.45.2"""
    yield from _peer("transformers-4.45")


@pytest.fixture(scope="session")
def transformers5() -> Iterator[Peer]:
    """transformers 5.x"""
    yield from _peer("transformers-5")


@pytest.fixture(scope="session")
def meta_code() -> Iterator[Peer]:
    """Meta's own code: llama-models"""
    yield from _peer("meta")


@pytest.fixture(scope="session", params=["transformers4", "transformers5"])
def transformers(request: pytest.FixtureRequest) -> Peer:
    """Each transformers in turn"""
    peer: Peer = request.getfixturevalue(request.param)
    return peer


@pytest.fixture(scope="session")
def llama3_tokenizer_model() -> Path:
    """Llama 3's real tokenizer.model, which PyPI's llama-models carries"""
    return ROOT / ".peers/meta/llama_models/llama3/tokenizer.model"


SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def llama2_tokenizer_model() -> Path:
    """Llama 2's real tokenizer.model; no package carries it, so the tests that want it may skip"""
    path = SHARED / "llama2-tokenizer" / "tokenizer.model"
    if not path.is_file():
        pytest.skip("Llama 2's tokenizer.model is not at hand")
    return path


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """A small trained Llama in Meta's layout, with the words that Meta's own code speaks"""
    path = SHARED / "stories260K"
    if not path.is_dir():
        pytest.skip("stories260K is not at hand")
    return path
