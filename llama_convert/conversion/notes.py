"""What a conversion says on its way."""

from __future__ import annotations

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

    def note(self, text: str) -> None:
        """Something that was decided."""
        self.observer.note(text)
