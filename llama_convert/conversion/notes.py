"""What a conversion says on its way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama_convert.observer import Observer
from llama_convert.stores.location import Location


class Notes:
    """Tells the observer, and remembers the warnings."""

    def __init__(self, observer: Observer, locations: Sequence[Location] = ()) -> None:
        """Without notes so far.

        Args:
            observer: receives the notes and warnings.
            locations: source and destination; texts show their URLs, not the folders they are mounted to.
        """
        self.observer = observer
        self._locations = locations
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Something that may be wrong."""
        text = self._display(text)
        self.warnings.append(text)
        self.observer.warning(text)

    def warn_of_each(self, findings: Iterable[object]) -> None:
        """Warn of what was found when a checkpoint was opened."""
        for finding in findings:
            self.warn(str(finding))

    def note(self, text: str) -> None:
        """Something that was decided."""
        self.observer.note(self._display(text))

    def _display(self, text: str) -> str:
        for location in self._locations:
            text = location.display(text)
        return text
