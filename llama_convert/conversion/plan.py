"""The plan: every byte that will be written, and where it comes from, known before the first is read.

A plan is made from headers alone, depends on nothing but its inputs, and is all that `execute` is given.
Every conversion is one: a task for each weight, which is gathered from its pieces and scattered to its
places.  Only who makes the plan knows of layouts.
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
    """A rectangle of a weight, seen as a matrix, that is all of one tensor of one output file."""

    file: str
    name: str
    offset: int
    """Bytes from the start of the output file."""
    rows: tuple[int, int]
    """The first, and the one after the last, of the weight as it is written."""
    columns: tuple[int, int]

    @property
    def n_elements(self) -> int:
        """Elements of the rectangle."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class Task:
    """One weight: gathered, its rows reordered, cast, scattered."""

    name: str
    """What the output calls it."""
    source: StoredWeight
    dtype: Dtype
    places: tuple[Place, ...]
    reorder: RowTranspose | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole weight in its new dtype, each counted once."""
        return math.prod(self.source.shape) * self.dtype.itemsize

    def bytes_of(self, rows: int) -> int:
        """Bytes of so many of its rows in the new dtype."""
        return rows * matrix_shape(self.source.shape)[1] * self.dtype.itemsize

    @property
    def n_rows(self) -> int:
        """Rows of the weight, seen as a matrix."""
        return matrix_shape(self.source.shape)[0]

    @property
    def rows_in_a_run(self) -> int:
        """Rows that are reordered among themselves: a block holds all of them or none."""
        return self.reorder.run if self.reorder else 1

    def only(self, place: Place) -> Task:
        """What of it makes one of its places."""
        run, (first, last) = self.rows_in_a_run, place.rows
        top, bottom = first // run * run, min(self.n_rows, -(-last // run) * run)
        columns = place.columns[1] - place.columns[0]
        there = replace(place, rows=(first - top, last - top), columns=(0, columns))
        return replace(self, source=self.source.part((top, bottom), place.columns), places=(there,))

    @property
    def is_cast(self) -> bool:
        """Whether the dtype changes."""
        return self.dtype != self.source.dtype


@dataclass(frozen=True)
class Plan:
    """All that a conversion writes of the weights."""

    layouts: Mapping[str, FileLayout]
    """Of each output file, by name."""
    tasks: tuple[Task, ...]
    """In the order of the files' bytes."""
    small_files: Mapping[str, bytes] = field(default_factory=dict)
    """What belongs to the weights beside them, such as an index."""

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each output file."""
        return {name: layout.size for name, layout in self.layouts.items()}

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all output files."""
        return sum(self.sizes.values())

    @cached_property
    def payload_bytes(self) -> int:
        """Bytes of all weights, each counted once however many ranks hold it."""
        return sum(task.nbytes for task in self.tasks)

    def only(self, file: str) -> Plan:
        """What of the plan makes one of its files: of each weight, no more than the file holds."""
        tasks = tuple(
            task if task.places == (place,) else task.only(place)
            for task in self.tasks
            for place in task.places
            if place.file == file
        )
        return Plan({file: self.layouts[file]}, tasks)

    def places_in(self, file: str) -> int:
        """How many tensors of a file have bytes of their own."""
        return sum(place.file == file for task in self.tasks for place in task.places)

    @property
    def sources(self) -> set[Path]:
        """The files that are read."""
        return {slab.file for task in self.tasks for slab in task.source.slabs}

    @property
    def casts(self) -> bool:
        """Whether any weight changes its dtype."""
        return any(task.is_cast for task in self.tasks)
