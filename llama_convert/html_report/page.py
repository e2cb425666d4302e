"""What a page consists of, as plain data: sections of tables, facts, findings and figures.

Every class that a section can hold has a ``macro``: the macro in ``blocks.html.jinja`` that draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from llama_convert.findings import Severity
from llama_convert.html_report.heat_map import HeatMap
from llama_convert.html_report.line_plot import LinePlot

Tone = Literal["good", "bad", "warn", "soft"]
"""A color of the style sheet that has a meaning."""

Fact = tuple[str, str]
"""A name and its value."""


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    macro: ClassVar[str] = "facts"
    items: Sequence[Fact]
    prominent: bool = False
    """Whether values are in large type, several in a row."""


@dataclass(frozen=True)
class Column:
    """The heading of a table's column, and how its cells look."""

    title: str
    kind: Literal["text", "code", "number", "status"] = "text"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its heading."""

    macro: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class FindingItem:
    """A finding with the findings that it explains."""

    severity: Severity
    origin: str | None
    """The check of `verify`, or the checkpoint of a comparison, that it is from."""
    code: str
    message: str
    places: Sequence[Fact]
    """Tensor and file, as far as known."""
    values: Sequence[Fact]
    """Expected and found value, as far as known."""
    hint: str | None
    evidence: Sequence[FindingItem] = ()


@dataclass(frozen=True)
class FindingList:
    """Findings below a common title."""

    macro: ClassVar[str] = "findings"
    items: Sequence[FindingItem]
    title: str | None = None


@dataclass(frozen=True)
class Completion:
    """A generated text in three parts: what both have in common, the first difference, the rest."""

    title: str
    common: str
    difference: str
    rest: str


@dataclass(frozen=True)
class Completions:
    """Completions side by side."""

    macro: ClassVar[str] = "completions"
    note: str
    items: Sequence[Completion]


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    macro: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    macro: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when the reader unfolds them."""

    macro: ClassVar[str] = "folded"
    summary: str
    blocks: Sequence[Table | FindingList]


Block = Facts | Table | FindingList | Completions | Paragraph | Command | Folded | HeatMap | LinePlot
"""What a section can hold."""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    title: str
    blocks: Sequence[Block]

    @property
    def id(self) -> str:
        """The heading's id, for links; titles of one page differ in their letters."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    status: str
    """The result in one word."""
    tone: Tone
    summary: str
    """The result in a sentence or two."""
    facts: Sequence[Fact]
    sections: Sequence[Section] = field(default=())
