"""What a conversion says on its way."""

from __future__ import annotations

from collections.abc import Iterable

from llama_convert.observer import Observer


class Notes:
    """Tells the observer, and remembers the warnings."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Something that may be wrong."""
        self.warnings.append(text)
        self.observer.warning(text)

    def warn_of_each(self, findings: Iterable[object]) -> None:
        """Warn of what was found when a checkpoint was opened."""
        for finding in findings:
            self.warn(str(finding))

    def note(self, text: str) -> None:
        """Something that was decided."""
        self.observer.note(text)
