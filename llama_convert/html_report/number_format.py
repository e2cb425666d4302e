"""Numbers as text."""

from __future__ import annotations

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_number(value: float) -> str:
    """Three significant digits: ``0.693``, ``1.25 × 10⁻⁷``, ``NaN``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = format_power(int(exponent))
    return power if mantissa == "1" else f"{mantissa} × {power}"


def format_power(exponent: int) -> str:
    """A power of ten: ``10⁻⁷``."""
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def format_percent(part: float) -> str:
    """``99.99%``; rounded down, so that only the whole is 100%."""
    return f"{math.floor(part * 1e4) / 1e2:g}%"


def format_seconds(value: float) -> str:
    """``0.04 s``, ``12.3 s``, ``3 min 20 s``."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    return "{} min {} s".format(*divmod(round(value), 60))


def count(number: int, noun: str) -> str:
    """``1 warning``, ``1,024 tensors``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def enumeration(items: list[str]) -> str:
    """``a, b and c``; empty without items."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def error_order(value: float) -> tuple[bool, float]:
    """Sort key from small to large error: NaN and infinity come after every number."""
    finite = math.isfinite(value)
    return not finite, value if finite else 0.0
