"""What may be asked of a conversion, and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.shards import DEFAULT_SHARD_SIZE
from llama_convert.convert.cast import CastCounts
from llama_convert.convert.execute import DEFAULT_BLOCK_SIZE, DEFAULT_WORKERS


@dataclass(frozen=True)
class ConvertOptions:
    """What may be asked of a conversion; every default is told from the files."""

    dtype: str = "auto"
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
    workers: int = DEFAULT_WORKERS
    block_size: int = DEFAULT_BLOCK_SIZE


@dataclass
class ConvertResult:
    """What a conversion did, or with `dry_run` would do."""

    destination: Path
    release: str
    version: str
    size: str | None
    evidence: tuple[str, ...]
    alternatives: tuple[str, ...]
    instruct: bool
    dtype: str | None
    files: dict[str, int]
    """Bytes of each output file."""
    casts: dict[str, CastCounts] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"destination": str(self.destination)}
