"""Everything that people read on stdout and stderr: text from files cannot control the terminal.

Names, settings and tokens come from checkpoints that are not trusted.  A `Terminal` prints every string with
escapes in place of characters that are not printable, and never as rich's markup; text with a style or of
several lines is made by `styled` and `lines` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from llama_convert.redaction import redact

Part = str | tuple[str, str]
"""A text, or a text and its style."""


def escaped(text: str) -> str:
    """One printable line: escapes for controls, line separators, direction marks, surrogates and the like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in redact(text))


def styled(*parts: Part, style: str = "") -> Text:
    """One line made of the parts."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((escaped(text), of_part) for text, of_part in pairs), style=style)


def lines(parts: Iterable[Part], style: str = "") -> Text:
    """A line for each part."""
    return Text("\n", style=style).join(styled(part) for part in parts)


class Terminal(Console):
    """A console for untrusted text: nothing is highlighted or read as markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **_: Any) -> Text:
        """The string as rich prints it, wherever it is in what is printed."""
        return styled(text)
