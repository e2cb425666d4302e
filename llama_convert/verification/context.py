"""What every check needs: the opened output and source, the options, the observer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llama_convert.checkpoints.source import Checkpoint
from llama_convert.dtypes import BFLOAT16, FLOAT32, Dtype, parse_weight_dtype
from llama_convert.errors import LlamaConvertError, UsageError
from llama_convert.llama.weights import Weight, huggingface_weights
from llama_convert.observer import Observer
from llama_convert.verification.inputs import Input
from llama_convert.verification.options import VerifyOptions

_COMPUTE = (FLOAT32, BFLOAT16)


class SkippedError(Exception):
    """A check cannot run.

    Args:
        reason: why, as a sentence without a period.
        hint: what to do, as an imperative sentence or ``Run: COMMAND``.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        self.hint = hint
        super().__init__(reason)


@dataclass
class Context:
    """What every check needs."""

    output: Input
    source: Input | None
    options: VerifyOptions
    observer: Observer
    compute: Dtype
    """Dtype of the arithmetic in the forward passes."""
    headers_reported: bool = field(default=False, init=False)
    """Whether the structure check has reported the problems with the headers."""

    @property
    def inputs(self) -> list[Input]:
        """The output, and the source if there is one."""
        return [each for each in (self.output, self.source) if each is not None]

    def opened(self, *, whole: bool = False) -> tuple[Checkpoint, Checkpoint | None]:
        """The checkpoints of output and source.

        Args:
            whole: require all weights, and an output whose files agree on what it computes.

        Raises:
            LlamaConvertError: one of them cannot be opened, and no check has reported it.
            SkippedError: one of them cannot be opened, and the structure check has reported it.
        """
        for each in self.inputs:
            problems: list[LlamaConvertError] = []
            if each.checkpoint is None or (whole and missing_weights(each.checkpoint)):
                problems = each.problems
            elif whole and each is self.output:
                problems = contradictions(each.checkpoint)
            if problems:
                if self.headers_reported:
                    raise SkippedError("Fix the errors of the structure check first")
                raise problems[0]
        assert self.output.checkpoint is not None
        return self.output.checkpoint, self.source.checkpoint if self.source else None

    @contextmanager
    def progress(self, total: int, label: str) -> Iterator[None]:
        """Let the observer count ``total`` bytes, if there are any."""
        if not total:
            yield
            return
        self.observer.start(total, label)
        try:
            yield
        finally:
            self.observer.finish()


def compute_dtype(name: str) -> Dtype:
    """The dtype that the forward passes compute in.

    Raises:
        UsageError: it is neither fp32 nor bf16.
    """
    dtype = parse_weight_dtype(name)
    if dtype is None or dtype not in _COMPUTE:
        message = f"--dtype {name}: The forward pass does not support this dtype."
        raise UsageError("BAD_DTYPE", message, hint="Choose fp32 or bf16.")
    return dtype


def missing_weights(checkpoint: Checkpoint) -> list[Weight]:
    """Weights that the forward pass needs and the checkpoint lacks."""
    return [weight for weight in huggingface_weights(checkpoint.config) if weight not in checkpoint.weights]


def contradictions(checkpoint: Checkpoint) -> list[LlamaConvertError]:
    """Contradictions between files, because of which readers of the checkpoint compute different results."""
    return [error for error in checkpoint.warnings if error.code == "CONFIG_TENSORS_DISAGREE"]
