"""Where synthetic cells lie: apart, touching, or overlapping, with their exact masks.

Two cells touch when a pixel of one is among the eight neighbours of a pixel of the other, or belongs to both. Cells
are laid one after another and an older cell never changes, so all checks look at the newcomer's own crop only, and
their cost does not grow with the image.

- A cell that lies apart keeps a gap of at least two pixels to its neighbours.
- A touching cell is slid along a ray towards a neighbour until it hits; what would lie under the neighbour is cut off
  its mask. Its mask is what is visible, and the two share a border but no pixel.
- An overlapping cell is slid a few pixels further and keeps its whole mask; the pixels that it shares with
  the neighbour belong to both, as where two flat cells lie on each other, and the two go to different layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detseg.data.synthetic.shapes import cell_outline, fill_outline, largest_component, trim

_TRIES = 12
_GAP = 2
_SMALLEST_AREA = 12
_LEAST_VISIBLE = 0.55
_SQUARE = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class PlacedCell:
    """One cell: `crop` (h, w) bool, its first column `x` and row `y` in the image, and its kind."""

    kind: str
    crop: np.ndarray
    x: int
    y: int


class Placement:
    """The cells of one image and which pixels they take.

    Attributes:
        cells: what has been placed, in order; cell i has id i + 1.
        layers: list of (H, W) int32 label maps; a cell lies wholly in one of them.
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
        """Draw a cell of a kind and place it; False when the image has no room for it.

        Args:
            kind: one of `KINDS`.
            size: factor on the natural size.
            manner: "apart", "touching" or "overlapping"; the first two fall back to each other where it has to be.
        """
        crop, x_offset, y_offset = fill_outline(cell_outline(kind, size, self._rng))
        if manner != "apart" and self.cells:
            deeper = int(self._rng.integers(2, 5) if manner == "overlapping" else self._rng.integers(0, 3))
            found = self._next_to_another(crop, deeper=deeper)
        else:
            found = self._apart(crop, x_offset, y_offset)
        if found is None:
            return False
        x, y, is_free = found
        return self._lay(kind, crop, x, y, keep_shared=manner == "overlapping" and not is_free)

    def _apart(self, crop: np.ndarray, x_offset: int, y_offset: int) -> tuple[int, int, bool]:
        """A place with a gap all round, or the one of several that shares the fewest pixels with others."""
        grown = cv2.dilate(np.pad(crop, _GAP).astype(np.uint8), _SQUARE, iterations=_GAP).astype(bool)
        best, fewest = (0, 0), None
        for _ in range(_TRIES):
            x = int(self._rng.integers(0, self.width)) + x_offset
            y = int(self._rng.integers(0, self.height)) + y_offset
            shared = self._count_shared(grown, x - _GAP, y - _GAP)
            if fewest is None or shared < fewest:
                best, fewest = (x, y), shared
            if shared == 0:
                break
        return (*best, fewest == 0)

    def _next_to_another(self, crop: np.ndarray, *, deeper: int) -> tuple[int, int, bool] | None:
        """The place where a crop, slid towards a random cell, just hits something; then `deeper` pixels further."""
        neighbour = self.cells[int(self._rng.integers(0, len(self.cells)))]
        centre_x = neighbour.x + neighbour.crop.shape[1] / 2.0
        centre_y = neighbour.y + neighbour.crop.shape[0] / 2.0
        angle = self._rng.uniform(0.0, 2.0 * np.pi)
        step_x, step_y = np.cos(angle), np.sin(angle)
        start_x, start_y = centre_x - crop.shape[1] / 2.0, centre_y - crop.shape[0] / 2.0
        reach = int(np.hypot(*crop.shape) + np.hypot(*neighbour.crop.shape)) // 2 + 3

        def place(distance: int) -> tuple[int, int]:
            return round(start_x + step_x * distance), round(start_y + step_y * distance)

        low, high = 0, reach  # shared pixels at `low`, none (usually) at `high`: halve until they are neighbours
        while high - low > 1:
            middle = (low + high) // 2
            if self._count_shared(crop, *place(middle)):
                low = middle
            else:
                high = middle
        x, y = place(max(0, low - deeper))
        inside_x, inside_y = x + crop.shape[1] // 2, y + crop.shape[0] // 2
        if not (0 <= inside_x < self.width and 0 <= inside_y < self.height):
            return None
        return x, y, False

    def _count_shared(self, crop: np.ndarray, x: int, y: int) -> int:
        """How many pixels of a crop at (x, y) other cells have."""
        window, part = self._window(crop, x, y)
        return int(np.count_nonzero(self._occupied[window][part])) if part.size else 0

    def _window(self, crop: np.ndarray, x: int, y: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """The image's rows and columns that a crop at (x, y) falls on, and the part of the crop that is inside."""
        height, width = crop.shape
        top, left = min(max(y, 0), self.height), min(max(x, 0), self.width)
        bottom, right = max(min(y + height, self.height), top), max(min(x + width, self.width), left)
        part = crop[top - y : bottom - y, left - x : right - x] if bottom > top and right > left else crop[:0, :0]
        return (slice(top, bottom), slice(left, right)), part

    def _lay(self, kind: str, crop: np.ndarray, x: int, y: int, *, keep_shared: bool) -> bool:
        """Cut a crop to the image (and to what is free), and take it into the layers if enough of it is left."""
        window, part = self._window(crop, x, y)
        if not part.size:
            return False
        whole_area = int(np.count_nonzero(part))
        occupied = self._occupied[window]
        if keep_shared:
            keep_shared = np.count_nonzero(part & (occupied > 0)) < 0.35 * whole_area
        visible = largest_component(part if keep_shared else part & (occupied == 0))
        area = int(np.count_nonzero(visible))
        if area < _SMALLEST_AREA or area < _LEAST_VISIBLE * whole_area or whole_area < 0.3 * np.count_nonzero(crop):
            return False
        visible, first_column, first_row = trim(visible)
        self._take(PlacedCell(kind, visible, window[1].start + first_column, window[0].start + first_row))
        return True

    def _take(self, cell: PlacedCell) -> None:
        """Give a cell the next id, mark the cells that it touches, and write it into the first layer with room."""
        identity = len(self.cells) + 1
        grown = cv2.dilate(np.pad(cell.crop, 1).astype(np.uint8), _SQUARE).astype(bool)
        window, part = self._window(grown, cell.x - 1, cell.y - 1)
        neighbours = np.unique(self._occupied[window][part])
        neighbours = neighbours[neighbours > 0]
        for neighbour in neighbours:
            self.touches[neighbour - 1] = True
        self.touches.append(len(neighbours) > 0)
        self.cells.append(cell)
        window, part = self._window(cell.crop, cell.x, cell.y)
        for layer in self.layers:
            if not layer[window][part].any():
                break
        else:
            layer = np.zeros((self.height, self.width), np.int32)
            self.layers.append(layer)
        layer[window][part] = identity
        occupied = self._occupied[window]
        occupied[part & (occupied == 0)] = identity
