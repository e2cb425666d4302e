"""The *weights* check: compares every tensor with the source and diagnoses those that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.source import Checkpoint
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.findings import Finding
from llama_convert.llama.weights import HEAD, Weight
from llama_convert.verification.context import Context, SkippedError
from llama_convert.verification.diagnosis import diagnose
from llama_convert.verification.report import Outcome
from llama_convert.verification.tensor_pairs import (
    TensorDifference,
    TensorPair,
    differences_of,
    pairs_of,
    to_json,
)

_MAX_DIAGNOSED = 40
"""Max number of tensors that are diagnosed, which reads other tensors too; the first ones suffice."""
_CLOSE = 0.05
"""Max relative difference of a weight before and after further training."""


def check_weights(context: Context) -> Outcome:
    """Compare every tensor with the source, exactly or as a cast rounds it."""
    if context.source is None:
        raise SkippedError("No source to compare with (--source)")
    output, source = context.opened()
    assert source is not None
    with SourceFiles() as files:
        pairs = pairs_of(source, output, files)
        total = sum(pair.found.stored.nbytes for pair in pairs)
        with context.progress(total, "Comparing"):
            differences = differences_of(pairs, context.observer.advance)
        causes = {each.pair.name: diagnose(each, pairs) for each in differences[:_MAX_DIAGNOSED]}
    undiagnosed = [each.pair for each in differences if not causes.get(each.pair.name)]
    files_of_other_models = _files_that_differ(undiagnosed, pairs)
    findings = [
        _finding(each, causes.get(each.pair.name) or _guess(each, files_of_other_models))
        for each in differences
    ]
    findings += _unmatched(source, output, {pair.weight for pair in pairs})
    is_cast = source.dtype != output.dtype
    how = f"after rounding from {source.dtype} to {output.dtype}" if is_cast else "exactly"
    summary = f"{len(pairs) - len(differences)} of {len(pairs)} tensors match the source {how}"
    return Outcome(summary, findings, {"tensors": to_json(pairs, differences)})


def _finding(difference: TensorDifference, cause: str) -> Finding:
    pair = difference.pair
    return Finding(
        "WEIGHTS_DIFFER",
        f"{difference.different:,} of {difference.elements:,} elements differ from "
        f"{pair.expected.stored.name} in the source, the first at [{difference.row}, {difference.column}].",
        _file(pair),
        pair.name,
        expected=f"{difference.expected:.9g}",
        found=f"{difference.found:.9g}",
        hint=cause,
    )


def _file(pair: TensorPair) -> str:
    return pair.found.stored.pieces[0].slab.file.name


def _files_that_differ(undiagnosed: list[TensorPair], pairs: list[TensorPair]) -> set[str]:
    """Files in which no tensor matches the source; none if that is true of every file."""
    n_tensors, n_different = Counter(map(_file, pairs)), Counter(map(_file, undiagnosed))
    result = {file for file, count in n_tensors.items() if count > 1 and n_different[file] == count}
    return result if len(result) < len(n_tensors) else set()


def _guess(difference: TensorDifference, files_of_other_models: set[str]) -> str:
    """The likely cause of a difference without a diagnosis."""
    if _file(difference.pair) in files_of_other_models:
        return "All tensors of this file differ. It is probably a shard of another model."
    if difference.relative_difference < _CLOSE:
        return "The values are close. The weights were probably trained further or rounded in between."
    return "The source contains none of these values. The tensor is probably from another model."


def _unmatched(source: Checkpoint, output: Checkpoint, compared: Set[Weight]) -> Iterator[Finding]:
    """Findings for tensors that only one checkpoint has, or whose shapes differ."""
    tied = source.config.tied and output.config.tied  # the embedding is then the LM head of both
    for weight in {**source.weights, **output.weights}:
        if weight in compared or (tied and weight.kind == HEAD):
            continue
        name = weight.meta_name if isinstance(output, MetaCheckpoint) else weight.huggingface_name
        found, expected = output.weights.get(weight), source.weights.get(weight)
        if found is None:
            yield Finding("TENSOR_MISSING", "The source has this tensor, the output does not.", tensor=name)
        elif expected is None:
            yield Finding("TENSOR_EXTRA", "The source does not have this tensor.", tensor=name)
        else:
            shapes = [str(list(stored.shape)) for stored in (expected, found)]
            message = "Shape differs from the source."
            yield Finding("TENSOR_SHAPE", message, tensor=name, expected=shapes[0], found=shapes[1])
