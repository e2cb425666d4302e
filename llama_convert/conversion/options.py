"""What may be asked of a conversion, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.shards import DEFAULT_SHARD_SIZE
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.execute import DEFAULT_BLOCK_SIZE, DEFAULT_WORKERS
from llama_convert.errors import UsageError
from llama_convert.llama.releases import Identity
from llama_convert.llama.rotary import CheckpointLayout
from llama_convert.redaction import redact_url


def parse_layout(word: str) -> CheckpointLayout:
    """The layout that ``hf`` or ``meta`` means.

    Raises:
        UsageError: it means none.
    """
    words: dict[str, CheckpointLayout] = {"hf": "huggingface", "huggingface": "huggingface", "meta": "meta"}
    if word.lower() not in words:
        raise UsageError("BAD_LAYOUT", f"--to {word}: choose hf or meta")
    return words[word.lower()]


@dataclass(frozen=True)
class ConvertOptions:
    """What may be asked of a conversion; every default is told from the files."""

    to: CheckpointLayout = "huggingface"
    dtype: str = "auto"
    mp: int = 1
    """Tensor-parallel ranks, where the output has Meta's layout."""
    embedding_axis: int | None = None
    """The axis on which ranks cut the embedding; None: the release's own."""
    checklist: bool = True
    """Whether to write ``checklist.chk``, for which the rank files are read again."""
    compare_checklist: bool = False
    """Whether to hold the source against its own ``checklist.chk`` first, for which it is read once more."""
    max_shard_size: str = DEFAULT_SHARD_SIZE
    llama_version: str | None = None
    model_size: str | None = None
    num_shards: int | None = None
    instruct: bool | None = None
    tokenizer: Path | None = None
    chat_template: Path | None = None
    special_tokens: tuple[str, ...] = ()
    overwrite: bool = False
    strict: bool = False
    dry_run: bool = False
    resume: bool = True
    """Whether to go on from what an earlier run of the same conversion has left."""
    fsync: bool = True
    """Whether to wait until all is on disk."""
    array_task: str | None = None
    """``I/N``: write only the Ith of N shares of the files; the last task finalizes the output."""
    finish: bool = False
    """Whether only to publish what array tasks have written."""
    workers: int = DEFAULT_WORKERS
    block_size: int = DEFAULT_BLOCK_SIZE

    @property
    def decisive(self) -> ConvertOptions:
        """Only what decides the output, besides the files that are named; the rest as it is by default."""
        return ConvertOptions(
            to=self.to,
            dtype=self.dtype,
            mp=self.mp,
            embedding_axis=self.embedding_axis,
            checklist=self.checklist,
            max_shard_size=self.max_shard_size,
            llama_version=self.llama_version,
            special_tokens=self.special_tokens,
        )


@dataclass
class ConvertResult:
    """What a conversion did, or with `dry_run` would do."""

    destination: Path | str
    """A folder, or a URL."""
    source: Path | str
    """Likewise: where the checkpoint was found, be it in a folder of what was named."""
    release: str
    version: str
    size: str | None
    evidence: tuple[str, ...]
    alternatives: tuple[str, ...]
    instruct: bool | None
    """None: the files were carried over as they are."""
    dtype: str | None
    files: dict[str, int]
    """Bytes of each output file."""
    casts: dict[str, CastCounts] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    published: bool = False
    """Whether the whole output stands in its place."""
    up_to_date: bool = False
    """Whether an earlier run had written all of it, so that nothing was written."""

    @classmethod
    def of(
        cls,
        destination: Path,
        identity: Identity,
        sizes: Mapping[str, int],
        *,
        dtype: str | None,
        instruct: bool | None = None,
    ) -> ConvertResult:
        """What is known before anything is written."""
        return cls(
            destination=destination,
            source="",
            release=identity.title,
            version=identity.release.version,
            size=identity.size.label if identity.size else None,
            evidence=identity.evidence,
            alternatives=tuple(release.version for release in identity.alternatives),
            instruct=instruct,
            dtype=dtype,
            files=dict(sizes),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        places = {"destination": self.destination, "source": self.source}
        return asdict(self) | {name: redact_url(str(place)) for name, place in places.items()}
