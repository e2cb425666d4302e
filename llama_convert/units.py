"""Sizes in bytes with units: parsing and formatting."""

from __future__ import annotations

import re

from llama_convert.errors import UsageError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)}


def parse_size(text: str) -> int:
    """Bytes of a size, for example ``5GB`` (decimal, as on the Hub), ``512MiB`` or ``1000000``.

    Raises:
        UsageError: ``text`` is not a positive size, or is a number below 100 without a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if match and not match[2] and 0 < size < 100:
        hint = f"Add a unit: for example {text}GB, 500MB or 512MiB."
        raise UsageError("BAD_SIZE", f"{text!r} would be only {size} bytes.", hint=hint)
    if size < 1:
        hint = "Pass a size with a unit, for example 5GB, 500MB or 512MiB."
        raise UsageError("BAD_SIZE", f"{text!r} is not a size.", hint=hint)
    return size


def format_size(count: float) -> str:
    """Format bytes with a decimal unit: ``16060522496`` is ``16.1 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_part(part: int, whole: int) -> str:
    """Format a part of bytes in the unit of the whole: ``1500000000, 3000000000`` is ``1.5 of 3.0 GB``."""
    number, unit = format_size(whole).split()
    scale = 1000 ** ("B", "KB", "MB", "GB", "TB").index(unit)
    return f"{part / scale:.{0 if unit == 'B' else 1}f} of {number} {unit}"
