"""Each release's folder: what its configs say, base and instruct; transformers takes it without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from tests import synthetic
from tests.peers import Peer
from tests.synthetic import LLAMA2, LLAMA3
from tests.test_convert import load

TINY = {"dim": 32, "n_heads": 4, "n_kv_heads": 4, "n_layers": 1}
SENTENCEPIECE = LLAMA2.but(vocab_size=32000, **TINY)
CODE = SENTENCEPIECE.but(params={"rope_theta": 1000000})
SCALED = LLAMA3.but(vocab_size=128256, **TINY)
PLAIN = SCALED.but(params={"rope_theta": 500000.0})
END, TURN3, TURN31 = 128001, [128001, 128009], [128001, 128008, 128009]

# version, instruct asked, shape; instruct found, context, rope factor, eos in both configs, chat template.
CASES: list[tuple[str, bool | None, Any, tuple[Any, ...]]] = [
    ("1", None, SENTENCEPIECE, (False, 2048, None, 2, 2, False)),
    ("2", None, SENTENCEPIECE, (False, 4096, None, 2, 2, False)),
    ("2", True, SENTENCEPIECE, (True, 4096, None, 2, 2, True)),
    ("code", True, CODE, (True, 16384, None, 2, 2, True)),
    ("3", None, PLAIN, (False, 8192, None, END, END, False)),
    ("3", True, PLAIN, (True, 8192, None, 128009, TURN3, True)),
    ("Guard-2", None, PLAIN, (False, 8192, None, END, END, False)),
    ("3.1", None, SCALED, (False, 131072, 8.0, END, END, False)),
    ("3.1", True, SCALED, (True, 131072, 8.0, TURN31, TURN31, True)),
    ("3.2", None, SCALED.but(tied=True), (False, 131072, 32.0, END, END, False)),
    ("3.2", True, SCALED.but(tied=True), (True, 131072, 32.0, TURN31, TURN31, True)),
    ("3.3", None, SCALED, (True, 131072, 8.0, TURN31, TURN31, True)),
    ("Guard-3", None, SCALED, (True, 131072, 8.0, TURN31, TURN31, False)),
]


@pytest.mark.parametrize(
    ("version", "instruct", "shape", "expected"), CASES, ids=lambda value: str(value)[:8]
)
def test_folder(
    tmp_path: Path,
    transformers4: Peer,
    transformers5: Peer,
    request: pytest.FixtureRequest,
    version: str,
    instruct: bool | None,
    shape: Any,
    expected: tuple[Any, ...],
) -> None:
    synthetic.make(tmp_path / "meta", shape)
    tiktoken = shape.vocab_size == 128256
    name = "llama3_tokenizer_model" if tiktoken else "llama2_tokenizer_model"
    shutil.copy(request.getfixturevalue(name), tmp_path / "meta")
    out = tmp_path / "out"
    result = convert(tmp_path / "meta", out, ConvertOptions(llama_version=version, instruct=instruct))
    config, generation, tokenizer = (
        json.loads((out / file).read_text())
        for file in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    scaling = config["rope_scaling"]
    found = (
        result.instruct,
        config["max_position_embeddings"],
        scaling and scaling["factor"],
        config["eos_token_id"],
        generation["eos_token_id"],
        "chat_template" in tokenizer,
    )
    assert found == expected
    assert config["bos_token_id"] == generation["bos_token_id"] == (128000 if tiktoken else 1)
    assert config["tie_word_embeddings"] == shape.tied
    assert config["head_dim"] == 8
    assert (out / "tokenizer.model").exists() != tiktoken
    for peer in (transformers4, transformers5):
        answer = load(peer, out, [1, 2, 3], 1)
        assert answer["dtype"] == "torch.float32"  # made so for speaking; loaded as bfloat16 before
        assert answer["eos"] == expected[4]
