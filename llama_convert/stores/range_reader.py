"""Reads byte ranges of a remote file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from llama_convert.stores.filesystem import printable
from llama_convert.stores.retry import ShortResponseError, with_retries

_WINDOW = 128 << 10
"""Bytes fetched for smaller reads: the headers of a file are next to each other."""
_MAX_WINDOWS = 4


class RangeReader:
    """A remote file. Each large read is one request; small reads share cached windows of 128 KiB.

    Args:
        fs: an fsspec file system, or `WebFiles`.
        path: the file's path in it.
        url: the file's URL, for messages.
        file: the local placeholder.
        size: bytes of the file.
    """

    is_remote = True

    def __init__(self, fs: Any, path: str, url: str, file: Path, size: int) -> None:
        self.file = file
        self.size = size
        self._fs = fs
        self._path = path
        self._url = url
        self._lock = Lock()
        self._windows: OrderedDict[int, bytes] = OrderedDict()

    def read_some(self, target: memoryview, offset: int) -> int:
        """Fill ``target`` with the bytes from ``offset`` on.

        Returns:
            Bytes read: fewer than the size of ``target`` only at the end of the file.

        Raises:
            InputError: the file no longer exists, or access is denied.
            OutputError: the store cannot be reached.
        """
        end = min(offset + len(target), self.size)
        if offset >= end:
            return 0
        is_small = end - offset < _WINDOW
        target[: end - offset] = self._read_window(offset, end) if is_small else self._fetch(offset, end)
        return end - offset

    def _read_window(self, offset: int, end: int) -> bytes:
        """Bytes from a cached window that has them, else from a new one."""
        with self._lock:
            for start, window in self._windows.items():
                if start <= offset and end <= start + len(window):
                    return window[offset - start : end - start]
        start = max(0, min(offset, self.size - _WINDOW))
        window = self._fetch(start, min(self.size, start + _WINDOW))
        with self._lock:
            self._windows[start] = window
            while len(self._windows) > _MAX_WINDOWS:
                self._windows.popitem(last=False)
        return window[offset - start : end - start]

    def _fetch(self, start: int, end: int) -> bytes:
        def request() -> bytes:
            content: bytes = self._fs.cat_file(self._path, start=start, end=end)
            if len(content) != end - start:
                raise ShortResponseError
            return content

        return with_retries(f"read bytes {start:,} to {end:,}", printable(self._url), request)

    def read_all(self) -> bytes:
        """The whole file; raises as `read_some`."""
        return self._fetch(0, self.size) if self.size else b""

    def close(self) -> None:
        """Do nothing: no connection belongs to a reader."""
