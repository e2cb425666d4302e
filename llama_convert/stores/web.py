"""Files of a web server, read by ranges.

A server is not trusted: no answer is read further than was asked for, none may trickle for ever, and a
server that would send whole files is refused.
"""

from __future__ import annotations

import re
from typing import Any

from llama_convert.errors import InputError
from llama_convert.redaction import redact_url
from llama_convert.stores.retry import CONNECT, READ, ShortAnswerError

_SLOWEST = 10_000
"""Bytes a second below which an answer is given up."""
_CHUNK = 1 << 16
_MISSING = (404, 410)
_NOT_IN_FILE = 416
_PARTIAL = 206


class WebFiles:
    """What `stores` needs of an fsspec file system, over its session."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def cat_file(self, url: str, start: int, end: int) -> bytes:
        """The file's bytes from ``start`` to before ``end``.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: the server does not support ranges.
            ShortAnswerError: it sent fewer bytes, or more.
        """
        content: bytes = self._wait(self._get, url, start, end)[1]
        return content

    def info(self, url: str) -> dict[str, Any]:
        """Size, ETag and Last-Modified of a file, by a request for its first byte; raises as `cat_file`."""
        headers, _ = self._wait(self._get, url, 0, 1)
        total = re.fullmatch(r"bytes \S+/(\d{1,18})", headers.get("Content-Range", ""))
        if total is None:
            raise _refused(url, "does not say how large the file is")
        said = {name: headers[name] for name in ("ETag", "Last-Modified") if name in headers}
        return {"size": int(total[1]), **said}

    def _wait(self, function: Any, url: str, start: int, end: int) -> Any:
        from aiohttp import TooManyRedirects
        from fsspec.asyn import sync

        try:
            return sync(self._fs.loop, function, url, start, end)
        except TooManyRedirects:
            raise _refused(url, "redirects in a circle") from None

    async def _get(self, url: str, start: int, end: int) -> tuple[dict[str, str], bytes]:
        import aiohttp

        options = dict(self._fs.kwargs)
        asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        options["headers"] = {**options.get("headers", {}), **asked}
        options["timeout"] = aiohttp.ClientTimeout(
            total=READ + (end - start) / _SLOWEST, sock_connect=CONNECT, sock_read=READ
        )
        session = await self._fs.set_session()
        async with session.get(self._fs.encode_url(url), **options) as answer:
            if answer.status in _MISSING:
                raise FileNotFoundError(url)
            if answer.status == _NOT_IN_FILE and start == 0:
                return {"Content-Range": "bytes */0"}, b""
            answer.raise_for_status()
            if answer.status != _PARTIAL and answer.content_length != 0:
                raise _refused(url, "sends whole files only")
            content = bytearray()
            async for chunk in answer.content.iter_chunked(_CHUNK):
                content += chunk
                if len(content) > end - start:
                    raise ShortAnswerError
            if answer.status != _PARTIAL:
                return {**answer.headers, "Content-Range": "bytes */0"}, b""
            return dict(answer.headers), bytes(content)


def _refused(url: str, what: str) -> InputError:
    hint = "Use a server that supports range requests, or download the checkpoint first."
    return InputError("INPUT_SERVER", f"{redact_url(url)}: the server {what}", hint=hint)
