"""The section of a page that shows findings: root causes first, with what they explain folded below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llama_convert.findings import Finding
from llama_convert.html_report.page import Block, Fact, FindingItem, FindingList, Folded, Section

Located = tuple[str | None, Finding]
"""The check of `verify`, or the checkpoint of a comparison, and a finding from it."""


def findings_section(findings: Sequence[Located]) -> Section | None:
    """Errors with their evidence, then warnings; None without findings."""
    warnings = [_item(origin, finding) for origin, finding in findings if finding.is_warning]
    blocks = list(_errors([found for found in findings if not found[1].is_warning]))
    if warnings:
        blocks.append(FindingList(warnings, f"Warnings ({len(warnings)})"))
    return Section("Findings", blocks) if blocks else None


def _errors(errors: Sequence[Located]) -> Iterator[Block]:
    """Errors that no other explains, each with those that it explains; then those of unlisted errors."""
    roots = [(origin, finding) for origin, finding in errors if finding.explained_by is None]
    evidence: list[list[FindingItem]] = [[] for _ in roots]
    unlisted: list[FindingItem] = []
    for origin, finding in errors:
        if finding.explained_by is None:
            continue
        index = next((n for n, root in enumerate(roots) if _explains(root, finding)), None)
        (unlisted if index is None else evidence[index]).append(_item(origin, finding))
    if roots:
        items = [_item(*root, evidence=explained) for root, explained in zip(roots, evidence, strict=True)]
        yield FindingList(items, f"Root causes ({len(items)})")
    if unlisted:
        yield Folded(f"Explained by findings that are not listed ({len(unlisted)})", [FindingList(unlisted)])


def _explains(root: Located, finding: Finding) -> bool:
    """Whether a root cause is the one that a finding refers to."""
    origin, cause = root
    named = finding.explained_by
    return named is not None and (origin, cause.code, cause.message, cause.tensor) == (
        named.check,
        named.code,
        named.message,
        named.tensor,
    )


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
