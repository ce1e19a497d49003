"""Outlines of synthetic cells of three kinds, and their exact masks.

Symbols: `size` is a factor on the natural size (1.0: about 10 to 45 pixels across); an outline is (P, 2) float64,
x and y in pixels about the cell's own centre (0, 0), a closed polygon whose last point joins its first.

Outlines come from NumPy's Generator and are rounded to 1/16 pixel before OpenCV's fixed-point fill, so that a mask is
the same on every platform.
"""

from __future__ import annotations

import cv2
import numpy as np

from detseg.structures.mask_crop import MaskCrop

KINDS: tuple[str, ...] = ("elongated", "irregular", "round")
"""Names of the kinds, in the order of their class indices (0, 1, 2) and category ids (1, 2, 3)."""

MEAN_AREA: dict[str, float] = {"elongated": 245.0, "irregular": 530.0, "round": 175.0}
"""Mean area in pixels at size 1: what decides whether a number of cells fits into an image (a test measures it)."""

_FRACTION_BITS = 4
_ANGLES = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)


def cell_outline(kind: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """Return the outline (P, 2) of one cell of a kind, one of `KINDS`, turned at random. size: a factor > 0."""
    outline = _OUTLINES[kind](rng) * size
    angle = rng.uniform(0.0, 2.0 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    return outline @ np.array([[cosine, sine], [-sine, cosine]])


def fill_outline(outline: np.ndarray) -> MaskCrop:
    """Return the pixels of an outline, one or more, relative to the pixel that holds the centre."""
    lowest = np.floor(outline.min(axis=0)).astype(np.int64) - 1
    highest = np.ceil(outline.max(axis=0)).astype(np.int64) + 2
    canvas = np.zeros((highest[1] - lowest[1], highest[0] - lowest[0]), np.uint8)
    fixed_point = np.rint((outline - lowest) * (1 << _FRACTION_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed_point.reshape(-1, 1, 2)], 1, lineType=cv2.LINE_8, shift=_FRACTION_BITS)
    # A thin bent tip may cross itself: what it cuts off is no part of the cell.
    return MaskCrop(largest_component(canvas.astype(bool)), int(lowest[0]), int(lowest[1])).tight()


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest 4-connected piece of a mask (h, w) bool; the mask itself when it is whole or empty."""
    number, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if number <= 2:
        return mask
    return labels == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))


def _round_outline(rng: np.random.Generator) -> np.ndarray:
    """A slightly bumpy disk, 10 to 18 pixels across."""
    radius = rng.uniform(5.0, 8.8)
    return _polar(radius * (1.0 + _waves(rng, first=2, last=6, amplitude=0.11)), stretch=rng.uniform(1.0, 1.45))


def _irregular_outline(rng: np.random.Generator) -> np.ndarray:
    """A flat body with two to five protrusions that taper, most of them short, 20 to 50 pixels across."""
    body = rng.uniform(8.5, 12.5)
    radius = body * (0.85 + _waves(rng, first=2, last=5, amplitude=0.16))
    number = int(rng.integers(2, 6))
    directions = (np.arange(number) + rng.uniform(-0.45, 0.45, number)) * 2.0 * np.pi / number
    lengths = body * 1.5 * rng.uniform(0.2, 1.0, number) ** 1.6
    widths = rng.uniform(0.13, 0.42, number)
    distance = np.abs((_ANGLES[:, None] - directions[None] + np.pi) % (2.0 * np.pi) - np.pi)
    radius = radius + (lengths * np.exp(-0.5 * (distance / widths) ** 2)).sum(axis=1)
    return _polar(radius, stretch=rng.uniform(1.0, 1.35))


def _elongated_outline(rng: np.random.Generator) -> np.ndarray:
    """A bent spindle with a thicker body and thin ends, 24 to 46 pixels long and 7 to 12 wide."""
    length = rng.uniform(24.0, 46.0)
    width = rng.uniform(7.0, 12.0)
    along = np.linspace(-1.0, 1.0, 25)
    belly = rng.uniform(-0.25, 0.25)
    tip = rng.uniform(0.25, 0.5)
    profile = np.exp(-(np.abs((along - belly) / rng.uniform(0.42, 0.62)) ** 3)) * (1.0 - tip) + tip
    profile *= np.sqrt(np.clip(1.0 - along**6, 0.0, 1.0)) * (1.0 + 0.15 * np.sin(3.5 * along + rng.uniform(0, 6.3)))
    bend = rng.uniform(-0.2, 0.2) * length
    spine = np.stack([along * length / 2.0, bend * (along**2 - 0.4)], axis=1)
    tangent = np.stack([np.full_like(along, length / 2.0), 2.0 * bend * along], axis=1)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    offset = normal * (profile * width / 2.0)[:, None]
    return np.concatenate([spine + offset, (spine - offset)[::-1]])


_OUTLINES = {"elongated": _elongated_outline, "irregular": _irregular_outline, "round": _round_outline}


def _waves(rng: np.random.Generator, *, first: int, last: int, amplitude: float) -> np.ndarray:
    """A random function of the angle, (48,): harmonics `first` to `last`, smaller as they get finer."""
    orders = np.arange(first, last + 1)
    amplitudes = amplitude * rng.uniform(0.3, 1.0, len(orders)) * first / orders
    phases = rng.uniform(0.0, 2.0 * np.pi, len(orders))
    return (amplitudes * np.sin(_ANGLES[:, None] * orders + phases)).sum(axis=1)


def _polar(radius: np.ndarray, *, stretch: float) -> np.ndarray:
    """Radii (48,) at `_ANGLES` to x, y, stretched along x at the same area."""
    root = np.sqrt(stretch)
    return np.stack([radius * np.cos(_ANGLES) * root, radius * np.sin(_ANGLES) / root], axis=1)
