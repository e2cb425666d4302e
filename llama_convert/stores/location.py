"""A checkpoint's folder or file on this machine, and the name that messages give it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """A folder or file, local or mounted from a URL.

    Errors, notes and results made from a mounted folder contain local paths in a temporary folder; `display`
    replaces them with the URL.
    """

    path: Path
    """Where its files can be opened."""
    mounts: tuple[tuple[str, str], ...] = ()
    """Local folders of the mount, each with its URL without secrets, the innermost first; none if local."""

    def contains(self, path: Path) -> bool:
        """Whether the path is in a folder mounted from a URL."""
        return any(path.is_relative_to(folder) for folder, _ in self.mounts)

    def display(self, value: T) -> T:
        """Copy a value with URLs in place of local paths.

        Args:
            value: a string, path, dataclass, or a dict, list or tuple of these. A path becomes a string.
        """
        return _map_strings(value, self._rename) if self.mounts else value

    def _rename(self, text: str) -> str:
        for folder, url in self.mounts:
            text = text.replace(folder, url)
        return text

    @contextmanager
    def renaming_errors(self) -> Iterator[None]:
        """Replace local paths with URLs in every exception that leaves the context."""
        try:
            yield
        except BaseException as error:
            if self.mounts:
                vars(error).update(self.display(vars(error)))
                error.args = self.display(error.args)
                if isinstance(error, OSError):
                    error.filename = self.display(error.filename)
            raise


def _map_strings(value: Any, rename: Any) -> Any:
    if type(value) is str:
        return rename(value)
    if isinstance(value, Path):
        text = str(value)
        renamed = rename(text)
        return value if renamed == text else renamed
    if isinstance(value, dict):
        return {_map_strings(key, rename): _map_strings(item, rename) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map_strings(item, rename) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        values = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        changed = {name: _map_strings(item, rename) for name, item in values.items()}
        return replace(value, **changed)
    return value
