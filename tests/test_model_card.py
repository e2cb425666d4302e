"""What an output folder says of itself: its model card, the licence's notice, and who may write on them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from xxhash import xxh3_128_hexdigest

from llama_convert import ConvertOptions, convert, shard, verify
from llama_convert.checkpoints.manifest import manifest_json, read_manifest
from llama_convert.conversion import model_card
from llama_convert.llama.licenses import LLAMA_1, LLAMA_3, LLAMA_3_1, license_of
from llama_convert.llama.releases import RELEASES, Size
from tests import plant
from tests.peers import ROOT
from tests.run import llama_convert

FIXTURES = ROOT / "fixtures"
LLAMA31 = FIXTURES / "llama3.1-mp2"


@pytest.fixture
def meant_to_be_metas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the fixture, whose shape is its own, for Meta's."""
    shape = Size("8B", 64, 3, 4, 2, 224)
    releases = [replace(each, sizes=(shape,)) if each.version == "3.1" else each for each in RELEASES]
    monkeypatch.setattr("llama_convert.llama.releases.RELEASES", tuple(releases))


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    assert manifest
    return manifest


# What it says.


def test_of_a_custom_size(tmp_path: Path) -> None:
    """No license is claimed, because the weights may not be Meta's; a link says what holds if they are."""
    convert(LLAMA31, tmp_path / "out", ConvertOptions(instruct=True))
    data = ModelCard(text_of(tmp_path / "out")).data
    assert (data.license, data.library_name, data.pipeline_tag) == (None, "transformers", "text-generation")
    text = text_of(tmp_path / "out")
    assert "\n# Llama 3.1 architecture (custom size)\n" in text
    assert not (tmp_path / "out/NOTICE").exists()
    assert "Meta released no model of this size" in text
    assert "(https://www.llama.com/llama3_1/license/)" in text
    assert "Built with Llama" not in text
    assert "is licensed under" not in text
    assert "An instruct model in Hugging Face format: 1 shard, bfloat16." in text
    assert "Not verified yet" in text


@pytest.mark.usefixtures("meant_to_be_metas")
def test_of_metas(tmp_path: Path) -> None:
    convert(LLAMA31, tmp_path / "out")
    assert ModelCard(text_of(tmp_path / "out")).data.license == "llama3.1"
    assert "**Built with Llama**" in text_of(tmp_path / "out")
    said = (
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All "
    )
    assert (tmp_path / "out/NOTICE").read_text() == f"{said}Rights Reserved.\n"
    assert said in text_of(tmp_path / "out")
    convert(tmp_path / "out", tmp_path / "back", ConvertOptions(to="meta", mp=4))
    assert "A model in Meta format: 4 shards, bfloat16." in text_of(tmp_path / "back")
    assert ModelCard(text_of(tmp_path / "back")).data.library_name is None


def test_every_release_has_its_license() -> None:
    words = {
        (release.version, size.label): license_of(release.version, size.label)
        for release in RELEASES
        for size in release.sizes
    }
    hubs = {key: licence.hub for key, licence in words.items()}
    assert hubs["3", "8B"] == hubs["Guard-2", "8B"] == "llama3"
    assert (hubs["Guard-3", "8B"], hubs["Guard-3", "1B"]) == ("llama3.1", "llama3.2")
    assert hubs["code", "34B"] == hubs["Guard-1", "7B"] == "llama2"
    assert (LLAMA_3.display, LLAMA_3.prefix) == ("Built with Meta Llama 3", "Llama 3")
    assert license_of("3.1", None) is LLAMA_3_1
    assert [licence for licence in words.values() if not licence.notice] == [LLAMA_1] * 4


def test_sources_and_their_checksums(tmp_path: Path) -> None:
    shutil.copytree(LLAMA31, tmp_path / "in")
    md5s = [
        f"{hashlib.md5(file.read_bytes()).hexdigest()}  {file.name}\n" for file in (tmp_path / "in").iterdir()
    ]
    (tmp_path / "in/checklist.chk").write_text("".join(md5s))
    for compare in (False, True):
        convert(tmp_path / "in", tmp_path / f"{compare}", ConvertOptions(compare_checklist=compare))
        text, manifest = text_of(tmp_path / f"{compare}"), manifest_of(tmp_path / f"{compare}")
        for source in manifest["sources"]:
            assert (
                f"| `{source['name']}` | {source['bytes']:,} | {source['md5']} | {source['xxh3_128']} |"
                in text
            )
        assert f"The files were {'' if compare else 'not '}compared with those MD5s" in text
    names = [source["name"] for source in manifest["sources"]]
    assert names == ["consolidated.00.pth", "consolidated.01.pth", "params.json"]


def test_a_rank_file_is_detected_by_its_weights(tmp_path: Path) -> None:
    """Of two that differ by a bit, both sound, the digests differ."""
    shutil.copytree(LLAMA31, tmp_path / "other")
    state = torch.load(tmp_path / "other/consolidated.01.pth")
    state["layers.0.attention.wv.weight"][3, 5] += 1
    torch.save(state, tmp_path / "other/consolidated.01.pth")
    digests = []
    for source in (LLAMA31, tmp_path / "other"):
        convert(source, tmp_path / f"out-{source.name}")
        digests.append([each["xxh3_128"] for each in manifest_of(tmp_path / f"out-{source.name}")["sources"]])
    assert [one == other for one, other in zip(*digests, strict=True)] == [True, False, True]


def test_casts_are_counted(tmp_path: Path) -> None:
    convert(LLAMA31, tmp_path / "out", ConvertOptions(dtype="fp16"))
    assert "weights were cast to float16: 0 of their values overflowed" in text_of(tmp_path / "out")


PUNCTUATION = string.punctuation
MARKUP = [
    "![x](https://evil.example/track.png)",
    "[click](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "<https://evil.example>",
    "https://evil.example/login",
    "www.evil.example",
    "me@evil.example",
    "@everyone #1",
    "# Heading",
    "a|b|c\\|d\\\\|e",
    "`code` ``more`` `",
    "\\` \\[x](y)",
    "&lt;script&gt; &#x3c;",
    "**bold** _it_ ~~no~~ $x^2$",
    "line\n\n# two\r\n---\n",
    "\n---\nlicense: mit\n---\n",
    "-->",
    "\x1b[31m\u202e\udcff",
    PUNCTUATION,
]


def rendered(manifest: dict[str, Any], files: list[str]) -> tuple[list[Token], str]:
    """All that a renderer makes of a card's body, in a row; and the body."""
    body = model_card.render(manifest, files).decode().split("---\n", 2)[2]
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    return [inner for token in parsed for inner in (token, *(token.children or []))], body


def shown(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


def outline(tokens: list[Token]) -> list[tuple[str, str | int | float]]:
    """Elements and where links lead; text and code count alike."""
    plain = ("text", "text_special", "code_inline", "softbreak")
    return [(token.type, token.attrs.get("href", "")) for token in tokens if token.type not in plain]


def with_texts(manifest: dict[str, Any], text: str) -> dict[str, Any]:
    """A manifest in which every text that is free says ``text``."""
    rows = [{"level": text, "status": text, "summary": text}]
    source = {"name": text, "bytes": 1, "md5": text, "xxh3_128": text}
    return manifest | {
        "tool": text,
        "release": text,
        "dtype": text,
        "evidence": [text, text],
        "alternatives": [text],
        "sources": [source],
        "casts": {text: {"overflowed": 0, "vanished": 0}},
        "verification": {"ok": True, "against_source": True, "levels": rows},
    }


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("manifest") / "out"
    convert(LLAMA31, out)
    return manifest_of(out)


def shows_as_text(manifest: dict[str, Any], text: str) -> None:
    expected, _ = rendered(with_texts(manifest, "x"), ["LICENSEx"])
    tokens, body = rendered(with_texts(manifest, text), [f"LICENSE{text}"])
    assert outline(tokens) == outline(expected)
    title = next(token for token, before in zip(tokens[1:], tokens, strict=False) if before.tag == "h1")
    visible = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    shown_in_code = {c: f"\\x{ord(c):02x}" for c in "`|\\"}
    in_code = "".join(shown_in_code.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in text)
    assert shown(title).strip() in (visible.strip(), in_code.strip())
    assert all(c.isprintable() or c == "\n" for c in body)
    assert not re.search(r"https?:|www\.|@", re.sub(r"`[^`\n]*`|\]\(https://\S+\)", "", body), re.IGNORECASE)


@pytest.mark.parametrize("text", MARKUP)
def test_texts_show_as_text(manifest: dict[str, Any], text: str) -> None:
    """No image, link, element, heading, cell or front matter is made of them."""
    shows_as_text(manifest, text)
    assert model_card.render(with_texts(manifest, text), []).startswith(b"---\nlibrary_name: transformers\n")


@given(text=st.text(st.sampled_from(PUNCTUATION + "aw1. \n\t\u202e\udcff") | st.characters(), min_size=1))
def test_any_text_shows_as_text(manifest: dict[str, Any], text: str) -> None:
    shows_as_text(manifest, text)


def test_punctuation_reads_as_it_is(manifest: dict[str, Any]) -> None:
    """Each character alone, as a reader sees it."""
    for c in PUNCTUATION.replace("@", ""):  # that is in code
        tokens, _ = rendered(manifest | {"release": f"a{c}b"}, [])
        title = next(token for token, before in zip(tokens[1:], tokens, strict=False) if before.tag == "h1")
        assert shown(title) == f"a{c}b"


def test_names_are_code(manifest: dict[str, Any]) -> None:
    source = {"name": "a|b`<x>\n\udcff.safetensors", "bytes": 1, "xxh3_128": "0"}
    lines = model_card.render(manifest | {"sources": [source]}, []).decode().split("\n")
    assert r"| `a\x7cb\x60<x>\n\udcff.safetensors` | 1 | 0 |" in lines


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", "9"),
        ("version", ["3.1"]),
        ("size", 8),
        ("layout", "gguf"),
        ("layout", {}),
        ("instruct", "yes"),
        ("evidence", None),
        ("evidence", [1]),
        ("sources", [{"bytes": 1}]),
        ("sources", [{"name": "x", "md5": []}]),
        ("casts", {"x": {}}),
        ("tool", None),
        ("files", None),
        ("plan", "dropped"),
    ],
)
def test_a_manifest_of_something_else(tmp_path: Path, key: str, value: Any) -> None:
    """Sealed, but not by a conversion of ours: refused by name, or its entry is not needed."""
    convert(LLAMA31, tmp_path / "out")
    content = manifest_of(tmp_path / "out") | {key: value}
    (tmp_path / "out/llama-convert.json").write_bytes(manifest_json(content))
    run = llama_convert("verify", tmp_path / "out", "--check", "structure", "--record", "--json")
    assert run.exit_code == (0 if key == "plan" else 3), run.stderr
    assert key == "plan" or run.json["code"] == "MANIFEST_VALUE"


# The terms go along.


@pytest.mark.parametrize(
    ("source", "terms"),
    [
        ("download", "download"),  # all in one folder
        ("download/original", "download"),  # as the Hub has it
        ("download/original/mp8", "download"),
        ("download/original", "download/original"),
    ],
)
def test_terms_of_use(tmp_path: Path, source: str, terms: str) -> None:
    shutil.copytree(LLAMA31, tmp_path / source)
    for name in ("LICENSE.txt", "USE_POLICY.md", "Notice.txt", "README.md"):
        (tmp_path / terms / name).write_text(f"The {name}")
    convert(tmp_path / source, tmp_path / "out")
    for name in ("LICENSE.txt", "USE_POLICY.md", "Notice.txt"):
        assert (tmp_path / "out" / name).read_text() == f"The {name}"
    assert not (tmp_path / "out/NOTICE").exists()
    assert "The terms are next to the weights: `LICENSE.txt`, `Notice.txt`, `USE_POLICY.md`." in text_of(
        tmp_path / "out"
    )
    assert set(manifest_of(tmp_path / "out")["files"]) >= {"LICENSE.txt", "USE_POLICY.md", "Notice.txt"}


def test_terms_next_to_the_tokenizer(tmp_path: Path) -> None:
    """As Llama 2 came: one licence and one tokenizer above all sizes."""
    shutil.copytree(FIXTURES / "llama2-mp2", tmp_path / "llama/llama-2-7b")
    (tmp_path / "llama/llama-2-7b/tokenizer.model").rename(tmp_path / "llama/tokenizer.model")
    (tmp_path / "llama/LICENSE").write_text("Meta's")
    convert(tmp_path / "llama/llama-2-7b", tmp_path / "out")
    assert (tmp_path / "out/LICENSE").read_text() == "Meta's"


def test_terms_that_may_not_be_read(tmp_path: Path) -> None:
    shutil.copytree(LLAMA31, tmp_path / "in")
    (tmp_path / "in/LICENSE").symlink_to("/dev/full")
    (tmp_path / "in/LICENSE.txt").symlink_to("nowhere")
    convert(tmp_path / "in", tmp_path / "out")  # no files, either of them
    (tmp_path / "in/USE_POLICY.md").write_text("Be good.")
    (tmp_path / "in/USE_POLICY.md").chmod(0)
    if os.access(tmp_path / "in/USE_POLICY.md", os.R_OK):
        pytest.skip("nothing is forbidden to this user")
    run = llama_convert("convert", tmp_path / "in", tmp_path / "no", "--json")
    assert (run.exit_code, run.json["code"], run.json["file"]) == (
        3,
        "INPUT_PERMISSION",
        str(tmp_path / "in/USE_POLICY.md"),
    )


def test_terms_of_another_project_stay_where_they_are(tmp_path: Path) -> None:
    shutil.copytree(LLAMA31, tmp_path / "project/model")
    (tmp_path / "project/LICENSE").write_text("The project's")
    convert(tmp_path / "project/model", tmp_path / "out")
    assert not (tmp_path / "out/LICENSE").exists()


# Who may write on it.


@pytest.mark.parametrize(
    "edit", [lambda text: text + "More.\n", lambda text: text.replace("base", "good"), str.upper]
)
def test_a_card_that_a_person_has_changed_is_that_persons(tmp_path: Path, edit: Any) -> None:
    out = tmp_path / "out"
    convert(LLAMA31, out)
    edited = edit(text_of(out))
    (out / "README.md").write_text(edited)
    assert not model_card.is_unedited(out / "README.md")
    assert verify(out, LLAMA31).ok
    assert "up to date" in llama_convert("convert", LLAMA31, out).stderr
    assert llama_convert("verify", out, "--record", "--check", "values").exit_code == 0
    assert (
        "Kept, because it was edited."
        in llama_convert("convert", LLAMA31, out, "--overwrite", "--dtype", "fp16").stderr
    )
    shard(out, tmp_path / "cut", max_shard_size="100KB")
    assert text_of(out) == text_of(tmp_path / "cut") == edited


def test_a_card_of_an_earlier_version_is_recognized(tmp_path: Path) -> None:
    body = "---\ntags:\n- llama\n---\n\n# Llama 3.1 8B\n\n"
    digest = xxh3_128_hexdigest(body.encode())
    seal = f"<!-- llama-convert wrote this card; as it did so its digest was {digest} -->\n"
    (tmp_path / "README.md").write_text(body + seal)
    assert model_card.is_unedited(tmp_path / "README.md")
    (tmp_path / "README.md").write_text(body + "Mine.\n" + seal)
    assert not model_card.is_unedited(tmp_path / "README.md")


def test_a_generated_card_is_re_created(tmp_path: Path) -> None:
    """A card that says how another folder was made is not carried over."""
    convert(LLAMA31, tmp_path / "hf")
    shard(tmp_path / "hf", tmp_path / "cut", max_shard_size="100KB")
    assert "| `model.safetensors` |" in text_of(tmp_path / "cut")
    assert "| `model.safetensors` |" not in text_of(tmp_path / "hf")
    convert(LLAMA31, tmp_path / "hf", ConvertOptions(dtype="fp16", overwrite=True))
    assert "float16" in text_of(tmp_path / "hf")


# How its verification ended.


def test_a_verification_is_recorded(tmp_path: Path) -> None:
    run = llama_convert("convert", LLAMA31, tmp_path / "out", "--verify")
    assert run.exit_code == 0, run.stderr
    recorded = manifest_of(tmp_path / "out")["verification"]
    assert (recorded["ok"], recorded["against_source"]) == (True, True)
    assert [level["status"] for level in recorded["levels"]] == ["pass"] * 5
    assert "compared it with its source: **pass**" in text_of(tmp_path / "out")
    assert model_card.is_unedited(tmp_path / "out/README.md")
    plant.edit_json(tmp_path / "out/config.json", lambda content: content.update(rope_theta=1234.0))
    assert llama_convert("verify", tmp_path / "out", "--source", LLAMA31, "--record").exit_code == 1
    assert not manifest_of(tmp_path / "out")["verification"]["ok"]
    assert "compared it with its source: **FAIL**" in text_of(tmp_path / "out")
    assert verify(tmp_path / "out").checks[1].findings[0].file == "config.json"  # alone: the rest is whole


def test_it_is_compared_with_what_was_converted(tmp_path: Path) -> None:
    """In a download from the Hub that is the ranks, not the safetensors beside them."""
    convert(LLAMA31, tmp_path / "hub")
    shutil.copytree(LLAMA31, tmp_path / "hub/original")
    run = llama_convert("convert", tmp_path / "hub", tmp_path / "out", "--verify", "--json")
    assert run.json["source"] == run.json["verification"]["source"] == str(tmp_path / "hub/original")
    told = llama_convert("convert", tmp_path / "hub", tmp_path / "again").stderr
    assert told.endswith(f"llama-convert verify {tmp_path / 'again'} --source {tmp_path / 'hub/original'}\n")


def test_only_what_we_have_made_can_be_recorded(tmp_path: Path) -> None:
    run = llama_convert("verify", LLAMA31, "--record", "--json")
    assert (run.exit_code, json.loads(run.stdout)["code"]) == (2, "BAD_USAGE")
    assert "has no llama-convert.json." in run.stderr
    convert(LLAMA31, tmp_path / "out")
    (tmp_path / "out/llama-convert.json").write_text("{")
    run = llama_convert("verify", tmp_path / "out", "--record", "--json")
    assert (run.exit_code, json.loads(run.stdout)["code"]) == (3, "MANIFEST_JSON")


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    """No date, no path, nothing of the machine."""
    for name in ("one", "two"):
        run = llama_convert("convert", LLAMA31, tmp_path / name, "--verify", "--workers", len(name))
        assert run.exit_code == 0
    for name in ("README.md", "llama-convert.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
