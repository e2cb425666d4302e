"""The converted tokenizers against tiktoken and sentencepiece, as transformers 4 and 5 load them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import struct
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken

from llama_convert.errors import InputError, UsageError
from llama_convert.tokenizers import TokenizerOptions, TokenizerReport, convert_tokenizer, open_tokenizer
from llama_convert.tokenizers.special_tokens import special_tokens
from llama_convert.tokenizers.tiktoken_ranks import SPLIT_PATTERN
from tests.peers import Peer

Ids = list[int]
Encode = Callable[[str], Ids]

# --------------------------------------------------------------------------------------------- the texts

SNIPPETS = [
    *["", " ", "  ", "   ", " " * 17, "\t", "\n", "\n\n", "\r", "\r\n", " \n", "\n ", "\t \t", "\u00a0"],
    *["\u3000", "\u200b", "a , b !", "don't WON'T I'LL we'Ve it's 's"],
    *["a", " a", "a ", "Hello world", " Hello", "  two", "trailing   "],
    *["1", "12", "123", "1234", "12345678901234567890", "3.14159", "1,000,000", "٣٤٥", "१२३", "½²³"],
    *["café", "cafe\u0301", "naïve Ångström", "Z̸̢̛a̴l̷g̵o̶", "ﬁ ﬀ Ⅷ ㎏", "ſ 'ſ K"],
    *["你好,世界", "日本語のテキスト", "한국어 문장", "مرحبا بالعالم", "שלום עולם", "สวัสดีชาวโลก"],
    *["नमस्ते", "Привет"],
    *["👍", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "☺ ☺️", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\U0010ffff", "\ufeffbom", "\ufffd"],
    *["\x00", "a\x00b", "\x01\x02\x1b[0m", "\x7f", "\x85", "\u2028\u2029"],
    *["<0x0A>", "<0x41><0x42>", "<", "<unk", "< s >", "|>", "▁", "▁▁a", "a▁b", "[INST]", "<<SYS>>"],
    *["a" * 50, "aaaa aaaaa aaaaaaa", "abababab", "=" * 100, "." * 7, "//////", "-" * 33, "\n" * 9, "!?!?!?"],
    *["def f(x):\n\treturn {'a': [1, 2]}  # ok\r\n", "SELECT * FROM t WHERE x<=3;", "https://example.com/?q=a%20b&c=d"],
    *["    indented\n        twice\n", "C:\\path\\to", '{"k": "v\\n"}', "supercalifragilisticexpialidocious"],
]  # fmt: skip


def hard_texts(count: int, seed: int = 260) -> list[str]:
    """The snippets, mixtures of them, and noise from all planes of Unicode."""
    rng = random.Random(seed)
    blocks = [
        *[(0x20, 0x7F), (0, 0x20), (0xA0, 0x250), (0x300, 0x370), (0x590, 0x700), (0xE00, 0xE80)],
        *[(0x2000, 0x2070), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1F300, 0x1FAFF), (0xE000, 0x10FFFF)],
    ]

    def noise() -> str:
        low, high = rng.choice(blocks)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 12)))

    texts = list(SNIPPETS)
    while len(texts) < count:
        parts = [rng.choice(SNIPPETS) if rng.random() < 0.6 else noise() for _ in range(rng.randrange(1, 7))]
        texts.append(rng.choice(["", " ", "", "\n"]).join(parts))
    return texts


TEXTS = hard_texts(4000)

# -------------------------------------------------------------------------------------- the two sides

LOAD = """
import logging, warnings
from transformers import AutoTokenizer

heard = []
class Ear(logging.Handler):
    def emit(self, record):
        heard.append(record.getMessage())
ear = Ear(logging.WARNING)
logging.getLogger("transformers").addHandler(ear)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tokenizer = AutoTokenizer.from_pretrained(folder)
heard += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
"""

ENCODE = (
    LOAD
    + """
plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
result = {
    "plain": plain,
    "with_bos": tokenizer(texts)["input_ids"],
    "pair": tokenizer("a", "b")["input_ids"],
    "keys": sorted(tokenizer("a")),
    "decoded": [tokenizer.decode(ids) for ids in plain],
    "skipped": [tokenizer.decode(ids, skip_special_tokens=True) for ids in plain],
    "length": len(tokenizer),
    "bos": tokenizer.bos_token_id,
    "eos": tokenizer.eos_token_id,
    "limit": tokenizer.model_max_length,
    "clean": tokenizer.clean_up_tokenization_spaces,
    "heard": heard,
}
logging.getLogger("transformers").removeHandler(ear)
"""
)


def spoken(transformers: Peer, folder: Path, texts: list[str]) -> dict[str, Any]:
    answer: dict[str, Any] = transformers.run(ENCODE, folder=str(folder), texts=texts)
    return answer


def differences(texts: list[str], expected: Encode, found: list[Ids]) -> list[tuple[str, Ids, Ids]]:
    pairs = ((text, expected(text), ids) for text, ids in zip(texts, found, strict=True))
    return [(text, want, got) for text, want, got in pairs if want != got]


def convert(source: Path, folder: Path, **options: Any) -> TokenizerReport:
    folder.mkdir(parents=True, exist_ok=True)
    return convert_tokenizer(open_tokenizer(source), folder, TokenizerOptions(**options))


def meta_tiktoken(path: Path, **options: Any) -> tiktoken.Encoding:
    """The file as Meta's code opens it."""
    ranks = dict(open_lines(path))
    names = special_tokens(options.get("special_names", "llama3.1"), options.get("special_tokens", ()))
    special = {name: len(ranks) + offset for offset, name in enumerate(names)}
    return tiktoken.Encoding("test", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def open_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        yield b64decode(token), int(rank)


def with_specials(encoding: tiktoken.Encoding) -> Encode:
    return lambda text: encoding.encode(text, allowed_special="all")


# ------------------------------------------------------------------------------- tokenizers made here


@pytest.fixture(scope="module")
def small_tiktoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 words: the bytes, shuffled, then pairs and triples, of which some cannot be made by joining two."""
    rng = random.Random(3)
    tokens = [bytes([byte]) for byte in range(256)]
    rng.shuffle(tokens)
    while len(tokens) < 508:
        token = rng.choice(tokens[-250:]) + rng.choice([b" ", b"e", b"t", b"a", b"\n", b"\xe4", b"1"])
        if token not in tokens:
            tokens.append(token)
    tokens += [b"zqxj", b"jjqq", b"hello", b" world"]
    lines = [b"%s %d\n" % (b64encode(token), rank) for rank, token in enumerate(tokens)]
    rng.shuffle(lines)
    path = tmp_path_factory.mktemp("tiktoken") / "tokenizer.model"
    path.write_bytes(b"".join(lines))
    return path


def train(**options: Any) -> bytes:
    """A sentencepiece model of the Llama form, trained on the hard texts."""
    model = BytesIO()
    rng = random.Random(1)
    words = ["the", "cat", "code", "model", "token", "llama", "12", "def", "PRE", "return", "<", ">"]
    sentences = [" ".join(rng.choices(words, k=9)) for _ in range(500)]
    settings = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, **settings | options
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def small_sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(train())
    return path


def pieces(texts: list[str], first_score: float) -> bytes:
    """Pieces to append to a model, in sentencepiece's protocol buffer."""

    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    return b"".join(
        field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", first_score - n))
        for n, text in enumerate(texts)
    )


INFILL = {"▁<PRE>": 32007, "▁<SUF>": 32008, "▁<MID>": 32009, "▁<EOT>": 32010}
# The sixteen that Code Llama 7B and 13B have beyond Llama 2's, from 32000 on.
CODE_LLAMA_PIECES = [
    *["▁<SU", "▁<SUF", "▁<PRE", "▁<M", "▁<MID", "▁<E", "▁<EOT", *INFILL],
    *["▁<EOT>" + "<EOT>" * n for n in range(1, 6)],
]


@pytest.fixture(scope="module")
def code_llama(llama2_tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for Code Llama's: Llama 2's with the infilling pieces, which merges make"""
    path = tmp_path_factory.mktemp("code-llama") / "tokenizer.model"
    path.write_bytes(llama2_tokenizer_model.read_bytes() + pieces(CODE_LLAMA_PIECES, 0.0))
    return path


# ----------------------------------------------------------------------------------- ids and round trips


@pytest.mark.parametrize("naming", ["llama3", "llama3.1"])
def test_llama3_is_tiktoken(
    naming: str, llama3_tokenizer_model: Path, transformers: Peer, tmp_path: Path
) -> None:
    convert(llama3_tokenizer_model, tmp_path, special_names=naming, model_max_length=8192)
    texts = [
        *TEXTS,
        "<|eot_id|>",
        "a<|eot_id|> b",
        "<|begin_of_text|><|begin_of_text|>",
        "<|eom_id|>\n\n",
        "<s>",
    ]
    reference = meta_tiktoken(llama3_tokenizer_model, special_names=naming)
    found = spoken(transformers, tmp_path, texts)
    assert differences(texts, with_specials(reference), found["plain"]) == []
    assert found["with_bos"] == [[128000, *ids] for ids in found["plain"]]
    assert found["decoded"] == texts
    assert (found["length"], found["bos"], found["eos"]) == (128256, 128000, 128001)
    assert (found["limit"], found["clean"], found["heard"]) == (8192, False, [])
    assert found["keys"] == ["attention_mask", "input_ids"]
    assert found["pair"] == [128000, 64, 128000, 65]


def test_llama3_known_ids(llama3_tokenizer_model: Path, transformers: Peer, tmp_path: Path) -> None:
    report = convert(llama3_tokenizer_model, tmp_path, instruct=True)
    found = spoken(transformers, tmp_path, ["Hello world", " Hello", "  two"])
    assert found["with_bos"] == [[128000, 9906, 1917], [128000, 22691], [128000, 220, 1403]]
    assert (report.bos_id, report.eos_id, report.vocab_size) == (128000, 128009, 128256)
    assert found["eos"] == 128009


def test_small_tiktoken(small_tiktoken: Path, transformers: Peer, tmp_path: Path) -> None:
    report = convert(small_tiktoken, tmp_path)
    texts = [*TEXTS, *SNIPPETS, "zqxj jjqq hello world hello", "<|end_of_text|>!"]
    found = spoken(transformers, tmp_path, texts)
    assert differences(texts, with_specials(meta_tiktoken(small_tiktoken)), found["plain"]) == []
    assert found["decoded"] == texts
    assert (report.bos_id, report.vocab_size, found["length"]) == (512, 768, 768)


def sentencepiece_models() -> list[str]:
    return ["llama2_tokenizer_model", "stories260k", "small_sentencepiece", "code_llama"]


@pytest.mark.parametrize("name", sentencepiece_models())
def test_sentencepiece(name: str, request: pytest.FixtureRequest, transformers: Peer, tmp_path: Path) -> None:
    path = request.getfixturevalue(name)
    path = path / "tokenizer.model" if path.is_dir() else path
    report = convert(path, tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    found = spoken(transformers, tmp_path, TEXTS)
    assert differences(TEXTS, reference.encode, found["plain"]) == []
    assert found["with_bos"] == [[1, *ids] for ids in found["plain"]]
    assert found["decoded"] == [reference.decode(ids) for ids in found["plain"]]
    assert found["decoded"] == [text.replace("▁", " ") for text in TEXTS]
    assert found["length"] == report.vocab_size == reference.vocab_size()
    assert (found["bos"], found["eos"], found["clean"], found["heard"]) == (1, 2, False, [])
    assert found["keys"] == ["attention_mask", "input_ids"]
    assert (tmp_path / "tokenizer.model").read_bytes() == path.read_bytes()


def test_llama2_known_ids(llama2_tokenizer_model: Path, transformers: Peer, tmp_path: Path) -> None:
    convert(llama2_tokenizer_model, tmp_path)
    found = spoken(transformers, tmp_path, ["Hello world", " Hello", "  two"])
    assert found["with_bos"] == [[1, 15043, 3186], [1, 29871, 15043], [1, 259, 1023]]


def test_special_text_in_sentencepiece(
    llama2_tokenizer_model: Path, transformers: Peer, tmp_path: Path
) -> None:
    """transformers cuts the names of special tokens out and encodes what lies between as texts of their own;
    Meta's code never meets them in a text.  A name with other signs around it is still the special token."""
    convert(llama2_tokenizer_model, tmp_path)
    encode = sentencepiece.SentencePieceProcessor(model_file=str(llama2_tokenizer_model)).encode
    found = spoken(transformers, tmp_path, ["<s>", "a<s>b", "</s><s> x", "<unk>y"])
    assert found["plain"] == [[1], [*encode("a"), 1, *encode("b")], [2, 1, *encode(" x")], [0, *encode("y")]]
    assert found["skipped"][:2] == ["", "a b"]


def test_code_llama(code_llama: Path, transformers: Peer, tmp_path: Path) -> None:
    """The text forms of infilling have the ids that sentencepiece gives them; decoding can leave them out."""
    convert(code_llama, tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(code_llama))
    texts = ["<PRE> def f(x):\n <SUF>\n    return y <MID>", "x <EOT>", " <PRE><SUF> <MID>", "<EOT><EOT>"]
    found = spoken(transformers, tmp_path, [*texts, *INFILL])
    assert found["plain"][:4] == [reference.encode(text) for text in texts]
    assert [ids for ids in found["plain"][0] if ids >= 32000] == [32007, 32008, 32009]
    assert found["plain"][1][-1] == 32010
    assert found["plain"][4:] == [[number] for number in INFILL.values()]
    assert found["skipped"][1] == "x"
    assert found["length"] == 32016


def test_only_models_that_have_infilling_get_it(llama2_tokenizer_model: Path, tmp_path: Path) -> None:
    convert(llama2_tokenizer_model, tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert [token["content"] for token in written["added_tokens"]] == ["<unk>", "<s>", "</s>"]


def test_step_ends_a_turn(llama2_tokenizer_model: Path, transformers: Peer, tmp_path: Path) -> None:
    source = tmp_path / "70b.model"
    source.write_bytes(llama2_tokenizer_model.read_bytes() + pieces(["<step>"], -1e9))
    report = convert(source, tmp_path, instruct=True)
    assert report.eos_id == spoken(transformers, tmp_path, [""])["eos"] == 32000
    assert convert(source, tmp_path).eos_id == 2


def test_user_defined_pieces(transformers: Peer, tmp_path: Path) -> None:
    """sentencepiece never cuts them; nor may the converted tokenizer."""
    source = tmp_path / "source.model"
    source.write_bytes(train(user_defined_symbols=["▁<PRE>", "<tool>", "<tool>+", "the cat"], vocab_size=430))
    convert(source, tmp_path)
    encode = sentencepiece.SentencePieceProcessor(model_file=str(source)).encode
    texts = [*TEXTS, "<PRE> def <tool>12<tool>+ the catcode", "x<tool><tool>  <PRE><PRE>", "thethe cat"]
    found = spoken(transformers, tmp_path, texts)
    assert differences(texts, encode, found["plain"]) == []
    assert found["heard"] == []


def test_swapped_ids_are_noticed(llama3_tokenizer_model: Path, transformers4: Peer, tmp_path: Path) -> None:
    """The comparison above is no formality."""
    convert(llama3_tokenizer_model, tmp_path)
    path = tmp_path / "tokenizer.json"
    swaps = {'"Hello": 9906': '"Hello": 1917', '"Ġworld": 1917': '"Ġworld": 9906'}
    path.write_text(re.sub("|".join(swaps), lambda found: swaps[found[0]], path.read_text()))
    found = spoken(transformers4, tmp_path, TEXTS)
    reference = with_specials(meta_tiktoken(llama3_tokenizer_model))
    assert ("Hello world", [9906, 1917], [1917, 9906]) in differences(TEXTS, reference, found["plain"])


# ------------------------------------------------------------------------------------------- the bytes

# SHA-256 of files on the Hub, in meta-llama's repositories: Llama-2-7b-hf, Llama-3.1-8B,
# Llama-3.1-8B-Instruct, Meta-Llama-Guard-2-8B and Llama-Guard-3-8B.
LLAMA2 = "bcd04f0eadf90287bd26e1a183ac487d8a141b09b06aecb7725bbdd343640f2e"
LLAMA31 = "76e48799b099d43365bd24ccd8ecc5aedac831718da780552f03b0a6eb4412aa"
LLAMA31_CONFIG = "8004530facf809ac432114de2a4dcc65fcb632da5ec16d666091aeb6a2ee444a"
LLAMA31_INSTRUCT = "79e3e522635f3171300913bb421464a87de6222182a0570b9b2ccba2a964b2b4"
LLAMA31_INSTRUCT_ROLES = "6f38c73729248f6c127296386e3cdde96e254636cc58b4169d3fd32328d9a8ec"
GUARD2 = "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78"
GUARD3 = "bbc1904d35169c542dffbe1f7589a5994ec7426d9e5b609d07bab876f32e97ab"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_llama2_matches_the_official_file(llama2_tokenizer_model: Path, tmp_path: Path) -> None:
    convert(llama2_tokenizer_model, tmp_path)
    data = (tmp_path / "tokenizer.json").read_bytes()
    assert sha256(data) == LLAMA2
    assert len(json.loads(data)["model"]["merges"]) == 61_249


def test_llama31_matches_the_official_file(llama3_tokenizer_model: Path, tmp_path: Path) -> None:
    convert(llama3_tokenizer_model, tmp_path, instruct=True)
    data = (tmp_path / "tokenizer.json").read_bytes()
    assert sha256(data) == LLAMA31_INSTRUCT
    assert sha256(data + b"\n") == LLAMA31
    assert len(json.loads(data)["model"]["merges"]) == 280_147
    roles = (tmp_path / "special_tokens_map.json").read_bytes()
    assert sha256(roles) == LLAMA31_INSTRUCT_ROLES


def test_llama31_config_matches_the_official_one_but_for_the_clean_up(
    llama3_tokenizer_model: Path, tmp_path: Path
) -> None:
    convert(llama3_tokenizer_model, tmp_path, model_max_length=131072)
    ours = (tmp_path / "tokenizer_config.json").read_bytes()
    theirs = ours.replace(b'"clean_up_tokenization_spaces": false', b'"clean_up_tokenization_spaces": true')
    assert sha256(theirs) == LLAMA31_CONFIG


@pytest.mark.parametrize(("naming", "published"), [("llama3", GUARD2), ("llama3.1", GUARD3)])
def test_guard_matches_the_official_file_but_for_bos(
    naming: str, published: str, llama3_tokenizer_model: Path, tmp_path: Path
) -> None:
    """The published files of Guard put no BOS before a text, which Meta's code does."""
    convert(llama3_tokenizer_model, tmp_path, special_names=naming)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    (written["post_processor"],) = written["post_processor"]["processors"][:1]
    theirs = json.dumps(written, indent=2, ensure_ascii=False).encode()
    assert sha256(theirs) == published


@pytest.mark.parametrize("name", ["small_tiktoken", "small_sentencepiece"])
def test_the_stream_is_plain_json(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    convert(request.getfixturevalue(name), tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    assert json.dumps(json.loads(text), indent=2, ensure_ascii=False) == text


def test_no_merges_are_no_lines(tmp_path: Path) -> None:
    source = tmp_path / "source.model"
    source.write_bytes(b"".join(b"%s %d\n" % (b64encode(bytes([n])), n) for n in range(256)))
    convert(source, tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    assert text.endswith('    "merges": []\n  }\n}')
    assert json.dumps(json.loads(text), indent=2, ensure_ascii=False) == text


# --------------------------------------------------------------------------------------- special tokens


def test_special_names() -> None:
    old, new = special_tokens("llama3"), special_tokens("llama3.1")
    assert len(old) == len(set(old)) == len(new) == len(set(new)) == 256
    assert old[4:12] == (
        "<|reserved_special_token_2|>",
        "<|reserved_special_token_3|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
        "<|reserved_special_token_5|>",
        "<|reserved_special_token_6|>",
    )
    assert new[4:12] == (
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_3|>",
    )
    assert (old[-1], new[-1]) == ("<|reserved_special_token_250|>", "<|reserved_special_token_247|>")


def test_own_special_names(small_tiktoken: Path, transformers: Peer, tmp_path: Path) -> None:
    own = ("<|begin_of_text|>", "<|end_of_text|>", "<mine>", "<|reserved_special_token_1|>")
    report = convert(small_tiktoken, tmp_path, special_tokens=own, instruct=True)
    texts = ["a<mine>b", "<|reserved_special_token_0|>", "<|reserved_special_token_2|>", "<|eot_id|>"]
    found = spoken(transformers, tmp_path, texts)
    reference = meta_tiktoken(small_tiktoken, special_tokens=own)
    assert differences(texts, with_specials(reference), found["plain"]) == []
    assert found["plain"][1:3] == [[516], [517]]
    assert (report.eos_id, found["length"]) == (513, 768)


@pytest.mark.parametrize(
    "names",
    [
        ["<|begin_of_text|>", "<|end_of_text|>", "<x>", "<x>"],
        ["<|begin_of_text|>", "<|end_of_text|>", ""],
        ["<x>"],
        ["<|begin_of_text|>", "<|end_of_text|>", *(f"<{n}>" for n in range(255))],
    ],
)
def test_special_names_that_cannot_be(names: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        special_tokens("llama3", names)
    assert caught.value.code == "BAD_SPECIAL_TOKENS"


# ---------------------------------------------------------------------------------------- damaged files

BYTES = [b"%s %d" % (b64encode(bytes([n])), n) for n in range(256)]


def ranks(*more: bytes) -> bytes:
    return b"\n".join([*BYTES, *more, b""])


DAMAGED = {
    "empty": (b"", "TOKENIZER_EMPTY", "empty"),
    "blank": (b" \n\n", "TOKENIZER_EMPTY", "empty"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "TOKENIZER_LFS_POINTER",
        "git-lfs",
    ),
    "web page": (b"\n<!DOCTYPE html><html></html>", "TOKENIZER_HTML", "HTML page"),
    "json": (b'{"version": "1.0"}', "TOKENIZER_JSON", "JSON"),
    "zip": (b"PK\x03\x04\x00\x00", "TOKENIZER_FORMAT", "Neither"),
    "no rank": (ranks(b"YWI="), "TOKENIZER_LINE", "Malformed line 257"),
    "bad base64": (ranks(b"YW$I= 256"), "TOKENIZER_LINE", "line 257"),
    "cut base64": (ranks(b"YWI 256"), "TOKENIZER_LINE", "line 257"),
    "bad rank": (ranks(b"YWI= x"), "TOKENIZER_LINE", "line 257"),
    "three words": (ranks(b"YWI= 256 1"), "TOKENIZER_LINE", "line 257"),
    "prose": (b"Access to this file is denied", "TOKENIZER_LINE", "line 1"),
    "same rank": (ranks(b"YWI= 255"), "TOKENIZER_RANKS", "Duplicate rank 255 in line 257"),
    "same token": (ranks(b"YWI= 256", b"YWI= 257"), "TOKENIZER_RANKS", "b'ab' has two ranks"),
    "gap": (ranks(b"YWI= 300"), "TOKENIZER_RANKS", "Missing rank 256"),
    "negative": (ranks(b"YWI= -1"), "TOKENIZER_RANKS", "Missing rank 256"),
    "no byte": (b"\n".join(BYTES[:-1]), "TOKENIZER_BYTES", "0xFF"),
}


def refusal(path: Path, data: bytes) -> InputError:
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        open_tokenizer(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return caught.value


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, tmp_path: Path) -> None:
    data, code, message = DAMAGED[name]
    error = refusal(tmp_path / "tokenizer.model", data)
    assert (error.code, message in error.message) == (code, True), error.message


def test_llama4_is_refused(llama3_tokenizer_model: Path) -> None:
    path = llama3_tokenizer_model.parents[1] / "llama4/tokenizer.model"
    with pytest.raises(InputError, match="Llama 4") as caught:
        open_tokenizer(path)
    assert caught.value.code == "TOKENIZER_UNSUPPORTED"


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"Not a regular file|Not found") as caught:
            open_tokenizer(path)
        assert caught.value.code == "TOKENIZER_MISSING"


def test_truncated_sentencepiece(small_sentencepiece: Path, tmp_path: Path) -> None:
    data = small_sentencepiece.read_bytes()
    for size in [*range(1, 60), *range(60, len(data) - 60, 97)]:
        error = refusal(tmp_path / "tokenizer.model", data[:size])
        assert error.code in ("TOKENIZER_DAMAGED", "TOKENIZER_EMPTY"), error.message


def test_noisy_sentencepiece(small_sentencepiece: Path, tmp_path: Path) -> None:
    """Whatever bytes are wrong, the answer is a tokenizer or a refusal, and never anything else."""
    data = small_sentencepiece.read_bytes()
    rng = random.Random(5)
    path = tmp_path / "tokenizer.model"
    for _ in range(300):
        noisy = bytearray(data)
        for _ in range(rng.randrange(1, 9)):
            noisy[rng.randrange(len(noisy))] = rng.randrange(256)
        path.write_bytes(noisy)
        with contextlib.suppress(InputError):
            open_tokenizer(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "unigram"}, "it is a unigram model, not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalizes characters"),
        ({"add_dummy_prefix": False}, "it adds no space before the text"),
        ({"remove_extra_whitespaces": True}, "it removes extra spaces"),
        ({"byte_fallback": False, "vocab_size": 200}, "it has no byte fallback"),
        ({"treat_whitespace_as_suffix": True}, "it treats spaces as suffixes"),
    ],
)
def test_other_forms(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    error = refusal(tmp_path / "tokenizer.model", train(**settings))
    assert error.code == "TOKENIZER_UNSUPPORTED"
    assert message in error.message


def test_pieces_that_cannot_be(small_sentencepiece: Path, tmp_path: Path) -> None:
    data = small_sentencepiece.read_bytes()
    for more, message in ((["▁t"], "duplicate piece '▁t'"), ([""], "a piece is empty")):
        error = refusal(tmp_path / "tokenizer.model", data + pieces(more, 0.0))
        assert (error.code, message in error.message) == ("TOKENIZER_PIECES", True), error.message


def test_pieces_are_those_sentencepiece_reads(small_sentencepiece: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(small_sentencepiece))
    model: Any = open_tokenizer(small_sentencepiece)
    assert [(piece.text, piece.score) for piece in model.pieces] == [
        (reference.id_to_piece(n), reference.get_score(n)) for n in range(reference.vocab_size())
    ]
    assert (model.unk_id, model.bos_id, model.eos_id) == (0, 1, 2)


# ------------------------------------------------------------------------------------------ its price

FRUGAL = """
import resource, sys
from pathlib import Path
from llama_convert.tokenizers import convert_tokenizer, open_tokenizer
heavy = {"torch", "transformers", "sentencepiece", "tiktoken", "numpy"} & set(sys.modules)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_tokenizer(open_tokenizer(Path(sys.argv[1])), Path(sys.argv[2]))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown / 1024, *heavy)
"""


def test_frugal(llama3_tokenizer_model: Path, tmp_path: Path) -> None:
    """Llama 3's tokenizer takes 31 MiB."""
    command = [sys.executable, "-c", FRUGAL, str(llama3_tokenizer_model), str(tmp_path)]
    mebibytes, *heavy = subprocess.check_output(command, text=True).split()
    assert float(mebibytes) < 40
    assert heavy == []
