"""How two checkpoints differ, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_convert import json_output
from llama_convert.findings import Finding
from llama_convert.inspection.records import Inspection


@dataclass(frozen=True)
class Differing:
    """One thing that both have, and that is not the same."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class ValueDifference:
    """How the values of one tensor differ, with rows in one order and rounded to one dtype."""

    name: str
    """What the second checkpoint calls it."""
    elements: int
    different: int
    max_difference: float
    relative_difference: float
    """The norm of the difference, relative to that of the first checkpoint's tensor."""


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints side by side."""

    a: Inspection
    b: Inspection
    config: tuple[Differing, ...]
    """Hyper-parameters."""
    only_in_a: tuple[str, ...]
    """Tensors, by the names of the checkpoint that has them."""
    only_in_b: tuple[str, ...]
    shapes: tuple[Differing, ...]
    dtypes: tuple[Differing, ...]
    tokenizer: tuple[Differing, ...]
    values: tuple[ValueDifference, ...]
    """Tensors whose values differ."""
    compared: int | None
    """Tensors whose values were compared; None: they were not asked for."""
    findings: tuple[Finding, ...] = ()
    """What kept values from being compared."""

    @property
    def same(self) -> bool:
        """Nothing that was looked at differs."""
        names = (self.only_in_a, self.only_in_b)
        return not any((self.config, *names, self.shapes, self.dtypes, self.tokenizer, self.values))

    @property
    def ok(self) -> bool:
        """The same, and nothing wrong with either, nor with the comparison."""
        return self.same and self.a.ok and self.b.ok and not self.findings

    def to_json(self) -> dict[str, Any]:
        """The keys that ``inspect A B --json`` adds to those of every command."""
        return json_output.comparison(self)
