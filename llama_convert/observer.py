"""The interface through which conversions and verifications report progress, decisions and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_convert.verification.report import Check, CheckReport, VerifyReport


class Observer:
    """Receives progress, notes and warnings. Every method does nothing; override those of interest.

    Example:
        >>> class Warnings(Observer):
        ...     def warning(self, text: str) -> None:
        ...         print(text)
        >>> Warnings().warning("Shard 3 has no CRC-32.")
        Shard 3 has no CRC-32.
    """

    def note(self, text: str) -> None:
        """A decision was made, for example which release the files are."""

    def detail(self, text: str) -> None:
        """Like `note`, but of interest only to a reader who asked for more (``--verbose``)."""

    def warning(self, text: str) -> None:
        """Something may be wrong."""

    def start(self, total: int | None, label: str = "Converting") -> None:
        """A phase begins.

        Args:
            total: bytes to process; None if the phase cannot be measured.
            label: what it does, for example "Comparing checksums".
        """

    def advance(self, count: int) -> None:
        """``count`` more bytes were processed. Called from several threads."""

    def finish(self) -> None:
        """The phase has ended, successfully or not."""

    @contextmanager
    def phase(self, label: str, total: int | None = None) -> Iterator[None]:
        """Call `start` and `finish` around a block. Not meant to be overridden."""
        self.start(total, label)
        try:
            yield
        finally:
            self.finish()

    def verification_started(self, report: VerifyReport) -> None:
        """Source and output are open; ``report`` names them and has no checks yet."""

    def check_started(self, check: Check) -> None:
        """A check begins."""

    def check_finished(self, report: CheckReport) -> None:
        """A check has passed, failed or was skipped."""
