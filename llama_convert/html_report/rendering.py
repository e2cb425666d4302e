"""Put a page into the HTML template."""

from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llama_convert import __version__
from llama_convert.html_report.figure import WIDTH
from llama_convert.html_report.page import Page
from llama_convert.html_report.visible_text import visible
from llama_convert.redaction import redact

_MARKER = b'<meta name="generator" content="llama-convert '
"""What the beginning of every report contains."""
_HEAD_SIZE = 512


def render(page: Page) -> bytes:
    """The page as one HTML file, in UTF-8; equal pages give equal bytes."""
    template = _environment().get_template("page.html.jinja")
    text: str = template.render(page=page, version=__version__)
    return text.encode("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("llama_convert.html_report", ""),
        autoescape=True,
        finalize=_displayed,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["figure_width"] = WIDTH
    return environment


def _displayed(value: Any) -> Any:
    """What the template puts in place of an expression, before it escapes it for HTML.

    Every string of a page passes through here: no secrets of URLs, no invisible characters.
    """
    return value if isinstance(value, Markup) else visible(redact(str(value)))


def is_report(file: Path) -> bool:
    """Whether a file may be replaced by a report: a report or an empty file, and no link, pipe or device."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return False
        with open(file, "rb", opener=_open_unless_link) as stream:
            head = stream.read(_HEAD_SIZE)
    except OSError:
        return False
    return not head or (head.startswith(b"<!DOCTYPE html>") and _MARKER in head)


def _open_unless_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
