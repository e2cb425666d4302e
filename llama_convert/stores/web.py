"""Reads byte ranges from a web server.

Servers are not trusted: a response is never read beyond the requested range, a minimum speed is enforced, and
a server that ignores range requests is refused.
"""

from __future__ import annotations

import re
from typing import Any

from llama_convert.errors import InputError
from llama_convert.redaction import redact_url
from llama_convert.stores.retry import CONNECT_TIMEOUT, READ_TIMEOUT, ShortResponseError

_MIN_SPEED = 10_000
"""Bytes per second; a slower response is aborted."""
_CHUNK = 1 << 16
_NOT_FOUND = (404, 410)
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206


class WebFiles:
    """The part of fsspec's interface that `llama_convert.stores` uses, for a web server.

    Args:
        fs: fsspec's `HTTPFileSystem`, whose session and options are used.
    """

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def cat_file(self, url: str, start: int, end: int) -> bytes:
        """The file's bytes from ``start`` up to, but not including, ``end``.

        Raises:
            FileNotFoundError: the file does not exist.
            InputError: the server does not support range requests.
            ShortResponseError: the server sent more bytes.
        """
        content: bytes = self._wait(self._get, url, start, end)[1]
        return content

    def info(self, url: str) -> dict[str, Any]:
        """Size, ETag and Last-Modified of a file, by requesting its first byte; raises as `cat_file`."""
        headers, _ = self._wait(self._get, url, 0, 1)
        total = re.fullmatch(r"bytes \S+/(\d{1,18})", headers.get("Content-Range", ""))
        if total is None:
            raise _unsupported(url, "The server does not report the file's size.")
        versions = {name: headers[name] for name in ("ETag", "Last-Modified") if name in headers}
        return {"size": int(total[1]), **versions}

    def _wait(self, function: Any, url: str, start: int, end: int) -> Any:
        from aiohttp import TooManyRedirects
        from fsspec.asyn import sync

        try:
            return sync(self._fs.loop, function, url, start, end)
        except TooManyRedirects:
            raise _unsupported(url, "The server redirects too many times.") from None

    async def _get(self, url: str, start: int, end: int) -> tuple[dict[str, str], bytes]:
        """Headers and content of a range. An empty file has ``Content-Range: bytes */0``."""
        import aiohttp

        options = dict(self._fs.kwargs)
        range_headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        options["headers"] = {**options.get("headers", {}), **range_headers}
        options["timeout"] = aiohttp.ClientTimeout(
            total=READ_TIMEOUT + (end - start) / _MIN_SPEED,
            sock_connect=CONNECT_TIMEOUT,
            sock_read=READ_TIMEOUT,
        )
        session = await self._fs.set_session()
        async with session.get(self._fs.encode_url(url), **options) as response:
            if response.status in _NOT_FOUND:
                raise FileNotFoundError(url)
            if response.status == _RANGE_NOT_SATISFIABLE and start == 0:
                return {"Content-Range": "bytes */0"}, b""
            response.raise_for_status()
            if response.status != _PARTIAL_CONTENT and response.content_length != 0:
                raise _unsupported(url, "The server only sends whole files.")
            content = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                content += chunk
                if len(content) > end - start:
                    raise ShortResponseError
            if response.status != _PARTIAL_CONTENT:
                return {**response.headers, "Content-Range": "bytes */0"}, b""
            return dict(response.headers), bytes(content)


def _unsupported(url: str, message: str) -> InputError:
    hint = "Use a server that supports range requests, or download the checkpoint first."
    return InputError("INPUT_SERVER", message, file=redact_url(url), hint=hint)
