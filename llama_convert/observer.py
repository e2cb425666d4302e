"""Who is told what happens while weights move."""

from __future__ import annotations


class Observer:
    """Is told what happens while a conversion runs.  The methods do nothing; override what is of interest."""

    def note(self, text: str) -> None:
        """Something was decided."""

    def warning(self, text: str) -> None:
        """Something should be looked at."""

    def start(self, total: int) -> None:
        """The weights will be written: ``total`` bytes."""

    def advance(self, count: int) -> None:
        """``count`` more bytes were written.  Called from several threads."""

    def finish(self) -> None:
        """The weights are written, or the attempt has ended."""
