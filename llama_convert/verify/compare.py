"""The *weights* level: every tensor against the source's, and what is the matter with those that differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from llama_convert.checkpoints.gather import SourceFiles
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.llama.weights import Weight
from llama_convert.verify.causes import explain
from llama_convert.verify.context import Context, NotRunError, Outcome
from llama_convert.verify.report import Finding, at_most
from llama_convert.verify.sides import Checkpoint
from llama_convert.verify.weights import Difference, Pair, differing, pairs, to_json

_EXPLAINED = 40
"""Tensors whose content is looked for elsewhere; with more of them the first ones tell."""


def look_at_weights(context: Context) -> Outcome:
    """Compare every tensor with the source's, bit for bit or as the cast rounds it."""
    if context.source is None:
        raise NotRunError("there is no source to compare with (--source)")
    output, source = context.opened()
    assert source is not None
    with SourceFiles() as files:
        every_pair, lacking = pairs(source, output, files)
        total = sum(pair.found.stored.nbytes for pair in every_pair)
        with context.progress(total, "compared"):
            differences = list(differing(every_pair, context.observer.advance))
        causes = {
            difference.pair.name: explain(difference, every_pair) for difference in differences[:_EXPLAINED]
        }
    findings = [_finding(difference, causes.get(difference.pair.name)) for difference in differences]
    findings = _foreign_files(findings, every_pair) + list(_missing(output, lacking))
    how = "bit for bit" if source.dtype == output.dtype else f"as {source.dtype} rounds to {output.dtype}"
    same = len(every_pair) - len(differences)
    summary = f"{same} of {len(every_pair)} tensors are the source's, {how}"
    return summary, at_most(findings), {"tensors": to_json(every_pair, differences)}


def _finding(difference: Difference, cause: str | None) -> Finding:
    pair = difference.pair
    return Finding(
        "WEIGHTS_DIFFER",
        f"{difference.different:,} of {difference.elements:,} elements differ from the source's "
        f"{pair.expected.stored.name}, the first at [{difference.row}, {difference.column}]",
        pair.found.stored.pieces[0].slab.file.name,
        pair.name,
        expected=f"{difference.expected:.9g}",
        found=f"{difference.found:.9g}",
        hint=cause,
    )


def _foreign_files(findings: list[Finding], every_pair: Iterable[Pair]) -> list[Finding]:
    """Where all tensors of a file differ and other files are right, say so."""
    wrong = {finding.tensor for finding in findings}
    by_file: dict[str, list[str]] = {}
    for pair in every_pair:
        by_file.setdefault(pair.found.stored.pieces[0].slab.file.name, []).append(pair.name)
    foreign = {file for file, names in by_file.items() if len(names) > 2 and wrong.issuperset(names)}
    if len(foreign) == len(by_file):
        return findings
    hint = "all tensors of this file differ: a shard of another model"
    return [replace(f, hint=hint) if f.file in foreign else f for f in findings]


def _missing(output: Checkpoint, lacking: Iterable[Weight]) -> Iterable[Finding]:
    for weight in lacking:
        if weight not in output.weights:
            name = weight.meta_name if isinstance(output, MetaCheckpoint) else weight.huggingface_name
            yield Finding("TENSOR_MISSING", "the source has it", tensor=name)
