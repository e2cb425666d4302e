"""Who is told what happens while weights move."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_convert.verification.report import Check, CheckReport, VerifyReport


class Observer:
    """Is told what happens while a conversion runs.  The methods do nothing; override what is of interest."""

    def note(self, text: str) -> None:
        """Something was decided."""

    def detail(self, text: str) -> None:
        """A decision that only matters to an expert."""

    def warning(self, text: str) -> None:
        """Something should be looked at."""

    def start(self, total: int, verb: str = "written") -> None:
        """The weights, ``total`` bytes, will be written, or what ``verb`` says."""

    def advance(self, count: int) -> None:
        """``count`` more bytes were.  Called from several threads."""

    def finish(self) -> None:
        """All weights were, or the attempt has ended."""

    def verification_started(self, report: VerifyReport) -> None:
        """Source and output are open; ``report`` names them and has no checks yet."""

    def check_started(self, check: Check) -> None:
        """A check begins."""

    def check_finished(self, report: CheckReport) -> None:
        """A check has passed, failed or was skipped."""
