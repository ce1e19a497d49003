"""Objects of neighbouring tiles that share pixels, measured in the area that both tiles show."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from detseg.inference.tiling import Tile, TileAnswers, TileGrid
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import runs_of_crops
from detseg.structures.overlaps import shared_pixels
from detseg.structures.predictions import Predictions, soft_mask_windows
from detseg.structures.runs import Runs


@dataclass
class TileObjects:
    """The N objects that a tile shows, in pixels of the whole image.

    boxes (N, 4) float32 XYXY, scores, classes as in Predictions. masks: as runs; objects without masks get their boxes.
    """

    tile: Tile
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: Runs

    @classmethod
    def of(cls, grid: TileGrid, tile: Tile, answer: Predictions) -> TileObjects:
        """Move an answer in pixels of its tile into the image."""
        boxes = answer.boxes + np.float32([tile.x0, tile.y0, tile.x0, tile.y0])
        if answer.rles is None:
            windows = soft_mask_windows(answer.boxes, answer.height, answer.width).tolist()
            full = [(np.ones((y1 - y0, x1 - x0), dtype=bool), x0, y0) for x0, y0, x1, y1 in windows]
            masks = runs_of_crops(full, answer.height, answer.width)
        else:
            masks = rle_codec.read_runs(answer.rles)
        masks = masks.moved(tile.x0, tile.y0, grid.height, grid.width)
        return cls(tile, boxes, answer.scores, answer.classes, masks)

    def __len__(self) -> int:
        return len(self.scores)


class ObjectsOfTiles:
    """The objects of tiles, the last that were asked for in memory: two rows of tiles are enough for all neighbours."""

    def __init__(self, grid: TileGrid, answers: TileAnswers) -> None:
        self._grid = grid
        self._answers = answers
        self._held: OrderedDict[int, TileObjects] = OrderedDict()
        self._most = len(grid.columns) + 3

    def __getitem__(self, index: int) -> TileObjects:
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        objects = self._held[index] = TileObjects.of(self._grid, self._grid[index], self._answers.get(index))
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return objects


@dataclass(frozen=True)
class TilePair:
    """Object `first` and object `second` of two tiles, which share pixels.

    shared: pixels in both masks. first_common, second_common: pixels of each in the area that both tiles show.
    first_area, second_area: all their pixels.
    """

    first: int
    second: int
    shared: int
    first_common: int
    second_common: int
    first_area: int
    second_area: int

    @property
    def agreement(self) -> float:
        """Intersection over union in the area that both tiles show."""
        return self.shared / (self.first_common + self.second_common - self.shared)

    @property
    def cover_in_common(self) -> float:
        """How much of the smaller is in the larger, of what lies in the area that both tiles show."""
        return self.shared / max(min(self.first_common, self.second_common), 1)

    @property
    def cover(self) -> float:
        """How much of the smaller is in the larger."""
        return self.shared / max(min(self.first_area, self.second_area), 1)


def find_pairs(a: TileObjects, b: TileObjects) -> list[TilePair]:
    """All pairs of objects of two tiles that share a pixel."""
    common = (
        *(max(a.tile.x0, b.tile.x0), max(a.tile.y0, b.tile.y0)),
        *(min(a.tile.x1, b.tile.x1), min(a.tile.y1, b.tile.y1)),
    )
    found = shared_pixels(a.masks.within(common), b.masks.within(common))
    columns = (
        *(found.first, found.second, found.pixels),
        *(found.first_areas[found.first], found.second_areas[found.second]),
        *(a.masks.areas()[found.first], b.masks.areas()[found.second]),
    )
    return [TilePair(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
