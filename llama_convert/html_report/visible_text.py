"""Text as a page shows it: nothing invisible, nothing that changes the order of other text."""

from __future__ import annotations

import re

_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d159\U000e0100-\U000e01ef]"
)
"""Characters that `str.isprintable` accepts although they have no glyph: fillers and variation selectors
(Unicode's Default_Ignorable_Code_Point), the blank Braille pattern and the null notehead."""


def visible(text: str) -> str:
    r"""The text with an escape, for example ``\u202e``, in place of each invisible character except U+000A.

    Escaped are control, format (bidi marks, zero width), surrogate, private-use and unassigned characters,
    line and paragraph separators, every space except U+0020, and letters without a glyph.
    """
    if text.isprintable() and not _BLANK.search(text):
        return text
    return "".join(c if c == "\n" or _has_glyph(c) else _escape(c) for c in text)


def visible_token(text: str) -> str:
    r"""A token in quotes on one line: ``" the"``, ``"\n"``."""
    return '"' + visible(text).replace("\n", "\\n") + '"'


def _has_glyph(character: str) -> bool:
    return character.isprintable() and not _BLANK.match(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
