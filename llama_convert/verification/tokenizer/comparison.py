"""Compares tokenizer.json with the original or with itself, and checks a `tokenizer.model` by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llama_convert.errors import InputError
from llama_convert.findings import Finding
from llama_convert.verification.report import Outcome
from llama_convert.verification.tokenizer.configs import Configs
from llama_convert.verification.tokenizer.corpus import CORPUS
from llama_convert.verification.tokenizer.grouping import Problem, group, quoted
from llama_convert.verification.tokenizer.implied_model import implied_original, numbering
from llama_convert.verification.tokenizer.merges import limit_merges, merges, order_of_parts
from llama_convert.verification.tokenizer.text_comparison import TextComparison
from llama_convert.verification.tokenizer.tokenizer_json import TokenizerJson, read_tokenizer_json
from llama_convert.verification.tokenizer.tokenizer_model import (
    Original,
    RunnableOriginal,
    open_original,
    original_in,
)
from llama_convert.verification.tokenizer.vocabulary import lost_tokens, size, special, vocabulary


def compare_tokenizers(original: Path, folder: Path, vocab_size: int | None = None) -> Outcome:
    """Compare the tokenizer.json and the configs of a folder with a `tokenizer.model`.

    All tokens, merges and special tokens are compared.  Normalization, splitting and decoding are compared on
    texts: a difficult corpus, and the text of every token.

    Args:
        original: the `tokenizer.model`.
        folder: the folder with tokenizer.json.
        vocab_size: number of rows of the embedding; None: as config.json states.
    """
    try:
        expected = open_original(original)
        limit_merges(expected.order, original)
        outcome = _compare(expected, read_tokenizer_json(folder / "tokenizer.json"), folder, vocab_size)
        damaged = [replace(finding, file=original.name) for finding in order_of_parts(expected)]
        return replace(outcome, findings=[*damaged, *outcome.findings])
    except InputError as error:
        return Outcome(f"tokenizer.json could not be compared with {original.name}", [Finding.of(error)])


def check_tokenizer(folder: Path, vocab_size: int | None = None) -> Outcome | None:
    """Check the tokenizer of a Hugging Face folder by itself; None if the folder has none.

    A tokenizer.model in the folder is the original.  Without one, tokenizer.json is checked for consistency:
    ids follow the order of merges, which detects swapped ids except those of single characters.  The ids of
    bytes and special tokens are known.  A tokenizer of the sentencepiece kind cannot be run without its file,
    so its texts are only encoded and decoded.

    Args:
        folder: the folder.
        vocab_size: number of rows of the embedding; None: as config.json states.
    """
    original = original_in(folder)
    if os.path.lexists(folder / "tokenizer.json"):
        return (
            compare_tokenizers(original, folder, vocab_size)
            if original
            else _check_by_itself(folder, vocab_size)
        )
    if original is None:
        return None
    outcome = check_original(original, vocab_size)
    message = f"There is no tokenizer.json, only {original.name}."
    hint = "Create it with `llama-convert convert SRC DST --model-size tokenizer_only`."
    missing = Finding("TOKENIZER_MISSING", message, file="tokenizer.json", hint=hint, severity="warning")
    return replace(outcome, findings=[*outcome.findings, missing])


def check_original(
    path: Path, vocab_size: int | None = None, *, source: Path | None = None, folder: Path | None = None
) -> Outcome:
    """Check a `tokenizer.model`: readable, as large as the embedding, in order, and lossless.

    Args:
        path: the file.
        vocab_size: number of rows of the embedding.
        source: the `tokenizer.model` that it is a copy of.
        folder: the Hugging Face folder that it was made from, whose added tokens it should have.
    """
    try:
        original = open_original(path)
        limit_merges(original.order, path)
    except InputError as error:
        return Outcome(f"{path.name} could not be read", [Finding.of(error)])
    findings = [*size(original.vocab_size, vocab_size), *order_of_parts(original), *_round_trips(original)]
    if source:
        findings += _copied(original, source)
    if folder:
        findings += lost_tokens(original, folder, path.name)
    summary = f"{original.vocab_size:,} tokens of {original.source}"
    details = f"{len(CORPUS)} texts encoded and decoded"
    measures = {"tokens": original.vocab_size, "texts": len(CORPUS)}
    return Outcome(summary, [replace(each, file=path.name) for each in findings], measures, details)


def _copied(copy: Original, source: Path) -> Iterator[Finding]:
    """A finding if a copy has other tokens than its source, or another order."""
    try:
        original = open_original(source)
    except InputError as error:
        yield replace(Finding.of(error), severity="warning")
        return
    if (copy.kind, copy.names, copy.order) != (original.kind, original.names, original.order):
        hint = "Pass --tokenizer PATH if the output was made with another tokenizer."
        yield Finding("TOKENIZER_DIFFERS", f"The tokenizer differs from {source}.", hint=hint)


def _round_trips(original: RunnableOriginal) -> Iterator[Finding]:
    decoded = {text: original.decode(original.encode(text)) for text in CORPUS}
    problems = [
        Problem(quoted(text), quoted(original.after_round_trip(text)), quoted(found))
        for text, found in decoded.items()
        if found != original.after_round_trip(text)
    ]
    what = f"of {len(CORPUS)} changed by encoding and decoding"
    yield from group("TOKENIZER_DECODE", "text", what, problems)


def _check_by_itself(folder: Path, vocab_size: int | None) -> Outcome:
    try:
        tokenizer = read_tokenizer_json(folder / "tokenizer.json")
        findings = list(numbering(tokenizer.ids))
        if findings:
            return Outcome(f"{len(tokenizer.ids):,} tokens with invalid ids", findings)
        original = implied_original(tokenizer)
        limit_merges(original.order, tokenizer.path)
        return _compare(original, tokenizer, folder, vocab_size)
    except InputError as error:
        return Outcome("tokenizer.json could not be read", [Finding.of(error)])


def _compare(original: Original, tokenizer: TokenizerJson, folder: Path, vocab_size: int | None) -> Outcome:
    configs, ids = Configs(folder), tokenizer.ids
    measures = {"tokens": len(ids), "merges": len(tokenizer.merges), "texts": 0}
    lacking = sum(name not in ids for name in original.names)
    if 2 * lacking > len(original.names):
        lacked = f"{lacking:,} of the {len(original.names):,} tokens of {original.source}"
        message = f"The tokenizer is a different one: it lacks {lacked}."
        other = Finding("TOKENIZER_DIFFERS", message, file="tokenizer.json")
        return Outcome("The tokenizer is a different one", [other], measures)
    rows = configs.vocab_size if vocab_size is None else vocab_size
    findings = [
        *size(max(ids.values()) + 1, rows),
        *vocabulary(original, tokenizer),
        *merges(original, tokenizer),
        *special(original, tokenizer),
        *_limits(tokenizer),
        *configs.findings(original, ids),
    ]
    try:
        comparison = TextComparison(original, tokenizer)
        findings += comparison.findings(guard=configs.is_guard)
        measures["texts"] = comparison.n_texts
    except InputError as error:
        findings.append(Finding.of(error))
    summary = f"{len(ids):,} tokens compared with {original.source}"
    details = f"{len(tokenizer.merges):,} merges, {measures['texts']:,} texts"
    return Outcome(summary, findings, measures, details)


def _limits(tokenizer: TokenizerJson) -> Iterator[Finding]:
    limits = [Problem(name) for name in tokenizer.limits]
    hint = "transformers ignores it; other programs do not."
    what = "on the length of texts"
    yield from group("TOKENIZER_LIMITS", "limit", what, limits, hint=hint, severity="warning")
