"""Printing for people: text from checkpoints cannot control the terminal.

Names, settings and tokens come from untrusted files. `Terminal` prints every string with escapes for
characters that are not printable, and never as rich markup. Only `styled` and `lines` make styled or
multi-line text.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from llama_convert.redaction import redact

Part = str | tuple[str, str]
"""A text, or a text and its style."""
_PIPE_WIDTH = 160
"""Columns if stdout is not a terminal, so that lines stay whole for other programs."""
_COMMAND = re.compile(r"\bRun: ")


def escaped(text: str) -> str:
    """The text as one printable line, without secrets.

    Control characters, line separators, direction marks, surrogates and the like become escapes.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in redact(text))


def styled(*parts: Part, style: str = "") -> Text:
    """One line made of the parts."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((escaped(text), part_style) for text, part_style in pairs), style=style)


def lines(parts: Iterable[Part], style: str = "") -> Text:
    """One line for each part."""
    return Text("\n", style=style).join(styled(part) for part in parts)


def wrapped(text: Text, width: int) -> Text:
    """One line, broken between words only; a longer word, for example a path, stays whole."""
    breaks: list[int] = []
    column = 0
    for word in re.finditer(r"\S+\s*|\s+", text.plain):
        if column and column + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            column = 0
        column += cell_len(word[0])
    broken = text.divide(breaks)
    for line in broken:
        line.rstrip()
    return Text("\n").join(broken)


def print_message(console: Console, *parts: Part, style: str = "", one_line: bool = False) -> None:
    """Print one line. On a terminal it is broken between words.

    From "Run: " on it is a command, which stays on a separate line, unbroken, so that it can be copied.

    Args:
        console: where to print.
        parts: the text.
        style: of the whole line.
        one_line: never break it.
    """
    text = styled(*parts, style=style)
    if console.file.isatty() and not one_line:
        command = _COMMAND.search(text.plain)
        is_only_a_command = command and ". " not in text.plain[: command.start()]
        if command and not is_only_a_command:
            prose, rest = text.divide([command.start()])
            prose.rstrip()
            text = Text("\n").join([wrapped(prose, console.width), rest])
        elif not command:
            text = wrapped(text, console.width)
    console.print(text, soft_wrap=True)


class Terminal(Console):
    """A console for untrusted text: nothing is highlighted or read as markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **_: Any) -> Text:
        """The string as rich prints it, also in tables."""
        return styled(text)


def page() -> Terminal:
    """Stdout, as wide as the terminal."""
    is_terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Terminal(width=None if is_terminal else _PIPE_WIDTH)


def print_page(console: Terminal, parts: Iterable[RenderableType]) -> None:
    """Print the parts one below the other; without trailing spaces if stdout is not a terminal."""
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as text:
        console.print(*parts, sep="\n")
    console.print(lines(line.rstrip() for line in text.get().split("\n")[:-1]), soft_wrap=True)
