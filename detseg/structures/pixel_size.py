"""The size of a pixel in micrometres: (y, x), since microscopes' pixels need not be square.

In files (COCO images, Predictions files) it is the field `pixel_size`: one number, or [y, x].
"""

from __future__ import annotations

import math
from typing import Any

from detseg.errors import DataError

PixelSize = tuple[float, float]

FIELD = "pixel_size"
# Two edges that differ by less are those of a square: what is left of the way through another unit.
_SQUARE_WITHIN = 1e-6


def parse_pixel_size(value: Any, source: str) -> PixelSize:
    """Return (y, x) in micrometres of a number, or of a list [y, x].

    Raises:
        DataError: anything else, or a size that is not above 0. source: what the message calls the place.
    """
    edges = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(edges) != 2 or not all(_is_length(edge) for edge in edges):
        raise DataError(
            f"{source}: the pixel size is {str(value)[:80]!r}; expected micrometres a pixel above 0, one number or "
            "[y, x]"
        )
    return float(edges[0]), float(edges[1])


def parse_pixel_size_text(text: str, source: str) -> PixelSize:
    """Return (y, x) in micrometres of a text as users and tables give it: "0.5", or "0.5 0.4" (y, x; comma or blank).

    Raises:
        DataError: as `parse_pixel_size`.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    return parse_pixel_size(numbers[0] if len(numbers) == 1 else numbers or text, source)


def pixel_size_field(size: PixelSize) -> float | list[float]:
    """Return the size as files store it: one number where the pixel is square."""
    y, x = size
    return x if math.isclose(y, x, rel_tol=_SQUARE_WITHIN) else [y, x]


def _is_length(edge: Any) -> bool:
    return isinstance(edge, (int, float)) and not isinstance(edge, bool) and math.isfinite(edge) and edge > 0
