"""What every level is given: both sides, the options, who is told of progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_convert.dtypes import BFLOAT16, FLOAT32, Dtype, parse_weight_dtype
from llama_convert.errors import LlamaConvertError, UsageError
from llama_convert.findings import Finding
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.weights import Weight, huggingface_weights
from llama_convert.observer import Observer
from llama_convert.verification.inputs import Checkpoint, Input
from llama_convert.verification.options import VerifyOptions

Outcome = tuple[str, list[Finding], dict[str, Any]]
"""What was looked at, what is wrong with it, and the figures."""

_COMPUTE = (FLOAT32, BFLOAT16)


class SkippedError(Exception):
    """A level has nothing to look at; says why."""


@dataclass
class Context:
    """What every level is given."""

    output: Input
    source: Input | None
    options: VerifyOptions
    observer: Observer
    compute: Dtype
    """The dtype of the forward passes' arithmetic."""
    told: bool = field(default=False, init=False)
    """Whether the problems with the headers have been reported."""

    @property
    def sides(self) -> list[Input]:
        """The output, and the source if there is one."""
        return [side for side in (self.output, self.source) if side is not None]

    def opened(self, *, whole: bool = False) -> tuple[Checkpoint, Checkpoint | None]:
        """The checkpoints of the output and the source, as far as a level needs them.

        Args:
            whole: all weights must be there.

        Raises:
            LlamaConvertError: there is none, and it has not been said why.
            NotRunError: there is none, and it has.
        """
        for side in self.sides:
            wrong: list[LlamaConvertError] = []
            if side.checkpoint is None or (whole and lacking(side.checkpoint)):
                wrong = side.problems
            elif whole and side is self.output:
                wrong = contradictions(side.checkpoint)
            if wrong:
                if self.told:
                    raise SkippedError("what the structure level found must be mended first")
                raise wrong[0]
        assert self.output.checkpoint is not None
        return self.output.checkpoint, self.source.checkpoint if self.source else None

    @contextmanager
    def progress(self, total: int, verb: str) -> Iterator[None]:
        """Let the observer count bytes."""
        self.observer.start(total, verb)
        try:
            yield
        finally:
            self.observer.finish()


def compute_dtype(name: str) -> Dtype:
    """The dtype that the forward passes may compute in.

    Raises:
        UsageError: they do not run in that.
    """
    dtype = parse_weight_dtype(name)
    if dtype is None or dtype not in _COMPUTE:
        raise UsageError("BAD_DTYPE", f"--dtype {name}: the forward pass runs in fp32 or bf16")
    return dtype


def lacking(checkpoint: Checkpoint) -> list[Weight]:
    """Weights that the forward pass needs and the checkpoint has not."""
    return [weight for weight in huggingface_weights(checkpoint.config) if weight not in checkpoint.weights]


def contradictions(checkpoint: Checkpoint) -> list[LlamaConvertError]:
    """Contradictions between files that make readers of an output disagree on what it computes."""
    return [error for error in checkpoint.warnings if error.code == "CONFIG_TENSORS_DISAGREE"]


def declared_config(checkpoint: Checkpoint) -> LlamaConfig:
    """The hyper-parameters that other readers take from the folder; they may believe config.json alone."""
    if isinstance(checkpoint, HuggingFaceCheckpoint):
        return checkpoint.settings.llama
    return checkpoint.config


def config_file(checkpoint: Checkpoint) -> str:
    """The file that tells the hyper-parameters."""
    return "config.json" if isinstance(checkpoint, HuggingFaceCheckpoint) else "params.json"
