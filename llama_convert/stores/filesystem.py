"""The file system behind a URL, set up to fail quickly: `retry` tries again."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from llama_convert.errors import UsageError
from llama_convert.redaction import redact_url
from llama_convert.stores.retry import CONNECT, READ
from llama_convert.stores.web import WebFiles

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf", "http": "http", "https": "http"}
_HUB_PAGE = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)(?:/tree/[^/]+(/.*)?)?/?")


def is_url(location: object) -> bool:
    """Whether it names something elsewhere."""
    return "://" in str(location)


def same_place(one: str, other: str) -> bool:
    """Whether two URLs name the same place in the same kind of store."""
    (fs, path), (other_fs, other_path) = map(open_filesystem, (one, other))
    return type(fs) is type(other_fs) and path.strip("/") == other_path.strip("/")


def is_web(url: str) -> bool:
    """Whether it is a web server's, which neither lists files nor takes them."""
    return url.lower().startswith(("http://", "https://"))


def below(url: str, name: str) -> str:
    """The URL of a file in a folder; a web server's query stays at its end."""
    return _with_path(url, lambda path: f"{path.rstrip('/')}/{name}")


def above(url: str) -> str:
    """The URL of the folder that a file or folder is in."""
    return _with_path(url, lambda path: path.rstrip("/").rpartition("/")[0])


def _with_path(url: str, change: Callable[[str], str]) -> str:
    if not is_web(url):
        return change(url)
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=change(parts.path)))


def shown(url: str) -> str:
    """The URL as it may be printed: without what may be a secret, a password or a signature."""
    return redact_url(url).rstrip("/")


@lru_cache(maxsize=16)
def open_filesystem(url: str, *, writing: bool = False) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    For ``writing`` it is set up to try again by itself: only the library can send a part of a file again.

    Raises:
        UsageError: its extra is not installed, there is no such kind of URL, or it shows a page.
    """
    if page := _HUB_PAGE.fullmatch(url):
        hint = f"name the repository instead: hf://{page[1]}{page[2] or ''}"
        raise UsageError("BAD_URL", f"{shown(url)}: a page of the Hub, which lists no files", hint=hint)
    scheme = url.partition("://")[0].lower()
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(url, **_options(scheme, writing=writing))
    except ImportError:
        extra = _EXTRAS.get(scheme, scheme)
        hint = f"pip install 'llama-convert[{extra}]'"
        raise UsageError("EXTRA_MISSING", f"{scheme}:// needs the extra [{extra}]", hint=hint) from None
    except ValueError:
        message = f"{scheme}:// is none of {', '.join(f'{known}://' for known in _EXTRAS)}"
        raise UsageError("BAD_URL", message) from None
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
                "connect_timeout": CONNECT,
                "read_timeout": READ,
                "max_pool_connections": 64,
                "retries": {"mode": "standard", "total_max_attempts": 3 if writing else 1},
            },
        }
    return {"use_listings_cache": False}
