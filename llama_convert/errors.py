"""Every error a user can meet, with the exit code it ends in.

Exit codes: 0 done; 1 the answer is no; 2 usage; 3 the input is refused; 4 the output or the machine failed,
run again; 5 a conflict to be decided by a person; 70 a bug of ours.  `code` is a stable word for programs
(``--json``); the message is one line for people: where, what was found, what was expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class LlamaConvertError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        code: stable word such as ``TENSOR_SHAPE``; see ``docs/error-codes.md``.
        message: what was found and what was expected, without the file name.
        file: the file (or folder) at fault; its name leads the printed message.
        tensor: the tensor at fault, in the name the file gives it.
        hint: one sentence on what to do.
        expected: the value that was expected, where there is one.
        found: the value that was found instead.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        code: str,
        message: str,
        *,
        file: Path | str | None = None,
        tensor: str | None = None,
        hint: str | None = None,
        expected: object = None,
        found: object = None,
    ) -> None:
        self.code = code
        self.message = message
        self.file = None if file is None else Path(file)
        self.tensor = tensor
        self.hint = hint
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        super().__init__(str(self))

    def __reduce__(self) -> tuple[object, ...]:
        """As it is sent from one process to another."""
        return _again, (type(self), vars(self))

    def __str__(self) -> str:
        place = [str(self.file)] if self.file is not None else []
        place += [self.tensor] if self.tensor is not None else []
        return ": ".join([*place, self.message])


def _again(kind: type[LlamaConvertError], attributes: dict[str, object]) -> LlamaConvertError:
    error = kind.__new__(kind)
    vars(error).update(attributes)
    error.args = (str(error),)
    return error


class RefusedError(LlamaConvertError):
    """`--strict` met a warning, or a verification found a difference."""

    exit_code = 1


class UsageError(LlamaConvertError):
    """The command cannot be meant as it was typed."""

    exit_code = 2


class InputError(LlamaConvertError):
    """The input is missing, damaged, inconsistent or unsupported; running again will not help."""

    exit_code = 3


class OutputError(LlamaConvertError):
    """The output or the machine failed: space, permission, I/O, memory.  Mend it and run again."""

    exit_code = 4


class ConflictError(LlamaConvertError):
    """The output exists and is not ours to replace."""

    exit_code = 5
