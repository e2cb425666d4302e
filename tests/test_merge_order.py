"""Vocabularies whose pieces share scores: the ids of sentencepiece, or a text that shows the difference."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.errors import InputError, RefusedError
from llama_convert.tokenizers import convert_tokenizer, open_tokenizer
from llama_convert.tokenizers.merge_order import topological_order
from llama_convert.verification.report import Outcome
from llama_convert.verification.tokenizer import check_original, compare_tokenizers
from tests.peers import Peer
from tests.test_tokenizers import train

ONLY_TOKENIZER = ConvertOptions(model_size="tokenizer_only")


def extended(model: bytes, scores: Mapping[str, float]) -> bytes:
    """A model with more pieces, as scripts that merge vocabularies append them."""

    def field(number: int, payload: bytes) -> bytes:
        size = len(payload)
        length = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
        return bytes([number << 3 | 2]) + length + payload

    return model + b"".join(
        field(1, field(1, piece.encode()) + b"\x15" + struct.pack("<f", score))
        for piece, score in scores.items()
    )


@pytest.fixture(scope="module")
def trained() -> bytes:
    return train()


class Both:
    """A model, run by sentencepiece, and its conversion, run by `tokenizers`."""

    def __init__(self, folder: Path, model: bytes) -> None:
        self.source, self.output = folder / "source", folder / "output"
        self.source.mkdir()
        self.output.mkdir()
        self.model = self.source / "tokenizer.model"
        self.model.write_bytes(model)
        self.tokenizer = open_tokenizer(self.model)
        convert_tokenizer(self.tokenizer, self.output)
        self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._library = Tokenizer.from_file(str(self.output / "tokenizer.json"))

    def differs(self, text: str) -> bool:
        found = self._library.encode(text, add_special_tokens=False).ids
        return bool(self._sentencepiece.encode(text) != found)

    def verify(self) -> Outcome:
        return compare_tokenizers(self.model, self.output)


CHARACTERS = dict.fromkeys("研究生学大", -1000.0)
WORDS = dict.fromkeys(["研究", "研究生", "学生", "大学"], 0.0)


def test_tied_pieces_are_joined_from_the_left(trained: bytes, tmp_path: Path) -> None:
    """`大学生` is `大学` and `生`, although `学生` has the lower id."""
    both = Both(tmp_path, extended(trained, CHARACTERS | WORDS))
    texts = ["大学生", "研究生", "大学研究生", "研究大学生", "生大学生学生", "the 大学生 cat"]
    assert [text for text in texts if both.differs(text)] == []
    assert both.tokenizer.differing_text is None
    assert both.verify().findings == []
    assert convert(both.source, tmp_path / "hf", ONLY_TOKENIZER).warnings == []


def test_verify_finds_the_order_of_ids(trained: bytes, tmp_path: Path) -> None:
    """The order that converters write by default, which no fixed text shows to be wrong."""
    both = Both(tmp_path, extended(trained, CHARACTERS | WORDS))
    file = both.output / "tokenizer.json"
    content = json.loads(file.read_bytes())
    merges = content["model"]["merges"]
    by_id = ["研 究", "研究 生", "学 生", "大 学"]
    content["model"]["merges"] = by_id + [merge for merge in merges if merge not in by_id]
    file.write_text(json.dumps(content))
    (finding,) = both.verify().findings
    assert (finding.code, finding.is_warning) == ("TOKENIZER_IDS", False)
    assert "大学生" in finding.message


CYCLES = {
    "two words": {"上": -1000.0, "海": -1000.0, "上海": 0.0, "海上": 0.0},
    "characters without a piece": {"究极": 0.0},
    "a triangle": dict.fromkeys("甲乙丙", -1000.0) | {"甲乙": -1.5, "乙丙": -1.5, "丙甲": -1.5},
}


@pytest.mark.parametrize("name", CYCLES)
def test_where_no_order_is_right_an_example_shows_it(
    name: str, trained: bytes, transformers4: Peer, tmp_path: Path
) -> None:
    both = Both(tmp_path, extended(trained, CYCLES[name]))
    example = both.tokenizer.differing_text
    assert example is not None
    assert both.differs(example)
    (warning,) = convert(both.source, tmp_path / "hf", ONLY_TOKENIZER).warnings
    assert repr(example) in warning
    with pytest.raises(RefusedError):
        convert(both.source, tmp_path / "strict", ConvertOptions(model_size="tokenizer_only", strict=True))
    assert any(
        finding.code == "TOKENIZER_IDS" and not finding.is_warning for finding in both.verify().findings
    )
    code = """
from transformers import LlamaTokenizer
result = LlamaTokenizer.from_pretrained(folder)(text)["input_ids"]
"""
    ids = transformers4.run(code, folder=str(both.output), text=example)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(both.model))
    assert ids == [1, *processor.encode(example)]


LETTERS = "xyz"
"""None of them is in a piece of the trained model."""
TEXTS = ["".join(letters) for length in range(1, 7) for letters in product(LETTERS, repeat=length)]
LONG = ["".join(letters) for letters in product(["xy", "yx", "xxz", "zy", "y", "zxx"], repeat=4)]


@st.composite
def tied_scores(draw: st.DrawFn) -> dict[str, float]:
    """Letters, now and then without one of them, and words of these with few different scores"""
    words = draw(st.lists(st.text(LETTERS, min_size=2, max_size=5), min_size=2, max_size=12, unique=True))
    levels = draw(st.sampled_from([[0.0], [0.0, -1.5], [0.0, -0.5, -1.5, -2.5]]))
    letters = draw(st.sampled_from(["xyz", "xyz", "xyz", "xy"]))
    return dict.fromkeys(letters, -1000.0) | {word: draw(st.sampled_from(levels)) for word in words}


@settings(max_examples=150, deadline=None)
@given(scores=tied_scores())
def test_equal_ids_or_an_example(
    scores: dict[str, float], trained: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    both = Both(tmp_path_factory.mktemp("tied"), extended(trained, scores))
    example = both.tokenizer.differing_text
    if example is None:
        assert [text for text in (*TEXTS, *LONG) if both.differs(text)] == []
    else:
        assert both.differs(example)


@settings(max_examples=50, deadline=None)
@given(scores=tied_scores())
def test_verify_finds_every_example(
    scores: dict[str, float], trained: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    both = Both(tmp_path_factory.mktemp("tied"), extended(trained, scores))
    found = any(finding.code == "TOKENIZER_IDS" for finding in both.verify().findings)
    assert found == (both.tokenizer.differing_text is not None)


def test_distinct_scores_keep_the_official_order(trained: bytes, tmp_path: Path) -> None:
    both = Both(tmp_path, trained)
    content = json.loads((both.output / "tokenizer.json").read_bytes())
    wholes = [merge.replace(" ", "") for merge in content["model"]["merges"]]
    ids = [content["model"]["vocab"][whole] for whole in wholes]
    assert ids == sorted(ids)


def test_arrange() -> None:
    assert topological_order({"b": set(), "a": {"b"}, "c": {"a"}}) == ["c", "a", "b"]
    cyclic = {"a": {"b", "c", "d"}, "b": {"a"}, "c": {"d"}, "d": set()}
    assert topological_order(cyclic) == ["a", "b", "c", "d"]


def large(tmp_path: Path, trained: bytes) -> Path:
    """Half a megabyte of runs, each of which can be split at every place."""
    runs = {letter * length: -float(length) for letter in "vw" for length in range(1, 700)}
    (tmp_path / "tokenizer.model").write_bytes(extended(trained, runs))
    return tmp_path / "tokenizer.model"


def test_too_many_merges_are_refused(trained: bytes, tmp_path: Path) -> None:
    file = large(tmp_path, trained)
    with pytest.raises(InputError, match="merges would need more than") as caught:
        open_tokenizer(file)
    assert caught.value.code == "TOKENIZER_PIECES"
    (finding,) = check_original(file).findings
    assert finding.code == "TOKENIZER_UNREADABLE"


def test_too_many_merges_of_ranks_are_refused(tmp_path: Path) -> None:
    runs = [bytes([letter]) * length for letter in b"vw" for length in range(2, 700)]
    tokens = [bytes([byte]) for byte in range(256)] + runs
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"".join(b"%s %d\n" % (b64encode(token), rank) for rank, token in enumerate(tokens)))
    with pytest.raises(InputError, match="merges would need more than") as caught:
        open_tokenizer(file)
    assert caught.value.code == "TOKENIZER_RANKS"
    (finding,) = check_original(file).findings
    assert finding.code == "TOKENIZER_UNREADABLE"
