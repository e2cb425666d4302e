"""Exceptions that llama-convert raises, one class per exit code.

Exit codes: 0 success; 1 check failed; 2 invalid usage; 3 input refused; 4 output or machine failed, run
again; 5 conflict that a person must resolve; 70 internal error.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class LlamaConvertError(Exception):
    """Base class of all exceptions that llama-convert raises on purpose.

    Args:
        code: stable identifier, for example ``TENSOR_SHAPE``. ``docs/error-codes.md`` documents each.
        message: what is wrong, as a sentence without the file name.
        file: the file or folder at fault, or its URL.
        tensor: the tensor at fault, by its name in the file.
        hint: what to do, as an imperative sentence, or ``Run: COMMAND``.
        expected: the expected value.
        found: the value found instead.

    Attributes:
        file: a `Path` if it is local, a `str` if it is a URL.
        expected: as a string.
        found: as a string.

    Example:
        >>> error = InputError("TENSOR_SHAPE", "Wrong shape.", file="a.pth", expected=[2, 4], found=[4, 2])
        >>> print(error)
        a.pth: Wrong shape. Expected [2, 4], got [4, 2].
        >>> error.exit_code
        3
    """

    exit_code: ClassVar[int] = 70
    """Exit code of a command that ends with this exception."""

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
        self.file: Path | str | None = file if file is None or "://" in str(file) else Path(file)
        self.tensor = tensor
        self.hint = hint
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        super().__init__(str(self))

    def __reduce__(self) -> tuple[object, ...]:
        """Support for sending the exception to another process."""
        return _rebuild, (type(self), vars(self))

    @property
    def headline(self) -> str:
        """File, tensor and message."""
        location = [str(part) for part in (self.file, self.tensor) if part is not None]
        return ": ".join([*location, self.message])

    @property
    def file_name(self) -> str | None:
        """The last name of the file's path or URL."""
        return None if self.file is None else str(self.file).rpartition("/")[2]

    @property
    def comparison(self) -> str | None:
        """The expected and the found value, if both are known."""
        if self.expected is None or self.found is None:
            return None
        return f"expected {self.expected}, got {self.found}"

    def __str__(self) -> str:
        comparison = self.comparison
        return f"{self.headline} {comparison[0].upper()}{comparison[1:]}." if comparison else self.headline


def _rebuild(kind: type[LlamaConvertError], attributes: dict[str, object]) -> LlamaConvertError:
    """The exception of a class with these attributes; its ``__init__`` may take other arguments."""
    error = kind.__new__(kind)
    vars(error).update(attributes)
    error.args = (str(error),)
    return error


class RefusedError(LlamaConvertError):
    """A check failed, or ``--strict`` met a warning."""

    exit_code = 1


class UsageError(LlamaConvertError):
    """An argument or option is invalid, or cannot be combined with another."""

    exit_code = 2


class InputError(LlamaConvertError):
    """The input is missing, damaged, inconsistent or unsupported. Running again does not help."""

    exit_code = 3


class OutputError(LlamaConvertError):
    """Reading or writing failed: disk space, permission, I/O, network or memory. Running again can help."""

    exit_code = 4


class ConflictError(LlamaConvertError):
    """The output exists and may not be replaced, or another run is writing it."""

    exit_code = 5
