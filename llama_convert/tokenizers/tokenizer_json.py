"""Writes `tokenizer.json` as a stream, byte for byte as the Rust library `tokenizers` 0.13 to 0.19 did.

Later versions print each merge as a list of two, which transformers before 4.45 cannot read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TextIO

from llama_convert.tokenizers.pipeline import Pipeline

_encode = json.JSONEncoder(ensure_ascii=False).encode
_LINES_PER_WRITE = 4096


def write_tokenizer_json(pipeline: Pipeline, stream: TextIO) -> None:
    """Write `pipeline`; at no time is more than a few thousand lines of the text in memory."""
    lines = _lines(pipeline)
    while chunk := "".join(islice(lines, _LINES_PER_WRITE)):
        stream.write(chunk)


def _lines(pipeline: Pipeline) -> Iterator[str]:
    head = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(text, number) for text, number in pipeline.special.items()],
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": pipeline.post_processor,
        "decoder": pipeline.decoder,
    }
    yield "{\n"
    yield from (f"  {_encode(key)}: {_pretty(value, indent=2)},\n" for key, value in head.items())
    yield '  "model": {\n'
    yield from (f"    {_encode(key)}: {_pretty(value, indent=4)},\n" for key, value in pipeline.model.items())
    vocab = (f"{_encode(name)}: {number}" for number, name in enumerate(pipeline.vocab))
    yield from _listed('    "vocab": {', vocab, "},\n")
    merges = (_encode(f"{left} {right}") for left, right in pipeline.merges)
    yield from _listed('    "merges": [', merges, "]\n")
    yield "  }\n}"


def _listed(opening: str, items: Iterable[str], closing: str) -> Iterator[str]:
    """The items between brackets, one to a line; an empty list stays on one line."""
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
