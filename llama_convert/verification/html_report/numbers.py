"""Numbers as people read them."""

from __future__ import annotations

import math

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_figure(value: float) -> str:
    """Three digits: ``0.693``, ``1.25 × 10⁻⁷``, ``NaN``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return power(int(exponent)) if mantissa == "1" else f"{mantissa} × {power(int(exponent))}"


def power(exponent: int) -> str:
    """``10⁻⁷``."""
    return f"10{str(exponent).translate(SUPERSCRIPT)}"


def percent(part: float) -> str:
    """``99.99 %``; rounded down, so that 100 % is said only of what is."""
    return f"{math.floor(part * 1e4) / 1e2:g} %"


def seconds(value: float) -> str:
    """``0.04 s``, ``12.3 s``, ``3 min 20 s``."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    return "{} min {} s".format(*divmod(round(value), 60))


def badness(value: float) -> tuple[bool, float]:
    """Orders values from good to bad: NaN and infinity are worse than any number."""
    finite = math.isfinite(value)
    return not finite, value if finite else 0.0
