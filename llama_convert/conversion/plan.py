"""The plan of a conversion: every byte to write and where it comes from, computed from headers alone.

A plan has one task per weight, which gathers the weight from its stored pieces and scatters it to its places
in the output files. `execute` needs nothing else. Only the planners know checkpoint formats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from llama_convert.checkpoints.stored_weight import StoredWeight, matrix_shape
from llama_convert.dtypes import Dtype
from llama_convert.formats.tensors import FileLayout
from llama_convert.llama.rope import RowTranspose


@dataclass(frozen=True)
class Place:
    """A rectangle of a weight, seen as a matrix, that is one whole tensor of an output file."""

    file: str
    name: str
    offset: int
    """Byte offset in the output file."""
    rows: tuple[int, int]
    """First row and end row of the written weight."""
    columns: tuple[int, int]
    """First column and end column."""

    @property
    def n_elements(self) -> int:
        """Number of elements in the rectangle."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class Task:
    """One weight to gather, permute, cast and scatter."""

    name: str
    """Name in the output."""
    source: StoredWeight
    dtype: Dtype
    places: tuple[Place, ...]
    permutation: RowTranspose | None = None
    """Permutation of the rows for RoPE."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight in its new dtype; copies count once."""
        return math.prod(self.source.shape) * self.dtype.itemsize

    def bytes_of(self, rows: int) -> int:
        """Return the bytes of ``rows`` rows in the new dtype."""
        return rows * matrix_shape(self.source.shape)[1] * self.dtype.itemsize

    @property
    def n_rows(self) -> int:
        """Number of rows of the weight, seen as a matrix."""
        return matrix_shape(self.source.shape)[0]

    @property
    def permuted_rows(self) -> int:
        """Number of consecutive rows that are permuted among themselves; a block never splits them."""
        return self.permutation.run if self.permutation else 1

    def restricted_to(self, place: Place) -> Task:
        """Return the task that writes only one place and reads no more than it needs."""
        unit, (first, last) = self.permuted_rows, place.rows
        top, bottom = first // unit * unit, min(self.n_rows, -(-last // unit) * unit)
        columns = place.columns[1] - place.columns[0]
        moved = replace(place, rows=(first - top, last - top), columns=(0, columns))
        return replace(self, source=self.source.part((top, bottom), place.columns), places=(moved,))

    @property
    def is_cast(self) -> bool:
        """Whether the dtype changes."""
        return self.dtype != self.source.dtype


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion writes of the weights."""

    layouts: Mapping[str, FileLayout]
    """Byte layout of each output file, by name."""
    tasks: tuple[Task, ...]
    """In the byte order of the files."""
    small_files: Mapping[str, bytes] = field(default_factory=dict)
    """Small files that describe the weight files, for example an index."""

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each output file, by name."""
        return {name: layout.size for name, layout in self.layouts.items()}

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all output files."""
        return sum(self.sizes.values())

    @cached_property
    def payload_bytes(self) -> int:
        """Bytes of all weights; a weight that several ranks hold counts once."""
        return sum(task.nbytes for task in self.tasks)

    def restricted_to(self, file: str) -> Plan:
        """Return the plan that writes only one file; of each weight, only the part in the file."""
        tasks = tuple(
            task if task.places == (place,) else task.restricted_to(place)
            for task in self.tasks
            for place in task.places
            if place.file == file
        )
        return Plan({file: self.layouts[file]}, tasks)

    def tensor_count(self, file: str) -> int:
        """Return the number of tensors of a file that are written; tensors that share bytes count once."""
        return sum(place.file == file for task in self.tasks for place in task.places)

    @property
    def sources(self) -> set[Path]:
        """The weight files that are read."""
        return {slab.file for task in self.tasks for slab in task.source.slabs}
