"""Options and result of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llama_convert.checkpoints.shards import DEFAULT_SHARD_SIZE
from llama_convert.conversion.cast import CastCounts
from llama_convert.conversion.execute import DEFAULT_BLOCK_SIZE, DEFAULT_WORKERS
from llama_convert.errors import UsageError
from llama_convert.llama.releases import DetectedRelease
from llama_convert.llama.weights import CheckpointFormat as CheckpointFormat


def parse_format(text: str) -> CheckpointFormat:
    """Return the checkpoint format that ``hf``, ``huggingface`` or ``meta`` names.

    Raises:
        UsageError: no such format.
    """
    formats: dict[str, CheckpointFormat] = {"hf": "huggingface", "huggingface": "huggingface", "meta": "meta"}
    if text.lower() not in formats:
        raise UsageError("BAD_FORMAT", f"--to {text}: Unknown format.", hint="Choose hf or meta.")
    return formats[text.lower()]


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `convert` and `shard`. Every default is detected from the files."""

    to: CheckpointFormat = "huggingface"
    dtype: str = "auto"
    mp: int = 1
    """Number of shards (tensor-parallel ranks) of Meta output."""
    embedding_axis: int | None = None
    """The dim along which ranks split the embedding; None for the release's default."""
    checklist: bool = True
    """Whether to write ``checklist.chk``, which re-reads the shards."""
    compare_checklist: bool = False
    """Whether to verify the source against its ``checklist.chk`` first, which reads it once more."""
    max_shard_size: str = DEFAULT_SHARD_SIZE
    llama_version: str | None = None
    model_size: str | None = None
    num_shards: int | None = None
    instruct: bool | None = None
    tokenizer: Path | None = None
    config_from: Path | None = None
    """Folder with settings and tokenizer, if the weights are in a folder without them."""
    chat_template: Path | None = None
    special_tokens: tuple[str, ...] = ()
    overwrite: bool = False
    strict: bool = False
    dry_run: bool = False
    resume: bool = True
    """Whether to reuse what an interrupted run of the same conversion has written."""
    fsync: bool = True
    """Whether to flush the output to disk."""
    array_task: str | None = None
    """``I/N``: write only part I of N of the files; the last task finalizes the output."""
    finish: bool = False
    """Whether to only finalize what array tasks have written."""
    workers: int = DEFAULT_WORKERS
    block_size: int = DEFAULT_BLOCK_SIZE

    @property
    def output_options(self) -> ConvertOptions:
        """The options that decide the output, except named files; every other option has its default."""
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
    """What a conversion did, or would do with `dry_run`."""

    destination: Path | str
    """A folder or a URL."""
    source: Path | str
    """A folder, file or URL: where the checkpoint was found, which may be below the named folder."""
    release: str
    version: str
    size: str | None
    evidence: tuple[str, ...]
    alternatives: tuple[str, ...]
    instruct: bool | None
    """None if the tokenizer and settings were copied unchanged."""
    dtype: str | None
    files: dict[str, int]
    """Bytes of each output file, by name."""
    casts: dict[str, CastCounts] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    finalized: bool = False
    """Whether the whole output is in its folder."""
    is_up_to_date: bool = False
    """Whether an earlier run had already written this output, so that nothing was written now."""

    @classmethod
    def of(
        cls,
        destination: Path,
        identity: DetectedRelease,
        sizes: Mapping[str, int],
        *,
        dtype: str | None,
        instruct: bool | None = None,
    ) -> ConvertResult:
        """Return the result as far as it is known before anything is written."""
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

    @property
    def total_bytes(self) -> int:
        """Bytes of all output files."""
        return sum(self.files.values())
