"""Official files are told by their published checksums, and nothing is claimed beyond what is known."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama_convert.errors import InputError
from llama_convert.tokenizers import TokenizerOptions, convert_tokenizer, open_tokenizer
from llama_convert.verification import official_files as module
from llama_convert.verification.official_files import OfficialFile, identify_file, official_files

# --------------------------------------------------------------------------------------------- the table

DIGITS = {"sha256": 64, "md5": 32}


def test_table_is_well_formed() -> None:
    assert len(official_files()) > 200
    for row in official_files():
        assert row.format in ("meta", "hf"), row
        assert row.confidence in ("two", "one", "computed"), row
        assert all((row.release, row.repository, row.file, row.source)), row
        assert row.size is None or row.size > 0, row
        assert len(row.digest) == DIGITS.get(row.algorithm, 0), row
        assert set(row.digest) <= set("0123456789abcdef"), row
        assert row.digest or (row.size and not row.algorithm), row


def test_table_does_not_contradict_itself() -> None:
    names, sizes, digests = defaultdict(set), defaultdict(set), defaultdict(list)
    for row in official_files():
        if row.digest:
            names[row.digest].add(row.name)
            sizes[row.digest].update({row.size} - {None})
            digests[row.repository, row.file, row.algorithm].append(row.digest)
    for known in (names, sizes, digests):
        assert [key for key, values in known.items() if len(values) > 1] == []
    # No line says that there is no digest of a file which has one.
    without = {(row.repository, row.file) for row in official_files() if not row.digest}
    assert without & {key[:2] for key in digests} == set()


def test_table_is_not_read_before_it_is_needed() -> None:
    module = "llama_convert.verification.official_files"
    code = f"import {module} as table; print(table.official_files.cache_info().currsize)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "0\n"


# --------------------------------------------------------------------------- official files, made anew


def llama1(dim: int, n_heads: int, n_layers: int, norm_eps: float) -> str:
    shape = {"dim": dim, "multiple_of": 256, "n_heads": n_heads, "n_layers": n_layers}
    return json.dumps({**shape, "norm_eps": norm_eps, "vocab_size": -1})


def llama3(dim: int, n_layers: int, multiplier: float, multiple_of: int, indent: int | None) -> str:
    shape = {"dim": dim, "n_layers": n_layers, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    ffn = {"ffn_dim_multiplier": multiplier, "multiple_of": multiple_of}
    rest = {"norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True}
    return json.dumps({**shape, **ffn, **rest}, indent=indent)


def checklist(repository: str, *names: str, prefix: str = "") -> str:
    md5 = {
        row.file: row.digest
        for row in official_files()
        if (row.repository, row.algorithm) == (repository, "md5")
    }
    return "".join(f"{md5[name]}  {prefix}{name}\n" for name in names)


PARTS = tuple(f"consolidated.{rank:02d}.pth" for rank in range(4))
INSTRUCT_1B = "Meta download Llama3.2-1B-Instruct"
REBUILT: list[tuple[str, str, Callable[[], str]]] = [
    ("LLaMA 1 7B", "params.json", lambda: llama1(4096, 32, 32, 1e-06)),
    ("LLaMA 1 13B", "params.json", lambda: llama1(5120, 40, 40, 1e-06)),
    ("LLaMA 1 30B", "params.json", lambda: llama1(6656, 52, 60, 1e-06)),
    ("LLaMA 1 65B", "params.json", lambda: llama1(8192, 64, 80, 1e-05)),
    ("Llama 2 7B", "params.json", lambda: llama1(4096, 32, 32, 1e-05) + "\n"),
    ("Llama 2 7B-chat", "params.json", lambda: llama1(4096, 32, 32, 1e-06) + "\n"),
    ("Llama 2 13B", "params.json", lambda: llama1(5120, 40, 40, 1e-05) + "\n"),
    ("Llama 3.1 8B Instruct", "params.json", lambda: llama3(4096, 32, 1.3, 1024, None)),
    ("Llama 3.2 1B Instruct", "params.json", lambda: llama3(2048, 16, 1.5, 256, 2)),
    ("LLaMA 1", "tokenizer_checklist.chk", lambda: checklist("Meta download LLaMA", "tokenizer.model")),
    ("LLaMA 1 7B", "checklist.chk", lambda: checklist("Meta download LLaMA/7B", PARTS[0], "params.json")),
    ("LLaMA 1 13B", "checklist.chk", lambda: checklist("Meta download LLaMA/13B", *PARTS[:2], "params.json")),
    ("LLaMA 1 30B", "checklist.chk", lambda: checklist("Meta download LLaMA/30B", *PARTS, "params.json")),
    ("Llama 2 7B", "checklist.chk", lambda: checklist("meta-llama/Llama-2-7b", PARTS[0], "params.json")),
    (
        "Llama 2 7B-chat",
        "checklist.chk",
        lambda: checklist("meta-llama/Llama-2-7b-chat", PARTS[0], "params.json"),
    ),
    ("Llama 2 13B", "checklist.chk", lambda: checklist("meta-llama/Llama-2-13b", *PARTS[:2], "params.json")),
    (
        "Llama 3.2 1B Instruct",
        "checklist.chk",
        lambda: checklist(INSTRUCT_1B, PARTS[0], "params.json", "tokenizer.model", prefix="./"),
    ),
]


def damaged(file: Path) -> Path:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    copy = file.parent / "damaged" / file.name
    copy.parent.mkdir()
    copy.write_bytes(content)
    return copy


@pytest.mark.parametrize(("release", "name", "content"), REBUILT, ids=[f"{r[0]} {r[1]}" for r in REBUILT])
def test_small_official_files(release: str, name: str, content: Callable[[], str], tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content())
    identity = identify_file(file)
    assert (identity.file, identity.size, identity.verdict) == (name, len(content()), "official")
    assert identity.message == f"matches the official checksum of {release}"
    assert f"{name} of " in (identity.provenance or "")
    assert identify_file(file, force=True) == identity
    assert identify_file(damaged(file)).verdict == "unknown"


def test_llama3_tokenizer(llama3_tokenizer_model: Path) -> None:
    identity = identify_file(llama3_tokenizer_model)
    assert (identity.verdict, identity.algorithm) == ("official", "sha256")
    assert identity.digest == hashlib.sha256(llama3_tokenizer_model.read_bytes()).hexdigest()
    assert identity.message.startswith("matches the official checksum of Llama 3")
    assert "source" not in identity.message
    assert identity.provenance
    assert "two public sources agree: " in identity.provenance
    assert ". The same file is in " in identity.provenance
    for repository in ("meta-llama/Llama-3.1-8B-Instruct", INSTRUCT_1B, "meta-llama/Llama-3.2-3B"):
        assert repository in identity.provenance


def test_llama2_tokenizer(llama2_tokenizer_model: Path) -> None:
    identity = identify_file(llama2_tokenizer_model)
    assert identity.verdict == "official"
    assert identity.message == "matches the official checksum of LLaMA 1"
    assert identity.provenance
    assert identity.provenance.startswith("tokenizer.model of Meta download LLaMA, SHA-256, ")
    assert "meta-llama/Llama-2-7b-hf, meta-llama/Llama-2-7b-chat-hf" in identity.provenance


@pytest.mark.parametrize("instruct", [True, False])
def test_tokenizer_json_that_we_wrote(instruct: bool, llama3_tokenizer_model: Path, tmp_path: Path) -> None:
    convert_tokenizer(open_tokenizer(llama3_tokenizer_model), tmp_path, TokenizerOptions(instruct=instruct))
    file = tmp_path / "tokenizer.json"
    identity = identify_file(file)
    assert identity.verdict == "official"
    assert (identity.digest or "").startswith("79e3e522")
    assert identity.message == "matches the official checksum of Llama 3.1 8B Instruct"
    assert identify_file(damaged(file)).verdict == "unofficial"


def test_zeros(tmp_path: Path) -> None:
    """As a download leaves them that reserved its space and never came."""
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as stream:
        stream.truncate(9085657)
    heard: list[int] = []
    identity = identify_file(file, progress=heard.append)
    assert identity.verdict == "unofficial"
    assert identity.message.startswith(
        "has the size but not the SHA-256 of the official file of Llama 3.1 8B"
    )
    assert sum(heard) == 9085657
    assert max(heard) <= 1 << 20


def test_from_many_threads(llama3_tokenizer_model: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(identify_file, [llama3_tokenizer_model] * 16))
    assert [identity.verdict for identity in found] == ["official"]


# --------------------------------------------------------------------------- verdicts and messages

CONTENT = {
    "two.pth": b"one",
    "model-00001.safetensors": b"five5",
    "chat.json": b"seven77",
    "unsized": b"11 eleven 1",
}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
MD5 = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}


def row(
    release: str, file: str, size: int | None, algorithm: str = "", digest: str = "", confidence: str = "one"
) -> OfficialFile:
    return OfficialFile(
        "hf", release, f"meta-llama/{release}", file, size, algorithm, digest, confidence, f"{release}.txt"
    )


TABLE = (
    row("A", "original/two.pth", 3, "md5", MD5["two.pth"], "one"),
    row("A", "original/two.pth", 3, "sha256", SHA256["two.pth"], "two"),
    row("B", "model-0000?.safetensors", 5, "md5", MD5["model-00001.safetensors"], "one"),
    row("C", "model-?????.safetensors", 6),
    row("D", "chat.json", 7, "sha256", SHA256["chat.json"], "computed"),
    row("E", "chat.json", 7, "sha256", SHA256["chat.json"], "one"),
    row("F", "mixed-?.safetensors", 8, "sha256", "0" * 64),
    row("G", "mixed-?.safetensors", 8),
    row("H", "unsized", None, "md5", MD5["unsized"]),
)


Identify = Callable[..., tuple[str, str, str | None, str | None, int]]


@pytest.fixture
def identify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Identify:
    """Verdict, message, provenance, algorithm and number of bytes read, of a file with this content."""
    monkeypatch.setattr(module, "official_files", lambda: TABLE)

    def identified(
        name: str, content: bytes, force: bool = False
    ) -> tuple[str, str, str | None, str | None, int]:
        (tmp_path / name).write_bytes(content)
        heard: list[int] = []
        one = identify_file(tmp_path / name, force=force, progress=heard.append)
        assert one.digest == (hashlib.new(one.algorithm, content).hexdigest() if one.algorithm else None)
        return one.verdict, one.message, one.provenance, one.algorithm, sum(heard)

    return identified


TAIL = ". Fine-tuned, re-saved or damaged, or an official file whose checksum was not published"


def test_two_sources(identify: Identify) -> None:
    provenance = "original/two.pth of meta-llama/A, SHA-256, two public sources agree: A.txt"
    message = "matches the official checksum of A"
    assert identify("any.name", b"one") == ("official", message, provenance, "sha256", 3)


def test_one_source(identify: Identify) -> None:
    provenance = "model-0000?.safetensors of meta-llama/B, MD5, one public source: B.txt"
    message = "matches the official checksum of B"
    assert identify("model-00001.safetensors", b"five5") == ("official", message, provenance, "md5", 5)


def test_the_best_source_is_named_first(identify: Identify) -> None:
    provenance = (
        "chat.json of meta-llama/E, SHA-256, one public source: E.txt. The same file is in meta-llama/D"
    )
    message = "matches the official checksum of E"
    assert identify("chat.json", b"seven77") == ("official", message, provenance, "sha256", 7)


def test_unofficial(identify: Identify) -> None:
    message = "has the size but not the SHA-256 or MD5 of the official file of A"
    found = identify("consolidated.00.pth", b"eno")
    assert found == ("unofficial", message, f"two.pth of A{TAIL}", "sha256", 3)


def test_a_settings_file_of_an_official_size_is_not_unofficial(identify: Identify) -> None:
    """Small files of equal size are common."""
    message = "matches no official SHA-256"
    assert identify("chat.json", b"SEVEN77") == ("unknown", message, None, "sha256", 7)
    assert identify("chat.json", b"SEVEN77", force=True)[0] == "unknown"


def test_another_kind_of_file_is_not_unofficial(identify: Identify) -> None:
    message = "matches no official SHA-256 or MD5"
    assert identify("two.safetensors", b"eno") == ("unknown", message, None, "sha256", 3)


def test_size_only(identify: Identify) -> None:
    message = "has the size of model-?????.safetensors of C, whose checksum was not published"
    assert identify("model-00002.safetensors", b"sixsix") == ("size only", message, None, None, 0)
    found = identify("model-00002.safetensors", b"sixsix", force=True)
    assert found == ("size only", message, None, "sha256", 6)


def test_not_unofficial_while_it_may_be_one_without_a_checksum(identify: Identify) -> None:
    message = "has the size of mixed-?.safetensors of F, G but not its SHA-256"
    provenance = "The checksum of G was not published"
    found = identify("mixed-1.safetensors", b"mixmixmi")
    assert found == ("size only", message, provenance, "sha256", 8)


@pytest.mark.parametrize("content", [b"", b"x", CONTENT["unsized"]])
def test_nothing_is_read_if_no_size_matches(identify: Identify, content: bytes) -> None:
    message = "has the size of no known official file (checksum not computed)"
    assert identify("unsized", content) == ("unknown", message, None, None, 0)


def test_force_finds_files_of_unknown_size(identify: Identify) -> None:
    provenance = "unsized of meta-llama/H, MD5, one public source: H.txt"
    found = identify("any", CONTENT["unsized"], force=True)
    assert found == ("official", "matches the official checksum of H", provenance, "md5", 11)
    message = "matches no official SHA-256 or MD5"
    assert identify("any", b"x", force=True) == ("unknown", message, None, "sha256", 1)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        identify_file(tmp_path / "missing")
    assert caught.value.code == "INPUT_NOT_FOUND"
