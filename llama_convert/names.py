"""What places are called when they are spoken of: a folder that stands for a URL by that."""

from __future__ import annotations

from pathlib import Path

from llama_convert.redaction import redact

_CALLED: dict[str, str] = {}


def call(place: Path, name: str) -> None:
    """Let a place, and what is in it, be called by another name."""
    _CALLED[str(place)] = name


def as_called(text: str) -> str:
    """A text with all places in it by the names they are called by."""
    for place, name in _CALLED.items():
        text = text.replace(place, name)
    return text


def as_printed(text: str) -> str:
    """As `as_called`, and without secrets: for everything that is printed, or written for people."""
    return redact(as_called(text))
