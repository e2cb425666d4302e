"""One look at a tokenizer: against the original, against what it implies, or Meta's file alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llama_convert.errors import InputError
from llama_convert.findings import Finding
from llama_convert.verification.tokenizer.added import lost_tokens
from llama_convert.verification.tokenizer.configs import Configs
from llama_convert.verification.tokenizer.corpus import CORPUS
from llama_convert.verification.tokenizer.implied import implied, numbering
from llama_convert.verification.tokenizer.merges import check_number, merges, order_of_parts
from llama_convert.verification.tokenizer.original import (
    Original,
    RunnableOriginal,
    open_original,
    original_in,
)
from llama_convert.verification.tokenizer.running import Running
from llama_convert.verification.tokenizer.vocabulary import size, special, vocabulary
from llama_convert.verification.tokenizer.wording import Wrong, group, quoted
from llama_convert.verification.tokenizer.written import Written, read_written


@dataclass
class TokenizerCheck:
    """What one look at a tokenizer says."""

    findings: list[Finding]
    summary: str
    """What was looked at."""
    measures: dict[str, Any] = field(default_factory=dict)
    """How many tokens, merges and texts."""


def compare_tokenizers(original: Path, folder: Path, vocab_size: int | None = None) -> TokenizerCheck:
    """Meta's `tokenizer.model` against the tokenizer.json and the configs of `folder`.

    Any token, merge or special token that differs is found, whether or not a text shows it; how text is
    normalised, cut and decoded is found out with texts: a hard corpus, and every token's own.
    `vocab_size` is the embedding's rows; without it, config.json says them.
    """
    try:
        right = open_original(original)
        check_number(right.order, original)
        check = _compare(right, read_written(folder / "tokenizer.json"), folder, vocab_size)
        damaged = [replace(finding, file=original.name) for finding in order_of_parts(right)]
        return replace(check, findings=[*damaged, *check.findings])
    except InputError as error:
        return TokenizerCheck([Finding.of(error)], f"tokenizer.json was not compared with {original.name}")


def check_tokenizer(folder: Path, vocab_size: int | None = None) -> TokenizerCheck | None:
    """The tokenizer of a Hugging Face folder by itself; None where there is none.

    A tokenizer.model in the folder is the original.  Without one, tokenizer.json is held against itself:
    ids rise with the merges, so two swapped ids still show; not so for single characters, which no merge
    makes, but for bytes and special tokens, whose places are known.  sentencepiece's kind cannot be run then:
    of texts it is only known that they come back.
    """
    original = original_in(folder)
    if os.path.lexists(folder / "tokenizer.json"):
        return compare_tokenizers(original, folder, vocab_size) if original else _alone(folder, vocab_size)
    if original is None:
        return None
    check = check_original(original, vocab_size)
    message = f"there is no tokenizer.json, only {original.name}"
    hint = "`convert --model_size tokenizer_only` writes one."
    missing = Finding("TOKENIZER_MISSING", message, file="tokenizer.json", hint=hint, severity="warning")
    return replace(check, findings=[*check.findings, missing])


def check_original(
    path: Path, vocab_size: int | None = None, *, source: Path | None = None, folder: Path | None = None
) -> TokenizerCheck:
    """Meta's `tokenizer.model`: whole, as large as the embedding, in order, no text lost.

    Args:
        path: the file.
        vocab_size: the embedding's rows.
        source: the `tokenizer.model` that it is a copy of.
        folder: the Hugging Face folder that it was made from, whose added tokens it should have.
    """
    try:
        original = open_original(path)
        check_number(original.order, path)
    except InputError as error:
        return TokenizerCheck([Finding.of(error)], f"{path.name} was not read")
    findings = [*size(original.vocab_size, vocab_size), *order_of_parts(original), *_round_trips(original)]
    if source:
        findings += _copied(original, source)
    if folder:
        findings += lost_tokens(original, folder, path.name)
    summary = f"{original.vocab_size:,} tokens of {original.source}, and {len(CORPUS)} texts there and back"
    measures = {"tokens": original.vocab_size, "texts": len(CORPUS)}
    return TokenizerCheck([replace(finding, file=path.name) for finding in findings], summary, measures)


def _copied(copy: Original, source: Path) -> Iterator[Finding]:
    """Whether a file has the tokens of the one that it is a copy of, in the same order."""
    try:
        original = open_original(source)
    except InputError as error:
        yield replace(Finding.of(error), severity="warning")
        return
    if (copy.kind, copy.names, copy.order) != (original.kind, original.names, original.order):
        hint = "Pass --tokenizer PATH if the output was made with another tokenizer."
        yield Finding("TOKENIZER_OTHER", f"is another tokenizer than {source}", hint=hint)


def _round_trips(original: RunnableOriginal) -> Iterator[Finding]:
    found = {text: original.decode(original.encode(text)) for text in CORPUS}
    wrong = [
        Wrong(quoted(text), quoted(original.kept(text)), quoted(other))
        for text, other in found.items()
        if other != original.kept(text)
    ]
    said = f"of {len(CORPUS)} not the same after encoding and decoding"
    yield from group("TOKENIZER_DECODE", "text", said, wrong)


def _alone(folder: Path, vocab_size: int | None) -> TokenizerCheck:
    try:
        written = read_written(folder / "tokenizer.json")
        unnumbered = list(numbering(written.ids))
        if unnumbered:
            return TokenizerCheck(unnumbered, f"the ids of {len(written.ids):,} tokens")
        original = implied(written)
        check_number(original.order, written.path)
        return _compare(original, written, folder, vocab_size)
    except InputError as error:
        return TokenizerCheck([Finding.of(error)], "tokenizer.json was not read")


def _compare(original: Original, written: Written, folder: Path, vocab_size: int | None) -> TokenizerCheck:
    configs, ids = Configs(folder), written.ids
    measures = {"tokens": len(ids), "merges": len(written.merges), "texts": 0}
    lacking = sum(name not in ids for name in original.names)
    if 2 * lacking > len(original.names):
        of = f"{lacking:,} of the {len(original.names):,} tokens of {original.source}"
        other = Finding("TOKENIZER_OTHER", f"is another tokenizer: it lacks {of}", file="tokenizer.json")
        return TokenizerCheck([other], f"{len(ids):,} tokens against {original.source}", measures)
    rows = configs.vocab_size if vocab_size is None else vocab_size
    findings = [
        *size(max(ids.values()) + 1, rows),
        *vocabulary(original, written),
        *merges(original, written),
        *special(original, written),
        *_limits(written),
        *configs.findings(original, ids),
    ]
    try:
        running = Running(original, written)
        findings += running.findings(guard=configs.is_guard)
        measures["texts"] = running.texts
    except InputError as error:
        findings.append(Finding.of(error))
    counts = f"{len(ids):,} tokens, {len(written.merges):,} merges and {measures['texts']:,} texts"
    return TokenizerCheck(findings, f"{counts} against {original.source}", measures)


def _limits(written: Written) -> Iterator[Finding]:
    limits = [Wrong(name) for name in written.limits]
    hint = "transformers ignores it, other programs do not."
    yield from group("TOKENIZER_LIMITS", "limit", "on texts", limits, hint=hint, severity="warning")
