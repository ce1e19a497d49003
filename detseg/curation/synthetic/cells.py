"""Outlines of synthetic cells of three kinds, and their exact masks.

Symbols: `size` is a factor on the natural size (1.0: about 10 to 45 pixels across); an outline is (P, 2) float64,
x and y in pixels relative to the cell's centre (0, 0), a closed polygon whose last point connects to its first.

Outlines come from NumPy's Generator and are rounded to 1/16 pixel before OpenCV's fixed-point fill, so that a mask is
the same on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detseg.structures.mask_crop import MaskCrop

KINDS: tuple[str, ...] = ("elongated", "irregular", "round")
"""Names of the kinds, in the order of their class indices (0, 1, 2) and category ids (1, 2, 3)."""

MEAN_AREA: dict[str, float] = {"elongated": 245.0, "irregular": 530.0, "round": 175.0}
"""Mean area in pixels at size 1, to decide whether a number of cells fits into an image (a test measures it)."""

_FRACTION_BITS = 4
_ANGLES = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)


def cell_outline(kind: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """Return the outline (P, 2) of one randomly rotated cell of a kind, one of `KINDS`. size: a factor > 0."""
    outline = _OUTLINES[kind](rng) * size
    angle = rng.uniform(0.0, 2.0 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    return outline @ np.array([[cosine, sine], [-sine, cosine]])


def fill_outline(outline: np.ndarray) -> MaskCrop:
    """Return the pixels inside an outline, at least one, relative to the pixel that contains the centre."""
    lowest = np.floor(outline.min(axis=0)).astype(np.int64) - 1
    highest = np.ceil(outline.max(axis=0)).astype(np.int64) + 2
    canvas = np.zeros((highest[1] - lowest[1], highest[0] - lowest[0]), np.uint8)
    fixed_point = np.rint((outline - lowest) * (1 << _FRACTION_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed_point.reshape(-1, 1, 2)], 1, lineType=cv2.LINE_8, shift=_FRACTION_BITS)
    # A thin bent tip may cross itself: what it cuts off is not part of the cell.
    return MaskCrop(largest_component(canvas.astype(bool)), int(lowest[0]), int(lowest[1])).tight()


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest 4-connected component of a mask (h, w) bool; the mask itself if it is connected or empty."""
    number, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if number <= 2:
        return mask
    return labels == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))


def _round_outline(rng: np.random.Generator) -> np.ndarray:
    """A slightly bumpy disk, 10 to 18 pixels across."""
    radius = rng.uniform(5.0, 8.8)
    return _polar(radius * (1.0 + _waves(rng, first=2, last=6, amplitude=0.11)), stretch=rng.uniform(1.0, 1.45))


def _irregular_outline(rng: np.random.Generator) -> np.ndarray:
    """A flat body with two to five protrusions that taper, mostly short, 20 to 50 pixels across."""
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
    """A random function of the angle, (48,): harmonics `first` to `last`, with decreasing amplitudes."""
    orders = np.arange(first, last + 1)
    amplitudes = amplitude * rng.uniform(0.3, 1.0, len(orders)) * first / orders
    phases = rng.uniform(0.0, 2.0 * np.pi, len(orders))
    return (amplitudes * np.sin(_ANGLES[:, None] * orders + phases)).sum(axis=1)


def _polar(radius: np.ndarray, *, stretch: float) -> np.ndarray:
    """Radii (48,) at `_ANGLES` to x, y, stretched along x at the same area."""
    root = np.sqrt(stretch)
    return np.stack([radius * np.cos(_ANGLES) * root, radius * np.sin(_ANGLES) / root], axis=1)


# Placement of synthetic cells: apart, touching, or overlapping, with their exact masks.
#
# Two cells touch if a pixel of one is 8-connected to a pixel of the other, or belongs to both. Cells are placed one
# after another and an older cell never changes, so all checks use the new cell's own crop only, and their cost does not
# grow with the image.
#
# - A cell apart from others keeps a gap of at least two pixels to its neighbours.
# - A touching cell is moved along a ray towards a neighbour until it hits; pixels under the neighbour are removed from
#   its mask. Its mask is what is visible, and the two share a border but no pixel.
# - An overlapping cell is moved a few pixels further and keeps its whole mask; the pixels shared with the neighbour
#   belong to both, as for two flat cells on top of each other, and the two go to different layers.

_TRIES = 12
_GAP = 2
_SMALLEST_AREA = 12
_LEAST_VISIBLE = 0.55
_SQUARE = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class PlacedCell:
    kind: str
    crop: MaskCrop


class Placement:
    """The cells of one image and the pixels that they occupy.

    Attributes:
        cells: placed cells, in order; cell i has id i + 1.
        layers: list of (H, W) int32 label maps; a cell is entirely in one of them.
        touches: whether cell i touches another one, list of bool.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.height, self.width = height, width
        self.cells: list[PlacedCell] = []
        self.layers: list[np.ndarray] = [np.zeros((height, width), np.int32)]
        self.touches: list[bool] = []
        self._rng = rng
        self._occupied = np.zeros((height, width), np.int32)

    def add(self, kind: str, size: float, *, manner: str) -> bool:
        """Draw a cell of a kind and place it; return False if the image has no space for it.

        Args:
            kind: one of `KINDS`.
            size: factor on the natural size.
            manner: "apart", "touching" or "overlapping"; the first two fall back to each other if necessary.
        """
        shape = fill_outline(cell_outline(kind, size, self._rng))
        if manner != "apart" and self.cells:
            deeper = int(self._rng.integers(2, 5) if manner == "overlapping" else self._rng.integers(0, 3))
            place, is_free = self._next_to_another(shape.mask, deeper=deeper), False
        else:
            place, is_free = self._apart(shape)
        if place is None:
            return False
        keep_shared = manner == "overlapping" and not is_free
        return self._place(kind, MaskCrop(shape.mask, *place), keep_shared=keep_shared)

    def _apart(self, shape: MaskCrop) -> tuple[tuple[int, int], bool]:
        """Return a place with a gap all round, or the one with the fewest occupied pixels; and whether it is free.

        shape: relative to the cell's centre.
        """
        grown = cv2.dilate(np.pad(shape.mask, _GAP).astype(np.uint8), _SQUARE, iterations=_GAP).astype(bool)
        best, fewest = (0, 0), None
        for _ in range(_TRIES):
            x = int(self._rng.integers(0, self.width)) + shape.x0
            y = int(self._rng.integers(0, self.height)) + shape.y0
            shared = self._count_shared(MaskCrop(grown, x - _GAP, y - _GAP))
            if fewest is None or shared < fewest:
                best, fewest = (x, y), shared
            if shared == 0:
                break
        return best, fewest == 0

    def _next_to_another(self, mask: np.ndarray, *, deeper: int) -> tuple[int, int] | None:
        """Return where a mask, moved towards a random cell, just hits something, plus `deeper` pixels; or None."""
        neighbour = self.cells[int(self._rng.integers(0, len(self.cells)))].crop
        centre_x = neighbour.x0 + neighbour.mask.shape[1] / 2.0
        centre_y = neighbour.y0 + neighbour.mask.shape[0] / 2.0
        angle = self._rng.uniform(0.0, 2.0 * np.pi)
        step_x, step_y = np.cos(angle), np.sin(angle)
        start_x, start_y = centre_x - mask.shape[1] / 2.0, centre_y - mask.shape[0] / 2.0

        def place(distance: int) -> tuple[int, int]:
            return round(start_x + step_x * distance), round(start_y + step_y * distance)

        # Shared pixels at `low`, (usually) none at `high`: bisect until they are neighbours.
        low, high = 0, int(np.hypot(*mask.shape) + np.hypot(*neighbour.mask.shape)) // 2 + 3
        while high - low > 1:
            middle = (low + high) // 2
            if self._count_shared(MaskCrop(mask, *place(middle))):
                low = middle
            else:
                high = middle
        x, y = place(max(0, low - deeper))
        is_inside = 0 <= x + mask.shape[1] // 2 < self.width and 0 <= y + mask.shape[0] // 2 < self.height
        return (x, y) if is_inside else None

    def _inside(self, crop: MaskCrop) -> MaskCrop:
        height, width = crop.mask.shape
        # Shortcut for most of the hundreds of places that are tried per cell.
        if 0 <= crop.x0 <= self.width - width and 0 <= crop.y0 <= self.height - height:
            return crop
        return crop.within((0, 0, self.width, self.height))

    def _count_shared(self, crop: MaskCrop) -> int:
        """Return how many pixels of a mask are occupied by other cells."""
        part = self._inside(crop)
        return int(np.count_nonzero(self._occupied[part.window][part.mask]))

    def _place(self, kind: str, crop: MaskCrop, *, keep_shared: bool) -> bool:
        """Clip a mask to the image (and to free pixels), and add it if enough of it is left."""
        part = self._inside(crop)
        whole = part.area
        if not whole:
            return False
        occupied = self._occupied[part.window] > 0
        if keep_shared:
            keep_shared = np.count_nonzero(part.mask & occupied) < 0.35 * whole
        visible = largest_component(part.mask if keep_shared else part.mask & ~occupied)
        area = np.count_nonzero(visible)
        if area < max(_SMALLEST_AREA, _LEAST_VISIBLE * whole) or whole < 0.3 * crop.area:
            return False
        self._take(PlacedCell(kind, part._replace(mask=visible).tight()))
        return True

    def _take(self, cell: PlacedCell) -> None:
        """Assign the next id to a cell, mark the cells that it touches, and write it into the first free layer."""
        grown = cv2.dilate(np.pad(cell.crop.mask, 1).astype(np.uint8), _SQUARE).astype(bool)
        around = self._inside(MaskCrop(grown, cell.crop.x0 - 1, cell.crop.y0 - 1))
        neighbours = np.unique(self._occupied[around.window][around.mask])
        neighbours = neighbours[neighbours > 0]
        for neighbour in neighbours:
            self.touches[neighbour - 1] = True
        self.touches.append(len(neighbours) > 0)
        self.cells.append(cell)
        mask = cell.crop.mask
        layer = next((layer for layer in self.layers if not layer[cell.crop.window][mask].any()), None)
        if layer is None:
            layer = np.zeros((self.height, self.width), np.int32)
            self.layers.append(layer)
        layer[cell.crop.window][mask] = len(self.cells)
        occupied = self._occupied[cell.crop.window]
        occupied[mask & (occupied == 0)] = len(self.cells)
