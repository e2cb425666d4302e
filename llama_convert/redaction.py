"""Removes secrets from URLs: user names, passwords, signatures and tokens."""

from __future__ import annotations

import re

_URL = re.compile(
    r"""(?:[A-Za-z][A-Za-z0-9+.-]*://|\b(?:https?|s3a?|gs|gcs|hf):/)(?P<rest>[^\s"'<>`]*(?<![:;,.]))"""
)
"""A URL in a text, without punctuation after it; also with one slash, as `Path` writes it."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_AUTHORITY = re.compile(r"[^/?#]*")
_HOST_AND_PORT = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?")


def redact(text: str) -> str:
    """The text, with user name, password, query and fragment removed from every URL.

    Example:
        >>> redact("Cannot read https://me:secret@host/a?token=secret")
        'Cannot read https://host/a'
    """
    return _URL.sub(lambda url: url[0].removesuffix(url["rest"]) + _without_secrets(url["rest"]), text)


def redact_url(url: str) -> str:
    """Like `redact`, for a text that ends with a URL, which may contain spaces and quotes."""
    scheme = _SCHEME.search(url)
    return url[: scheme.end()] + _without_secrets(url[scheme.end() :]) if scheme else redact(url)


def _without_secrets(rest: str) -> str:
    """Host and path of what follows a URL's scheme."""
    authority = _AUTHORITY.match(rest)
    assert authority
    if "@" in authority[0]:
        rest = rest[: authority.end()].rpartition("@")[2] + rest[authority.end() :]
    elif not _HOST_AND_PORT.fullmatch(authority[0]):  # a password can contain the characters / ? #
        host, _, _ = authority[0].partition(":")
        rest = rest.rpartition("@")[2] if "@" in rest else host
    return re.split(r"[?#]", rest)[0]
