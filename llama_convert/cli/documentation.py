"""Documentation pages in the package, and how they are printed on a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files

from llama_convert.errors import UsageError

KINDS = ("tutorial", "how-to guide", "reference", "explanation")
"""Kinds of pages; a comment in the first line of each names its kind."""
_ALIASES = {"shard": "reshard", "diff": "inspect", "options": "cli"}
"""Topics that share a page."""
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_LOCAL_LINK = re.compile(r"\[([^\]]+)\]\((?:([\w-]+)\.md)?(?:#[\w-]+)?\)")


@dataclass(frozen=True)
class Page:
    """One page: a Markdown file in ``llama_convert/docs``."""

    topic: str
    text: str

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.text.partition("<!-- ")[2].partition(" -->")[0]

    @property
    def title(self) -> str:
        """The first heading."""
        return self.text.partition("\n# ")[2].partition("\n")[0]

    @property
    def related(self) -> list[str]:
        """Topics of the pages that it links to, in order."""
        return list(dict.fromkeys(topic for _, topic in _LOCAL_LINK.findall(self.text) if topic))

    def section(self, heading: str) -> str | None:
        """A third-level section, with its heading; None if it does not exist."""
        _, found, rest = self.text.partition(f"\n### {heading}\n")
        return f"### {heading}\n{re.split(r'^#', rest, maxsplit=1, flags=re.MULTILINE)[0]}" if found else None

    @property
    def headings(self) -> list[str]:
        """The headings of the third level."""
        return re.findall(r"^### (.+)$", self.text, re.MULTILINE)


def pages() -> dict[str, Page]:
    """All pages, by topic."""
    found = {}
    for file in (files("llama_convert") / "docs").iterdir():
        topic, dot, suffix = file.name.rpartition(".")
        if (dot, suffix) == (".", "md"):
            found[topic] = Page(topic, file.read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


def find_page(topic: str) -> Page:
    """The page on a topic.

    Raises:
        UsageError: the page does not exist.
    """
    known = pages()
    wanted = topic.lower().replace("_", "-")
    page = known.get(_ALIASES.get(wanted, wanted))
    if page is None:
        close = get_close_matches(wanted, [*known, *_ALIASES], n=1)
        hint = f"Run: llama-convert help{f' {close[0]}' if close else ''}"
        raise UsageError("BAD_USAGE", f"No help page named {topic!r}.", hint=hint)
    return page


def find_code(code: str) -> str:
    """The section on an error code, as Markdown.

    Raises:
        UsageError: the code does not exist.
    """
    page = pages()["error-codes"]
    wanted = code.upper().replace("-", "_")
    section = page.section(wanted)
    if section is None:
        close = get_close_matches(wanted, page.headings, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "Run: llama-convert help error-codes"
        raise UsageError("BAD_USAGE", f"Unknown error code {code!r}.", hint=hint)
    return section


def render(markdown: str) -> None:
    """Print Markdown on stdout."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(highlight=False)
    text = _LOCAL_LINK.sub(r"\1", _COMMENT.sub("", markdown))
    console.print(Markdown(text, code_theme="ansi_dark", hyperlinks=console.is_terminal))
