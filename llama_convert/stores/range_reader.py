"""A file elsewhere, read by ranges."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from llama_convert.stores.filesystem import shown
from llama_convert.stores.retry import ShortAnswerError, persistently

_WINDOW = 128 << 10
"""Bytes that are fetched where fewer are asked for: headers lie together."""
_WINDOWS = 4


class RangeReader:
    """Every read is a request; those of a few bytes are served from what was fetched around them."""

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
        """Fill ``target`` from ``offset`` on; fewer bytes only where the file ends.

        Raises:
            InputError: the file is gone, or forbidden.
            OutputError: it cannot be fetched.
        """
        end = min(offset + len(target), self.size)
        if offset >= end:
            return 0
        target[: end - offset] = (
            self._near(offset, end) if end - offset < _WINDOW else self._fetch(offset, end)
        )
        return end - offset

    def _near(self, offset: int, end: int) -> bytes:
        with self._lock:
            for start, window in self._windows.items():
                if start <= offset and end <= start + len(window):
                    return window[offset - start : end - start]
        start = max(0, min(offset, self.size - _WINDOW))
        window = self._fetch(start, min(self.size, start + _WINDOW))
        with self._lock:
            self._windows[start] = window
            while len(self._windows) > _WINDOWS:
                self._windows.popitem(last=False)
        return window[offset - start : end - start]

    def _fetch(self, start: int, end: int) -> bytes:
        def ask() -> bytes:
            content: bytes = self._fs.cat_file(self._path, start=start, end=end)
            if len(content) != end - start:
                raise ShortAnswerError
            return content

        return persistently(f"reading bytes {start:,} to {end:,}", shown(self._url), ask)

    def read_all(self) -> bytes:
        """All of it; raises as `read_some`."""
        return self._fetch(0, self.size) if self.size else b""

    def close(self) -> None:
        """There is nothing to let go of."""
