"""URLs without what may be secret in them: user names, passwords, signatures and tokens."""

from __future__ import annotations

import re

_URL = re.compile(
    r"""(?:[A-Za-z][A-Za-z0-9+.-]*://|\b(?:https?|s3a?|gs|gcs|hf):/)(?P<rest>[^\s"'<>`]*(?<![:;,.]))"""
)
"""Also with one slash, as `Path` leaves it; without the punctuation of a sentence behind it."""
_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AUTHORITY = re.compile(r"[^/?#]*")
_HOST_AND_PORT = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?")


def redact(text: str) -> str:
    """The text, with every URL in it without user name, password, query and fragment."""
    return _URL.sub(lambda url: url[0].removesuffix(url["rest"]) + _public(url["rest"]), text)


def redact_url(url: str) -> str:
    """As `redact`, for a text that ends with a URL, whatever letters that has."""
    start = _START.search(url)
    return url[: start.end()] + _public(url[start.end() :]) if start else redact(url)


def _public(rest: str) -> str:
    """Host and path of what follows the scheme."""
    authority = _AUTHORITY.match(rest)
    assert authority
    if "@" in authority[0]:
        rest = rest[: authority.end()].rpartition("@")[2] + rest[authority.end() :]
    elif not _HOST_AND_PORT.fullmatch(authority[0]):  # a password may hold the letters that end an authority
        host, _, _ = authority[0].partition(":")
        rest = rest.rpartition("@")[2] if "@" in rest else host
    return re.split(r"[?#]", rest)[0]
