"""The *weights* level: every tensor against the source's, and what is the matter with those that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.findings import Finding, at_most
from llama_convert.llama.weights import HEAD, Weight
from llama_convert.verification.context import Context, Outcome, SkippedError
from llama_convert.verification.diagnosis import explain
from llama_convert.verification.inputs import Checkpoint
from llama_convert.verification.tensor_pairs import Difference, Pair, differing, pairs, to_json

_EXPLAINED = 40
"""Tensors whose content is looked for elsewhere; with more of them the first ones tell."""
_CLOSE = 0.05
"""A relative difference below which two weights are one, before and after."""


def check_weights(context: Context) -> Outcome:
    """Compare every tensor with the source's, bit for bit or as the cast rounds it."""
    if context.source is None:
        raise SkippedError("there is no source to compare with (--source)")
    output, source = context.opened()
    assert source is not None
    with SourceFiles() as files:
        every_pair = pairs(source, output, files)
        total = sum(pair.found.stored.nbytes for pair in every_pair)
        with context.progress(total, "Comparing"):
            differences = differing(every_pair, context.observer.advance)
        causes = {
            difference.pair.name: explain(difference, every_pair) for difference in differences[:_EXPLAINED]
        }
    foreign = _foreign_files([d.pair for d in differences if not causes.get(d.pair.name)], every_pair)
    findings = [_finding(one, causes.get(one.pair.name) or _unexplained(one, foreign)) for one in differences]
    findings += _unmatched(source, output, {pair.weight for pair in every_pair})
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
        _file(pair),
        pair.name,
        expected=f"{difference.expected:.9g}",
        found=f"{difference.found:.9g}",
        hint=cause,
    )


def _file(pair: Pair) -> str:
    return pair.found.stored.pieces[0].slab.file.name


def _foreign_files(unexplained: list[Pair], every_pair: list[Pair]) -> set[str]:
    """Files of which nothing is the source's, where other files are right."""
    files, wrong = Counter(map(_file, every_pair)), Counter(map(_file, unexplained))
    foreign = {file for file, count in files.items() if count > 1 and wrong[file] == count}
    return foreign if len(foreign) < len(files) else set()


def _unexplained(difference: Difference, foreign: set[str]) -> str:
    if _file(difference.pair) in foreign:
        return "all tensors of this file differ: a shard of another model"
    if difference.relative_difference < _CLOSE:
        return "the values are close: trained further, or rounded in between"
    return "nothing of it is in the source: of another model?"


def _unmatched(source: Checkpoint, output: Checkpoint, compared: Set[Weight]) -> Iterator[Finding]:
    """Tensors of either checkpoint that have no counterpart of their shape in the other."""
    tied = source.config.tied and output.config.tied  # then the embedding is the LM head of both
    for weight in {**source.weights, **output.weights}:
        if weight in compared or (tied and weight.kind == HEAD):
            continue
        name = weight.meta_name if isinstance(output, MetaCheckpoint) else weight.huggingface_name
        here, there = output.weights.get(weight), source.weights.get(weight)
        if here is None:
            yield Finding("TENSOR_MISSING", "the source has it", tensor=name)
        elif there is None:
            yield Finding("TENSOR_EXTRA", "the source does not have it", tensor=name)
        else:
            shapes = [str(list(stored.shape)) for stored in (there, here)]
            message = "has another shape than in the source"
            yield Finding("TENSOR_SHAPE", message, tensor=name, expected=shapes[0], found=shapes[1])
