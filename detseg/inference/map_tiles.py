"""Maps of a large image, blended from those of overlapping tiles, one window at a time in memory.

In the overlap of two tiles one fades into the other, except near the cut side of a tile, where the network lacks the
context beyond it: there only the other tile counts. Equal values stay bit-identical. Hence, if tiles share twice the
model's reach, the maps are those of the whole image.

Objects are made in windows, far larger than tiles; most images are a single one. The maps in the overlap of two windows
are the same, so that `stitching` finds the same objects in both.

Symbols: M maps; tiles and windows in pixels of the image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from detseg.inference.tiling import Tile, TileGrid, make_grid

# Values in the maps of a window: three maps of 4096 x 4096 pixels take 200 MB, and decoding them several times that.
WINDOW_VALUES = 2**26
LARGEST_WINDOW = 4096
# Pixels that windows share: objects near a side of a window may be cut there.
WINDOW_OVERLAP = 512
# Values in the maps of tiles that are kept for later windows; others are computed again.
KEPT_VALUES = 2**28

# Computes the maps (M, h, w) float32 of tiles, in their order.
TileMaps = Callable[[Sequence[Tile]], Iterable[np.ndarray]]


def window_grid(height: int, width: int, count: int) -> TileGrid:
    """Cut an image into windows for decoding; count: number of maps."""
    edge = min(math.isqrt(WINDOW_VALUES // count), LARGEST_WINDOW)
    if height * width <= edge**2:
        edge = max(height, width, 2)
    return make_grid(height, width, tile=edge, overlap=min(WINDOW_OVERLAP, edge // 4))


class BlendedMaps:
    """The maps of windows, each requested once; tiles that several windows need are computed once.

    Args:
        grid: of tiles.
        windows: all windows that will be requested.
        maps_of: see TileMaps.
        reach: distance in image pixels (y, x) within which the input affects the maps at a pixel; None if not known.
    """

    def __init__(
        self, grid: TileGrid, windows: Iterable[Tile], maps_of: TileMaps, reach: tuple[int, int] | None
    ) -> None:
        self.grid = grid
        self.maps_of = maps_of
        self.reach = reach or (None, None)
        self._users = Counter(tile.index for window in windows for row in self._rows(window) for tile in row)
        self._kept: dict[int, np.ndarray] = {}

    def of(self, window: Tile) -> np.ndarray:
        """Return the maps (M, h, w) float32 of a window."""
        rows = self._rows(window)
        missing = [tile for row in rows for tile in row if tile.index not in self._kept]
        computed = iter(self.maps_of(missing))
        blended, below = None, 0
        for row in rows:
            strip, right = None, 0
            for tile in row:
                maps = self._take(tile, computed)
                if strip is None:
                    strip = np.empty((len(maps), tile.y1 - tile.y0, window.x1 - window.x0), dtype=np.float32)
                _lay(strip, maps, window.x0, tile.x0, right, self.reach[1])
                right = tile.x1
            if blended is None:
                blended = np.empty((len(strip), *window.size), dtype=np.float32)
            _lay(blended.swapaxes(1, 2), strip.swapaxes(1, 2), window.y0, row[0].y0, below, self.reach[0])
            below = row[0].y1
        return blended

    def _rows(self, window: Tile) -> list[list[Tile]]:
        """Return the tiles that overlap a window, row by row."""
        columns = [c for c, (x0, x1) in enumerate(self.grid.columns) if x0 < window.x1 and x1 > window.x0]
        rows = [r for r, (y0, y1) in enumerate(self.grid.rows) if y0 < window.y1 and y1 > window.y0]
        return [[self.grid[row * len(self.grid.columns) + column] for column in columns] for row in rows]

    def _take(self, tile: Tile, computed: Iterator[np.ndarray]) -> np.ndarray:
        maps = self._kept.pop(tile.index, None)
        if maps is None:
            maps = next(computed)
        self._users[tile.index] -= 1
        if self._users[tile.index] > 0 and sum(one.size for one in self._kept.values()) + maps.size <= KEPT_VALUES:
            self._kept[tile.index] = maps
        return maps


def _lay(canvas: np.ndarray, piece: np.ndarray, origin: int, start: int, end: int, reach: int | None) -> None:
    """Blend a piece (M, r, n) that begins at `start` into a canvas (M, r, w) that begins at `origin`, where they
    overlap.

    end: end of the canvas's existing content. From `start` to there, the content fades into the piece.
    """
    low, high = max(start, origin), min(start + piece.shape[2], origin + canvas.shape[2])
    piece, there = piece[:, :, low - start : high - start], canvas[:, :, low - origin : high - origin]
    common = min(max(end - low, 0), high - low)
    there[:, :, common:] = piece[:, :, common:]
    if common:
        weight = _fade(end - start, reach)[low - start :][:common]
        both = there[:, :, :common]
        # In this form equal values stay equal, and a weight of 1 takes the piece unchanged.
        mixed = both + weight * (piece[:, :, :common] - both)
        both[:] = np.where(weight == 1, piece[:, :, :common], mixed)


def _fade(shared: int, reach: int | None) -> np.ndarray:
    """Return the weight (shared,) float32 of the second of two tiles in their overlap, from 0 to 1."""
    margin = reach if reach is not None and 2 * reach <= shared else shared // 4
    place = np.arange(shared) + 0.5
    if shared - 2 * margin < 1:
        return (place >= shared / 2).astype(np.float32)
    rising = np.clip((place - margin) / (shared - 2 * margin), 0, 1)
    return (rising * rising * (3 - 2 * rising)).astype(np.float32)
