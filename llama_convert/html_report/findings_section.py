"""The section of a page that shows findings: root causes first, with what they explain folded below them."""

from __future__ import annotations

from collections.abc import Sequence

from llama_convert.findings import Finding
from llama_convert.html_report.page import Fact, FindingItem, FindingList, Section

Located = tuple[str | None, Finding]
"""The check of `verify`, or the checkpoint of a comparison, and a finding from it."""


def findings_section(findings: Sequence[Located]) -> Section | None:
    """Errors with their evidence, then warnings; None without findings."""
    errors = [found for found in findings if not found[1].is_warning]
    warnings = [found for found in findings if found[1].is_warning]
    blocks = []
    if errors:
        roots = _root_causes(errors)
        blocks.append(FindingList(roots, f"Root causes ({len(roots)})"))
    if warnings:
        items = [_item(origin, finding) for origin, finding in warnings]
        blocks.append(FindingList(items, f"Warnings ({len(items)})"))
    return Section("Findings", blocks) if blocks else None


def _root_causes(errors: Sequence[Located]) -> list[FindingItem]:
    """Errors that no other explains, each with those that it explains.

    An error whose explanation names none of the root causes is shown as one itself.
    """
    roots = [(origin, finding) for origin, finding in errors if _explained_by(finding) is None]
    evidence: list[list[FindingItem]] = [[] for _ in roots]
    unmatched = []
    for origin, finding in errors:
        explanation = _explained_by(finding)
        if explanation is None:
            continue
        places = [n for n, (_, root) in enumerate(roots) if explanation in _names(root)]
        if places:
            evidence[places[0]].append(_item(origin, finding))
        else:
            unmatched.append(_item(origin, finding))
    explained = [_item(*root, evidence=items) for root, items in zip(roots, evidence, strict=True)]
    return explained + unmatched


def _explained_by(finding: Finding) -> str | None:
    explanation: str | None = getattr(finding, "explained_by", None)
    return explanation


def _names(root: Finding) -> tuple[str | None, ...]:
    """What an explanation may call a root cause."""
    return root.code, root.tensor, root.file, root.message


def _item(origin: str | None, finding: Finding, *, evidence: Sequence[FindingItem] = ()) -> FindingItem:
    return FindingItem(
        severity=finding.severity,
        origin=origin,
        code=finding.code,
        message=finding.message,
        places=_known(Tensor=finding.tensor, File=finding.file),
        values=_known(Expected=finding.expected, Found=finding.found),
        hint=finding.hint,
        evidence=evidence,
    )


def _known(**values: str | None) -> list[Fact]:
    return [(name, str(value)) for name, value in values.items() if value is not None]
