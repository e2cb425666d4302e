"""Messages of a conversion: notes, details and warnings, and the texts that several conversions share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.dtypes import Dtype
from llama_convert.errors import RefusedError
from llama_convert.llama.releases import DetectedRelease, Release
from llama_convert.llama.weights import HEAD, Weight
from llama_convert.observer import Observer
from llama_convert.stores.location import Location
from llama_convert.units import format_part


class Messages:
    """Forwards messages to an observer and keeps the warnings.

    Args:
        observer: receives every message.
        locations: source and output; messages name their URLs, not the folders that they are mounted to.
    """

    def __init__(self, observer: Observer, locations: Sequence[Location] = ()) -> None:
        self.observer = observer
        self._locations = locations
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Report something that may be wrong."""
        text = self._display(text)
        self.warnings.append(text)
        self.observer.warning(text)

    def warn_each(self, findings: Iterable[object]) -> None:
        """Report each finding as a warning."""
        for finding in findings:
            self.warn(str(finding))

    def note(self, text: str) -> None:
        """Report a decision or result that every user should see."""
        self.observer.note(self._display(text))

    def detail(self, text: str) -> None:
        """Report a decision that only matters to an expert."""
        self.observer.detail(self._display(text))

    def _display(self, text: str) -> str:
        for location in self._locations:
            text = location.display(text)
        return text

    def check_strict(self, strict: bool) -> None:
        """Refuse warnings with ``--strict``.

        Raises:
            RefusedError: ``strict`` is set and there was a warning.
        """
        if self.warnings and strict:
            raise RefusedError("STRICT_WARNINGS", f"Warning with --strict: {self.warnings[0]}")


def report_detection(
    identity: DetectedRelease,
    n_shards: int,
    dtype: Dtype,
    messages: Messages,
    *,
    instruct: bool | None = None,
) -> None:
    """Report what checkpoint was detected in one line; the evidence is a detail.

    Args:
        identity: the detected release and size.
        n_shards: number of files that hold weights.
        dtype: the dtype of most weights.
        messages: receives the messages.
        instruct: whether it is an instruct model; None if unknown.
    """
    size = identity.size.label if identity.size else ""
    variant = _instruct_name(identity.release) if instruct else ""
    custom = "" if identity.size else "(custom size)"
    name = " ".join(filter(None, [identity.release.title, size, variant, custom]))
    shards = f"{n_shards} shard{'s' * (n_shards != 1)}"
    messages.note(f"Detected: {name}, {shards}, {dtype.short or dtype.name}")
    messages.detail(f"Evidence for {identity.title}: {', '.join(identity.evidence)}.")


def _instruct_name(release: Release) -> str:
    """Return the name of a release's instruct models; empty if its title already implies it."""
    if release.title.startswith("Llama Guard"):
        return ""
    return "Chat" if release.version == "2" else "Instruct"


def report_alternatives(identity: DetectedRelease, messages: Messages) -> None:
    """Report other releases that the files allow, with the flag that selects each."""
    if identity.alternatives:
        titles = _any_of([release.title for release in identity.alternatives])
        versions = _any_of([release.version for release in identity.alternatives])
        messages.note(f"These files could also be {titles}. Use --llama-version {versions} to override.")


def _any_of(names: list[str]) -> str:
    """Return names as ``A, B or C``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def warn_of_missing_head(checkpoint: MetaCheckpoint, messages: Messages) -> None:
    """Warn of shards without an output head, unless the release ties its head to the embedding."""
    if Weight(HEAD) not in checkpoint.weights and not checkpoint.detected.release.tied:
        messages.warn(
            f"{checkpoint.folder.path}: No shard has output.weight. "
            "The embedding is used as the output head (tied)."
        )


def saved_sentence(done: int, total: int) -> str | None:
    """Return what an interrupted run saved, in bytes of weights; None if nothing."""
    return f"Saved {format_part(done, total)}. Run the same command to resume." if done else None
