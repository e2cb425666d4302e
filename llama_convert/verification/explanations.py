"""Which findings have the same cause, so that a report shows each cause once.

One fault is often visible to several checks: a swapped tensor has another checksum (values), differs from the
source (weights) and changes the outputs (logits).  The finding that describes the cause best is kept, and the
others refer to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llama_convert.findings import Finding, RootCause
from llama_convert.verification.report import Check, CheckReport

_HEADS = ("model.norm.weight", "norm.weight", "lm_head.weight", "output.weight")
"""Tensors after the last decoder layer; a tied LM head is the embedding."""
_EMBEDDINGS = ("model.embed_tokens.weight", "tok_embeddings.weight")
_BYTES_DIFFER = "MANIFEST_DIFFERS"
"""A checksum does not match the manifest: a sign of most faults, the cause of none."""


@dataclass(frozen=True)
class _Found:
    """A finding and the check that reported it."""

    check: Check
    finding: Finding

    @property
    def as_cause(self) -> RootCause:
        finding = self.finding
        return RootCause(self.check.value, finding.code, finding.message, finding.tensor)


def explained(reports: Sequence[CheckReport]) -> list[CheckReport]:
    """The reports with `Finding.explained_by` set wherever another finding has the same cause.

    The status of a check does not depend on it: an explained error is still an error.
    """
    every = [_Found(report.check, finding) for report in reports for finding in report.findings]
    by_place: dict[tuple[str | None, str | None], list[_Found]] = {}
    for found in every:
        by_place.setdefault((found.finding.tensor, None), []).append(found)
        if found.finding.tensor is None:
            by_place.setdefault((None, found.finding.file), []).append(found)
    errors = [found for found in every if not found.finding.is_warning]
    result = []
    for report in reports:
        findings = []
        for finding in report.findings:
            found = _Found(report.check, finding)
            place = (finding.tensor, None) if finding.tensor else (None, finding.file)
            here = by_place[place] if any(place) else []
            cause = next(_causes(found, here, errors), None)
            findings.append(replace(finding, explained_by=cause.as_cause if cause else None))
        result.append(replace(report, findings=findings))
    return result


def _causes(found: _Found, here: Sequence[_Found], errors: Iterable[_Found]) -> Iterator[_Found]:
    """Findings with the same cause that describe it better, the best first.

    Args:
        found: the finding to explain.
        here: all findings on the same tensor or file.
        errors: all errors of all checks.
    """
    order, finding = list(Check).index, found.finding
    earlier = [
        each
        for each in here
        if each.finding.code == finding.code
        and order(each.check) < order(found.check)
        and (finding.is_warning or not each.finding.is_warning)
    ]
    yield from sorted(earlier, key=lambda each: each.finding.message != finding.message)
    here = [each for each in here if not each.finding.is_warning and each.check is not Check.LOGITS]
    if found.check is Check.VALUES and finding.tensor:
        yield from (each for each in here if each.finding.code == "WEIGHTS_DIFFER")
    if finding.code == _BYTES_DIFFER:
        yield from (each for each in here if each.finding.code != _BYTES_DIFFER)
    if found.finding.code == "LOGITS_DIFFER":
        yield from _causes_of_logits(found, errors)


def _causes_of_logits(found: _Found, errors: Iterable[_Found]) -> Iterator[_Found]:
    """Errors that change what the model computes: everywhere, or in the part that `found` names."""
    part, ranked = found.finding.tensor, sorted(errors, key=lambda each: list(Check).index(each.check))
    yield from (each for each in ranked if each.finding.code == "CONFIG_DIFFERS")
    for check in (Check.WEIGHTS, Check.VALUES):
        for each in ranked:
            if each.check is check and each.finding.tensor and _changes(each.finding.tensor, part):
                yield each
    if part is None:  # of the whole model: a part that differs explains it
        yield from (each for each in ranked if each.finding.code == "LOGITS_DIFFER" and each.finding.tensor)


def _changes(tensor: str, part: str | None) -> bool:
    """Whether a wrong tensor changes what a part of the model computes; None is the whole model."""
    if part is None or tensor == part or tensor.startswith(f"{part}."):
        return True
    return part in _HEADS and tensor in (*_HEADS, *_EMBEDDINGS)
