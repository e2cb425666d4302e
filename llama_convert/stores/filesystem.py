"""Opens the fsspec file system of a URL. It fails fast; `llama_convert.stores.retry` retries."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from llama_convert.errors import UsageError
from llama_convert.extras import require
from llama_convert.redaction import redact_url
from llama_convert.stores.retry import CONNECT_TIMEOUT, READ_TIMEOUT
from llama_convert.stores.web import WebFiles

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "http": "http", "https": "http"}
"""The extra that each scheme needs."""
_HUB_PAGE = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)(?:/tree/[^/]+(/.*)?)?/?")


def is_url(location: object) -> bool:
    """Whether a location is a URL, not a local path."""
    return "://" in str(location)


def is_web(url: str) -> bool:
    """Whether a URL is a web server's, which can neither list nor receive files."""
    return url.lower().startswith(("http://", "https://"))


def same_location(one: str, other: str) -> bool:
    """Whether two URLs name the same path of the same kind of store."""
    (fs, path), (other_fs, other_path) = map(open_filesystem, (one, other))
    return type(fs) is type(other_fs) and path.strip("/") == other_path.strip("/")


def child_url(url: str, name: str) -> str:
    """The URL, or path in a store, of a file in a folder; a web URL keeps its query."""
    return _with_path(url, lambda path: f"{path.rstrip('/')}/{name}")


def parent_url(url: str) -> str:
    """The URL, or path in a store, of the folder that contains a file or folder."""
    return _with_path(url, lambda path: path.rstrip("/").rpartition("/")[0])


def _with_path(url: str, change: Callable[[str], str]) -> str:
    if not is_web(url):
        return change(url)
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=change(parts.path)))


def printable(url: str) -> str:
    """The URL without user name, password, query and fragment, which can be secrets."""
    return redact_url(url).rstrip("/")


@lru_cache(maxsize=16)
def open_filesystem(url: str, *, writing: bool = False) -> tuple[Any, str]:
    """The file system of a URL, and the URL's path in it.

    Args:
        url: any URL that fsspec supports.
        writing: let the library retry, which alone can resend a part of an upload.

    Raises:
        UsageError: the scheme's extra is not installed, the scheme is unknown, or the URL is a page of the
            Hub.
    """
    if page := _HUB_PAGE.fullmatch(url):
        message = "Is a web page of the Hub, which does not list files."
        hint = f"Pass the repository instead: hf://{page[1]}{page[2] or ''}"
        raise UsageError("BAD_URL", message, file=printable(url), hint=hint)
    scheme = url.partition("://")[0].lower()
    if scheme in _EXTRAS:
        require(_EXTRAS[scheme], f"{scheme}://")
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(url, **_options(scheme, writing=writing))
    except ImportError as error:  # names the package that another kind of store needs
        raise UsageError("EXTRA_MISSING", f"{scheme}:// needs another package: {error}.") from None
    except ValueError:
        message = f"Unknown kind of URL: {scheme}://."
        hint = f"Use {', '.join(f'{known}://' for known in _EXTRAS)}."
        raise UsageError("BAD_URL", message, hint=hint) from None
    if scheme in ("s3", "s3a") and not writing:
        fs.retries = 1
    if is_web(url):
        fs = WebFiles(fs)
    return fs, path


def _options(scheme: str, *, writing: bool) -> dict[str, Any]:
    if scheme in ("s3", "s3a"):
        return {
            "use_listings_cache": False,
            "config_kwargs": {
                "connect_timeout": CONNECT_TIMEOUT,
                "read_timeout": READ_TIMEOUT,
                "max_pool_connections": 64,
                "retries": {"mode": "standard", "total_max_attempts": 3 if writing else 1},
            },
        }
    return {"use_listings_cache": False}
