"""The tokenizer check: no findings in what is right, and each planted fault found, its tokens named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llama_convert.conversion.convert import convert
from llama_convert.findings import Finding
from llama_convert.tokenizers import TokenizerOptions, chat_template, convert_tokenizer, open_tokenizer
from llama_convert.verification.report import Outcome
from llama_convert.verification.tokenizer import check_original, check_tokenizer, compare_tokenizers
from tests.peers import ROOT
from tests.test_tokenizers import CODE_LLAMA_PIECES, pieces, train

Json = dict[str, Any]
FIXTURES = ROOT / "fixtures"
PIECES_MODEL = FIXTURES / "llama2-mp2/tokenizer.model"
RANKS_MODEL = FIXTURES / "llama3.1-mp2/tokenizer.model"


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The fixtures' conversions, by their sources' names"""
    folder = tmp_path_factory.mktemp("converted")
    for source in FIXTURES.glob("*/params.json"):
        convert(source.parent, folder / source.parent.name)
    return {path.name: path for path in folder.iterdir()}


def tokenizer_of(folder: Path, copy: Path) -> Path:
    """A copy of a folder's JSON files, without the original."""
    copy.mkdir()
    for file in folder.glob("*.json"):
        shutil.copy(file, copy)
    return copy


def written_from(original: Path, folder: Path, **options: Any) -> Path:
    """A folder of tokenizer files, without the original."""
    folder.mkdir(exist_ok=True)
    convert_tokenizer(open_tokenizer(original), folder, TokenizerOptions(**options))
    (folder / "tokenizer.model").unlink(missing_ok=True)
    return folder


def alone(folder: Path, **options: Any) -> Outcome:
    check = check_tokenizer(folder, **options)
    assert check is not None
    return check


def said(finding: Finding) -> str:
    return " ".join(filter(None, [finding.message, finding.hint, finding.expected, finding.found]))


def assert_found(check: Outcome, code: str, names: str, file: str = "tokenizer.json") -> None:
    told = [said(finding) for finding in check.findings if (finding.code, finding.file) == (code, file)]
    assert any(names in each for each in told), check.findings


# ------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("name", ["llama2-mp2", "llama3.1-mp2", "llama3.2-tied"])
def test_fixtures_are_right(name: str, converted: dict[str, Path], tmp_path: Path) -> None:
    original, folder = FIXTURES / name / "tokenizer.model", converted[name]
    assert compare_tokenizers(original, folder).findings == []
    assert alone(tokenizer_of(folder, tmp_path / "copy")).findings == []
    assert check_original(original).findings == []


REAL = [
    ("llama2_tokenizer_model", "llama2", 32_000, 61_249),
    pytest.param("llama3_tokenizer_model", "llama3.1", 128_256, 280_147, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fixture", "template", "tokens", "merges"), REAL)
def test_real_ones_are_right(
    fixture: str, template: str, tokens: int, merges: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    original = request.getfixturevalue(fixture)
    folder = written_from(original, tmp_path, instruct=True, chat_template=chat_template(template))
    compared, single = compare_tokenizers(original, folder, tokens), alone(folder, vocab_size=tokens)
    assert compared.findings == single.findings == check_original(original, tokens).findings == []
    assert (compared.measures["tokens"], compared.measures["merges"]) == (tokens, merges)
    assert compared.measures["texts"] > 0.9 * tokens


def test_early_names_are_right(llama3_tokenizer_model: Path, tmp_path: Path) -> None:
    folder = written_from(llama3_tokenizer_model, tmp_path, special_names="llama3")
    assert compare_tokenizers(llama3_tokenizer_model, folder).findings == []


def test_code_llama_is_right(llama2_tokenizer_model: Path, tmp_path: Path) -> None:
    """A stand-in: Llama 2's with the infilling pieces, or with what ends a turn of the 70B."""
    for number, more in enumerate([pieces(CODE_LLAMA_PIECES, 0.0), pieces(["<step>"], -1e9)]):
        original = tmp_path / f"{number}.model"
        original.write_bytes(llama2_tokenizer_model.read_bytes() + more)
        folder = written_from(original, tmp_path / str(number), instruct=True)
        assert compare_tokenizers(original, folder).findings == alone(folder).findings == []


def test_user_defined_pieces_are_right(tmp_path: Path) -> None:
    """Merges neither make them nor are made of them."""
    original = tmp_path / "own.model"
    own = ["▁<PRE>", "<tool>", "<tool>+", "the cat"]
    original.write_bytes(train(user_defined_symbols=own, vocab_size=430))
    folder = written_from(original, tmp_path / "written")
    assert compare_tokenizers(original, folder).findings == []


def test_both_spellings_of_merges_are_right(tmp_path: Path) -> None:
    original = RANKS_MODEL
    folder = written_from(original, tmp_path)
    rewrite(folder / "tokenizer.json", lambda c: c["model"].update(merges=[*map(str.split, merges(c))]))
    assert compare_tokenizers(original, folder).findings == []


# ------------------------------------------------------------------------ faults within tokenizer.json


Change = Callable[[Json], object]


def rewrite(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False))


def vocab(content: Json) -> dict[str, int]:
    words: dict[str, int] = content["model"]["vocab"]
    return words


def merges(content: Json) -> list[str]:
    pairs: list[str] = content["model"]["merges"]
    return pairs


def added(content: Json, name: str) -> Json:
    return next(token for token in content["added_tokens"] if token["content"] == name)


def renumber(ids: Callable[[str, int], int]) -> Change:
    """Give tokens other ids, wherever the file says them."""

    def change(content: Json) -> None:
        words = vocab(content)
        content["model"]["vocab"] = {name: ids(name, number) for name, number in words.items()}
        for token in content["added_tokens"]:
            token["id"] = ids(token["content"], token["id"])

    return change


def ids_of(content: Json) -> dict[str, int]:
    return vocab(content) | {token["content"]: token["id"] for token in content["added_tokens"]}


def swap(one: str, other: str) -> Change:
    def change(content: Json) -> None:
        ids = ids_of(content)
        to = {one: ids[other], other: ids[one]}
        renumber(lambda name, number: to.get(name, number))(content)

    return change


def rename(old: str, new: str) -> Change:
    def change(content: Json) -> None:
        content["model"]["vocab"] = {new if n == old else n: number for n, number in vocab(content).items()}

    return change


def swap_merges(one: str, other: str) -> Change:
    def change(content: Json) -> None:
        to = {one: other, other: one}
        content["model"]["merges"] = [to.get(merge, merge) for merge in merges(content)]

    return change


def last(merge: str) -> Change:
    return lambda c: (merges(c).remove(merge), merges(c).append(merge))


def model(**options: Any) -> Change:
    return lambda c: c["model"].update(options)


def top(**parts: Any) -> Change:
    return lambda c: c.update(parts)


def digits(content: Json) -> None:
    split = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    split["Regex"] = split["Regex"].replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Fault:
    """What is done to a tokenizer.json, and what is said of it."""

    change: Change
    code: str
    names: str
    alone: str | None = ""
    """The code where there is no original; "" for the same, None where nothing can show."""


def described(name: str, **options: Any) -> Change:
    return lambda c: added(c, name).update(options)


EOT = "<|eot_id|>"
PIECES = {
    "two words": Fault(swap("▁said", "▁llama"), "TOKEN_IDS", "'▁said' (301 instead of 292)", "MERGE_ORDER"),
    "two bytes": Fault(swap("<0x0A>", "<0x41>"), "TOKEN_IDS", "'<0x0A>' (68"),
    "two letters": Fault(swap("e", "t"), "TOKEN_IDS", "'e'", None),
    "two roles": Fault(swap("<s>", "</s>"), "TOKEN_IDS", "'<s>' (2"),
    "first and last": Fault(swap("<unk>", "x"), "TOKEN_IDS", "'<unk>' (399"),
    "byte and word": Fault(swap("<0x0A>", "▁said"), "TOKEN_IDS", "'<0x0A>' (292 instead of 13)"),
    "id shared": Fault(
        renumber(lambda name, n: 301 if name == "▁said" else n), "TOKEN_IDS", "'▁said'", "TOKEN_DUPLICATE"
    ),
    "shifted": Fault(renumber(lambda _, n: n + 1), "TOKEN_IDS", "'<unk>' (1 instead of 0)", "TOKEN_GAP"),
    "words shifted": Fault(renumber(lambda _, n: n + (n >= 259)), "TOKEN_IDS", "by +1", "TOKEN_GAP"),
    "merge removed": Fault(lambda c: merges(c).remove("▁t he"), "MERGE_MISSING", "'▁t he'"),
    "only merge removed": Fault(lambda c: merges(c).remove("m e"), "MERGE_MISSING", "'m e'"),
    "no merges": Fault(lambda c: merges(c).clear(), "MERGE_MISSING", "Without merges"),
    "merges swapped": Fault(swap_merges("h e", "e r"), "MERGE_ORDER", "'he'"),
    "merge at last": Fault(last("▁th e"), "MERGE_ORDER", "'▁the'"),
    "merge added": Fault(lambda c: merges(c).append("a x"), "MERGE_EXTRA", "'a x'"),
    "renamed": Fault(
        rename("▁said", "▁spoke"), "TOKEN_RENAMED", "'▁spoke' instead of '▁said'", "MERGE_EXTRA"
    ),
    "missing": Fault(lambda c: vocab(c).pop("▁said"), "TOKEN_MISSING", "'▁said'", "TOKEN_GAP"),
    "extra": Fault(lambda c: vocab(c).update(zebra=400), "TOKEN_EXTRA", "'zebra'", "TOKENIZER_SIZE"),
    "byte fallback": Fault(model(byte_fallback=False), "TOKENIZER_IDS", "byte fallback", "TOKENIZER_DECODE"),
    "dropout": Fault(model(dropout=1.0), "TOKENIZER_IDS", "'Hello", None),
    "normalizer": Fault(top(normalizer=None), "TOKENIZER_IDS", "dummy prefix", "TOKENIZER_DECODE"),
    "no prefix": Fault(
        lambda c: c["normalizer"]["normalizers"].pop(0), "TOKENIZER_IDS", "dummy prefix", "TOKENIZER_DECODE"
    ),
    "lower case": Fault(
        lambda c: c["normalizer"]["normalizers"].append({"type": "Lowercase"}),
        "TOKENIZER_IDS",
        "normalizer",
        "TOKENIZER_DECODE",
    ),
    "split at spaces": Fault(
        top(pre_tokenizer={"type": "Whitespace"}), "TOKENIZER_IDS", "pre-tokenizer", "TOKENIZER_DECODE"
    ),
    "space kept": Fault(lambda c: c["decoder"]["decoders"].pop(), "TOKENIZER_DECODE", "'  '"),
    "space stripped": Fault(
        lambda c: c["decoder"]["decoders"][-1].update(start=9), "TOKENIZER_DECODE", "'  '"
    ),
    "bytes as text": Fault(lambda c: c["decoder"]["decoders"].pop(1), "TOKENIZER_DECODE", "<0x09>"),
    "decoder that panics": Fault(
        lambda c: c["decoder"]["decoders"][-1].update(stop=9), "TOKENIZER_DECODE", "' '"
    ),
    "no BOS": Fault(top(post_processor=None), "TOKENIZER_BOS", "no BOS"),
    "not special": Fault(described("</s>", special=False), "TOKEN_SPECIAL", "'</s>'"),
    "not added": Fault(lambda c: c["added_tokens"].pop(1), "TOKEN_SPECIAL", "'<s>'"),
    "normalized": Fault(described("<s>", normalized=True), "TOKEN_NORMALIZED", "'<s>'"),
    "truncation": Fault(
        top(truncation={"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
        "TOKENIZER_LIMITS",
        "truncation",
    ),
    "another model": Fault(model(type="WordPiece"), "TOKENIZER_UNSUPPORTED", "BPE"),
    "no model": Fault(lambda c: c.pop("model"), "TOKENIZER_UNSUPPORTED", "BPE"),
}
RANKS = {
    "two words": Fault(swap("Ġsaid", "Ġllama"), "TOKEN_IDS", "'Ġsaid'", "MERGE_ORDER"),
    "two bytes": Fault(swap("a", "b"), "TOKEN_IDS", "97 and 98"),
    "byte and word": Fault(swap("a", "Ġsaid"), "TOKEN_IDS", "'a' (288 instead of 97)"),
    "two named": Fault(swap(EOT, "<|end_of_text|>"), "TOKEN_IDS", f"'{EOT}' (385 instead of 393)"),
    "two reserved": Fault(
        swap("<|reserved_special_token_7|>", "<|reserved_special_token_8|>"),
        "TOKEN_IDS",
        "399 and 400",
    ),
    "first and last": Fault(
        swap("Ā", "<|reserved_special_token_247|>"), "TOKEN_IDS", "'Ā' (639 instead of 0)"
    ),
    "shifted": Fault(renumber(lambda _, n: n + 1), "TOKEN_IDS", "'Ā' (1 instead of 0)", "TOKEN_GAP"),
    "merge removed": Fault(lambda c: merges(c).remove("Ġt he"), "MERGE_MISSING", "'Ġt he'"),
    "merges swapped": Fault(swap_merges("h e", "e r"), "MERGE_ORDER", "'he'"),
    "renamed": Fault(
        rename("Ġsaid", "Ġspoke"), "TOKEN_RENAMED", "'Ġspoke' instead of 'Ġsaid'", "MERGE_EXTRA"
    ),
    "missing": Fault(lambda c: vocab(c).pop("Ġsaid"), "TOKEN_MISSING", "'Ġsaid'", "TOKEN_GAP"),
    "special missing": Fault(lambda c: c["added_tokens"].pop(), "TOKEN_MISSING", "id 639", "TOKENIZER_SIZE"),
    "special renamed": Fault(described(EOT, content="<turn>"), "TOKEN_RENAMED", f"'{EOT}'"),
    "ignore_merges": Fault(
        lambda c: (model(ignore_merges=False)(c), merges(c).remove("p py")), "TOKENIZER_IDS", "ignore_merges"
    ),
    "dropout": Fault(model(dropout=1.0, ignore_merges=False), "TOKENIZER_IDS", "'Hello"),
    "lower case": Fault(top(normalizer={"type": "Lowercase"}), "TOKENIZER_IDS", "normalizer"),
    "composed": Fault(top(normalizer={"type": "NFC"}), "TOKENIZER_IDS", "normalizer"),
    "prefix": Fault(
        lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "TOKENIZER_IDS",
        "normalizer changes",
    ),
    "no decoder": Fault(top(decoder=None), "TOKENIZER_DECODE", "Ġ"),
    "no BOS": Fault(lambda c: c["post_processor"]["processors"].pop(), "TOKENIZER_BOS", "no BOS"),
    "EOS too": Fault(
        lambda c: c["post_processor"]["processors"][1]["single"].append(
            {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
        ),
        "TOKENIZER_BOS",
        "other tokens",
    ),
    "not special": Fault(described(EOT, special=False), "TOKEN_SPECIAL", f"'{EOT}'"),
    "greedy": Fault(described(EOT, lstrip=True), "TOKEN_SPECIAL", f"'{EOT}'"),
    "padding": Fault(
        top(
            padding={
                "strategy": {"Fixed": 4},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "Ā",
            }
        ),
        "TOKENIZER_LIMITS",
        "padding",
    ),
    "another model": Fault(model(type="Unigram"), "TOKENIZER_UNSUPPORTED", "BPE"),
}
FAULTS = [("llama2-mp2", name) for name in PIECES] + [("llama3.1-mp2", name) for name in RANKS]


@pytest.mark.parametrize(("source", "name"), FAULTS)
def test_faults(source: str, name: str, converted: dict[str, Path], tmp_path: Path) -> None:
    fault = (PIECES if source == "llama2-mp2" else RANKS)[name]
    folder = tokenizer_of(converted[source], tmp_path / "copy")
    rewrite(folder / "tokenizer.json", fault.change)
    assert_found(compare_tokenizers(FIXTURES / source / "tokenizer.model", folder), fault.code, fault.names)
    found = {finding.code for finding in alone(folder).findings}
    assert (found == set()) if fault.alone is None else ((fault.alone or fault.code) in found), found


def test_digits_split_at_other_places(tmp_path: Path) -> None:
    """Three at a time; seen where tokens have two."""
    original = tmp_path / "tokenizer.model"
    original.write_bytes(RANKS_MODEL.read_bytes() + b"MTI= 384\nMTIz 385\n")
    folder = written_from(original, tmp_path / "written")
    rewrite(folder / "tokenizer.json", digits)
    for check in (compare_tokenizers(original, folder), alone(folder)):
        assert_found(check, "TOKENIZER_IDS", "'123'")
        assert_found(check, "TOKENIZER_IDS", "pre-tokenizer")


@pytest.mark.parametrize(("fixture", "words", "merge"), [
    ("llama2_tokenizer_model", ("▁Hello", "▁world"), "▁th e"),
    pytest.param("llama3_tokenizer_model", ("Hello", "Ġworld"), "Ġt he", marks=pytest.mark.slow),
])  # fmt: skip
def test_faults_in_real_ones(
    fixture: str, words: tuple[str, str], merge: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    original = request.getfixturevalue(fixture)
    folder = written_from(original, tmp_path)
    rewrite(folder / "tokenizer.json", lambda c: (swap(*words)(c), merges(c).remove(merge)))
    compared, single = compare_tokenizers(original, folder), alone(folder)
    assert_found(compared, "TOKEN_IDS", "are swapped")
    assert_found(single, "MERGE_ORDER", "are swapped")
    for check in (compared, single):
        assert_found(check, "MERGE_MISSING", repr(merge))
    for word in words:
        assert_found(compared, "TOKEN_IDS", repr(word))
        assert_found(single, "MERGE_ORDER", repr(word))


# -------------------------------------------------------------------------------- faults of whole files

BROKEN = {
    "cut short": (lambda data: data[: len(data) // 2], "TOKENIZER_UNREADABLE", "Invalid JSON"),
    "empty": (lambda data: b"", "TOKENIZER_UNREADABLE", "Invalid JSON"),
    "not text": (lambda data: b"\x00\xff", "TOKENIZER_UNREADABLE", "Not UTF-8"),
    "nested": (lambda data: b"[" * 100_000, "TOKENIZER_UNREADABLE", "nested"),
    "a list": (lambda data: b"[]", "TOKENIZER_UNSUPPORTED", "BPE"),
    "odd merges": (lambda data: data.replace(b'"h e"', b"7"), "TOKENIZER_UNSUPPORTED", "BPE"),
    "odd ids": (lambda data: data.replace(b'"he": ', b'"he": "7", "x7": '), "TOKENIZER_UNSUPPORTED", "BPE"),
    "odd decoder": (
        lambda data: data.replace(b'"decoder": {\n    "type": "', b'"decoder": {\n    "type": "No'),
        "TOKENIZER_UNREADABLE",
        "rejects",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name: str, tmp_path: Path) -> None:
    change, code, names = BROKEN[name]
    path = written_from(RANKS_MODEL, tmp_path) / "tokenizer.json"
    data = path.read_bytes()
    path.write_bytes(change(data))
    assert path.read_bytes() != data
    for check in (compare_tokenizers(RANKS_MODEL, tmp_path), alone(tmp_path)):
        assert_found(check, code, names)


@pytest.mark.parametrize(("original", "other"), [(PIECES_MODEL, RANKS_MODEL), (RANKS_MODEL, PIECES_MODEL)])
def test_tokenizer_of_another_model(original: Path, other: Path, tmp_path: Path) -> None:
    """What alone is right may be another model's; the embedding's size can say so."""
    folder = written_from(other, tmp_path)
    assert_found(compare_tokenizers(original, folder), "TOKENIZER_DIFFERS", "is a different one")
    assert [finding.code for finding in alone(folder, vocab_size=333).findings] == ["TOKENIZER_SIZE"]


def test_tokenizer_of_a_sister_model(converted: dict[str, Path], tmp_path: Path) -> None:
    folder = tokenizer_of(converted["llama3.2-tied"], tmp_path / "copy")
    check = compare_tokenizers(RANKS_MODEL, folder)
    assert_found(check, "TOKEN_RENAMED", "32 tokens with another name")
    assert_found(check, "TOKEN_MISSING", "32 tokens")


def test_missing(tmp_path: Path) -> None:
    assert check_tokenizer(tmp_path) is None
    assert_found(compare_tokenizers(RANKS_MODEL, tmp_path), "TOKENIZER_MISSING", "no tokenizer.json")
    shutil.copy(RANKS_MODEL, tmp_path)
    assert [(finding.code, finding.is_warning) for finding in alone(tmp_path).findings] == [
        ("TOKENIZER_MISSING", True)
    ]


def test_the_original_in_the_folder_is_taken(converted: dict[str, Path], tmp_path: Path) -> None:
    folder = tokenizer_of(converted["llama2-mp2"], tmp_path / "copy")
    shutil.copy(PIECES_MODEL, folder)
    rewrite(folder / "tokenizer.json", swap("e", "t"))
    assert_found(alone(folder), "TOKEN_IDS", "'e'")


# ------------------------------------------------------------------------------------ faults of configs


def template(text: str) -> Change:
    return lambda c: c.update(chat_template=text)


def key(**options: Any) -> Change:
    return lambda c: c.update(options)


CONFIG, GENERATION, TOKENIZER, ROLES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
CONFIG_FAULTS = {
    "bos id": (CONFIG, key(bos_token_id=385), "BOS_ID", "bos_token_id is 385, not the BOS. 384"),
    "bos id to generate": (GENERATION, key(bos_token_id=1), "BOS_ID", "bos_token_id is 1, not the BOS. 384"),
    "bos token": (TOKENIZER, key(bos_token="<|eot_id|>"), "BOS_ID", "'<|eot_id|>' (id 393), not the BOS"),
    "bos role": (
        ROLES,
        key(bos_token={"content": "<|eot_id|>"}),
        "BOS_ID",
        "'<|eot_id|>' (id 393), not the BOS",
    ),
    "no BOS": (TOKENIZER, key(add_bos_token=False), "TOKENIZER_BOS", "add_bos_token"),
    "eos id": (CONFIG, key(eos_token_id=288), "EOS_ID", "288, not a special token"),
    "eos ids": (GENERATION, key(eos_token_id=[385, 2]), "EOS_ID", "2, not a special token"),
    "eos id of no token": (CONFIG, key(eos_token_id=640), "EOS_ID", "640, not a special token"),
    "eos token": (TOKENIZER, key(eos_token="<|eot_id|>"), "EOS_ID", "does not stop. 385 393"),
    "role of no token": (TOKENIZER, key(pad_token="<pad>"), "TOKEN_ROLE", "'<pad>'"),
    "added token": (
        TOKENIZER,
        lambda c: c["added_tokens_decoder"].update({"393": {"content": "<|eom_id|>"}}),
        "ADDED_TOKENS_MISMATCH",
        "'<|eom_id|>' (id 393)",
    ),
    "template cut short": (TOKENIZER, template("{% if x %}"), "CHAT_TEMPLATE_INVALID", "not valid Jinja"),
    "template of others": (
        TOKENIZER,
        template("<|im_start|>{{ x }}"),
        "CHAT_TEMPLATE_INVALID",
        "'<|im_start|>'",
    ),
    "template in a list": (
        TOKENIZER,
        lambda c: c.update(chat_template=[{"name": "default", "template": "{{"}]),
        "CHAT_TEMPLATE_INVALID",
        "not valid Jinja",
    ),
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_faults_of_configs(name: str, converted: dict[str, Path], tmp_path: Path) -> None:
    file, change, code, names = CONFIG_FAULTS[name]
    folder = tokenizer_of(converted["llama3.1-mp2"], tmp_path / "copy")
    rewrite(folder / file, change)
    for check in (compare_tokenizers(RANKS_MODEL, folder), alone(folder)):
        assert_found(check, code, names, file)


def test_a_byte_ends_no_text(converted: dict[str, Path], tmp_path: Path) -> None:
    folder = tokenizer_of(converted["llama2-mp2"], tmp_path / "copy")
    rewrite(folder / "generation_config.json", key(eos_token_id=[2, 13]))
    for check in (compare_tokenizers(PIECES_MODEL, folder), alone(folder)):
        assert_found(check, "EOS_ID", "13, not a special token", "generation_config.json")


@pytest.mark.parametrize("token", ["he", "A"])
def test_tokenizer_of_no_llama(token: str, tmp_path: Path) -> None:
    folder = written_from(RANKS_MODEL, tmp_path)
    rewrite(folder / "tokenizer.json", rename(token, "日"))
    assert_found(alone(folder), "TOKENIZER_UNSUPPORTED", "Not a Llama tokenizer")


def test_config_that_is_none(converted: dict[str, Path], tmp_path: Path) -> None:
    folder = tokenizer_of(converted["llama3.1-mp2"], tmp_path / "copy")
    (folder / "config.json").write_text("[]")
    assert_found(alone(folder), "CONFIG_UNREADABLE", "Not a JSON object", "config.json")


def test_template_in_a_separate_file(tmp_path: Path) -> None:
    folder = written_from(RANKS_MODEL, tmp_path)
    good = "{%- for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% continue %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(good)
    assert alone(folder).findings == []
    (folder / "chat_template.jinja").write_text("{{ '<|eot|>' }")
    assert_found(alone(folder), "CHAT_TEMPLATE_INVALID", "not valid Jinja", "chat_template.jinja")
    assert_found(alone(folder), "CHAT_TEMPLATE_INVALID", "'<|eot|>'", "chat_template.jinja")


def test_guards_leave_the_bos_to_the_template(tmp_path: Path) -> None:
    template = "{{ bos_token }}Task: Check if there is unsafe content in {{ x }}"
    folder = written_from(RANKS_MODEL, tmp_path, chat_template=template)
    rewrite(folder / "tokenizer.json", lambda c: c["post_processor"]["processors"].pop())
    (finding,) = alone(folder).findings
    assert (finding.code, finding.is_warning) == ("TOKENIZER_BOS", True)


@pytest.mark.parametrize(("rows", "warning"), [(639, False), (641, True)])
def test_size(rows: int, warning: bool, tmp_path: Path) -> None:
    folder = written_from(RANKS_MODEL, tmp_path)
    for check in (compare_tokenizers(RANKS_MODEL, folder, rows), alone(folder, vocab_size=rows)):
        (finding,) = check.findings
        assert (finding.code, finding.is_warning) == ("TOKENIZER_SIZE", warning)


# --------------------------------------------------------------------------------- Meta's file alone


def swap_lines(one: int, other: int) -> Callable[[bytes], bytes]:
    """Swap two tokens of a tiktoken file."""

    def change(data: bytes) -> bytes:
        tokens = [line.split()[0] for line in data.splitlines()]
        tokens[one], tokens[other] = tokens[other], tokens[one]
        return b"".join(b"%s %d\n" % (token, rank) for rank, token in enumerate(tokens))

    return change


ORIGINALS: dict[str, tuple[Path, Callable[[bytes], bytes], str, str]] = {
    "words swapped": (RANKS_MODEL, swap_lines(256, 300), "TOKEN_ORDER", "'Ġthe' (id 260)"),
    "line missing": (RANKS_MODEL, lambda d: d.split(b"\n", 1)[1], "TOKENIZER_UNREADABLE", "ranks"),
    "line cut": (RANKS_MODEL, lambda d: d[:-6], "TOKENIZER_UNREADABLE", "tiktoken"),
    "bytes only": (RANKS_MODEL, lambda d: d[:100].rsplit(b"\n", 1)[0], "TOKENIZER_UNREADABLE", "byte 0x"),
    "pieces cut": (PIECES_MODEL, lambda d: d[:3000], "TOKENIZER_UNREADABLE", "sentencepiece"),
    "settings cut": (PIECES_MODEL, lambda d: d[:-20], "TOKENIZER_UNREADABLE", "sentencepiece"),
    "empty": (PIECES_MODEL, lambda d: b"", "TOKENIZER_UNREADABLE", "byte 0x00"),
    "garbage": (PIECES_MODEL, lambda d: bytes(range(256)), "TOKENIZER_UNREADABLE", "Neither"),
    "garbled": (PIECES_MODEL, lambda d: b"\n" + bytes(range(256)), "TOKENIZER_UNREADABLE", "Neither"),
    "web page": (PIECES_MODEL, lambda d: b"<!DOCTYPE html>", "TOKENIZER_UNREADABLE", "Neither"),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_faults_of_originals(name: str, tmp_path: Path) -> None:
    original, change, code, names = ORIGINALS[name]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(change(original.read_bytes()))
    assert_found(check_original(path), code, names, "tokenizer.model")
    if code == "TOKENIZER_UNREADABLE":
        assert_found(
            compare_tokenizers(path, written_from(original, tmp_path / "written")), code, names, path.name
        )


def test_no_original(tmp_path: Path) -> None:
    assert_found(check_original(tmp_path / "x"), "TOKENIZER_UNREADABLE", "Not found", "x")


def test_size_of_an_original() -> None:
    assert_found(check_original(RANKS_MODEL, 600), "TOKENIZER_SIZE", "640 tokens", "tokenizer.model")
