"""Format the numbers of a report."""

from __future__ import annotations

from typing import Any

import numpy as np


def three(value: float | None) -> str:
    """Format a score with three digits; "-" for None."""
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """Format a difference with its sign and three digits."""
    return "-" if np.isnan(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def interval_text(ends: np.ndarray, *, with_sign: bool = False) -> str:
    """Return "0.490–0.560", or "+0.010 to +0.020"; "" if undefined."""
    if np.isnan(ends).any():
        return ""
    return " to ".join(map(signed, ends)) if with_sign else "–".join(map(three, ends))


def short(value: Any) -> str:
    """Return a value as text, with its middle left out if it is long."""
    text = str(value)
    return text if len(text) <= 120 else f"{text[:80]} ... {text[-30:]}"


def duration(seconds: float) -> str:
    """Format a duration: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
