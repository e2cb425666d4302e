"""Content of a `tokenizer.json`, and its writer.

The file has the same bytes as those of the Rust library `tokenizers` 0.13 to 0.19.  Later versions write each
merge as a list of two strings, which transformers before 4.45 cannot read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO

Json = dict[str, Any]
"""A JSON object; keys are written in this order."""

_encode = json.JSONEncoder(ensure_ascii=False).encode
_LINES_PER_WRITE = 4096


@dataclass(frozen=True)
class TokenizerJson:
    """A tokenizer of the library `tokenizers` (0.13 and later)."""

    special: dict[str, int]
    """Ids of special tokens, which are split off before anything else."""
    model: Json
    """Options of the BPE model, without vocabulary and merges."""
    vocab: Iterable[str]
    """Tokens in the order of their ids, from 0."""
    merges: Iterable[tuple[str, str]]
    """Pairs to merge, in descending priority."""
    bos: str
    eos: str
    decoder: Json
    post_processor: Json
    normalizer: Json | None = None
    pre_tokenizer: Json | None = None
    unk: str | None = None


def sequence(kind: str, *steps: Json) -> Json:
    """A sequence of steps; ``kind`` is the key of their list, for example ``decoders``."""
    return {"type": "Sequence", kind: list(steps)}


def bos_template(bos: str, bos_id: int) -> Json:
    """The post-processor that inserts ``bos`` before a text, and before each text of a pair."""
    pieces = [
        [
            {"SpecialToken": {"id": bos, "type_id": number}},
            {"Sequence": {"id": text, "type_id": number}},
        ]
        for number, text in enumerate("AB")
    ]
    return {
        "type": "TemplateProcessing",
        "single": pieces[0],
        "pair": [*pieces[0], *pieces[1]],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def bpe(*, unk: str | None, fuse_unk: bool, byte_fallback: bool, ignore_merges: bool) -> Json:
    """Options of the BPE model.

    `ignore_merges` (a pre-token that is in the vocabulary is not split) is omitted if false, as by the
    versions before 0.19 that wrote the Llama 2 files on the Hub.  All versions have false as the default.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        **({"ignore_merges": True} if ignore_merges else {}),
    }


def write_tokenizer_json(content: TokenizerJson, stream: TextIO) -> None:
    """Write a tokenizer.json with at most a few thousand lines in memory."""
    lines = _lines(content)
    while chunk := "".join(islice(lines, _LINES_PER_WRITE)):
        stream.write(chunk)


def _lines(content: TokenizerJson) -> Iterator[str]:
    head = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(text, number) for text, number in content.special.items()],
        "normalizer": content.normalizer,
        "pre_tokenizer": content.pre_tokenizer,
        "post_processor": content.post_processor,
        "decoder": content.decoder,
    }
    yield "{\n"
    yield from (f"  {_encode(key)}: {_pretty(value, indent=2)},\n" for key, value in head.items())
    yield '  "model": {\n'
    yield from (f"    {_encode(key)}: {_pretty(value, indent=4)},\n" for key, value in content.model.items())
    vocab = (f"{_encode(token)}: {number}" for number, token in enumerate(content.vocab))
    yield from _bracketed('    "vocab": {', vocab, "},\n")
    merges = (_encode(f"{left} {right}") for left, right in content.merges)
    yield from _bracketed('    "merges": [', merges, "]\n")
    yield "  }\n}"


def _bracketed(opening: str, items: Iterable[str], closing: str) -> Iterator[str]:
    """Items between brackets, one per line; no line breaks if there are none."""
    yield opening
    lead = "\n"
    for item in items:
        yield f"{lead}      {item}"
        lead = ",\n"
    yield ("\n    " if lead == ",\n" else "") + closing


def _pretty(value: Any, indent: int) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n" + " " * indent)


def _added_token(text: str, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
