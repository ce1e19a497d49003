"""Objects of neighbouring tiles that share pixels, measured where both tiles look: in the area they have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.inference.tiling import Tile, TileAnswers, TileGrid
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions, soft_mask_windows


@dataclass
class TileObjects:
    """The N objects that a tile shows, in pixels of the whole image.

    boxes (N, 4) float32 XYXY, scores, classes as in Predictions. crops: masks (crop, x0, y0), tight. places: (N, 4)
    int64 XYXY, the windows of the crops.
    """

    tile: Tile
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    crops: list[tuple[np.ndarray, int, int]]
    places: np.ndarray

    @classmethod
    def of(cls, tile: Tile, answer: Predictions) -> TileObjects:
        """Move an answer in pixels of its tile into the image."""
        boxes = answer.boxes + np.float32([tile.x0, tile.y0, tile.x0, tile.y0])
        local = _boxes_as_masks(answer) if answer.rles is None else rle_codec.decode_crops(answer.rles)
        crops = [(crop, x0 + tile.x0, y0 + tile.y0) for crop, x0, y0 in local]
        places = np.array(
            [(x0, y0, x0 + crop.shape[1], y0 + crop.shape[0]) for crop, x0, y0 in crops], dtype=np.int64
        ).reshape(-1, 4)
        return cls(tile, boxes, answer.scores, answer.classes, crops, places)

    def __len__(self) -> int:
        return len(self.scores)


def _boxes_as_masks(answer: Predictions) -> list[tuple[np.ndarray, int, int]]:
    """Full crops, for answers that are boxes alone."""
    windows = soft_mask_windows(answer.boxes, answer.height, answer.width).tolist()
    return [(np.ones((y1 - y0, x1 - x0), dtype=bool), x0, y0) for x0, y0, x1, y1 in windows]


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
        objects = self._held[index] = TileObjects.of(self._grid[index], self._answers.get(index))
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return objects


@dataclass(frozen=True)
class Pair:
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


def find_pairs(a: TileObjects, b: TileObjects) -> list[Pair]:
    """All pairs of objects of two tiles that share a pixel, or nearly do: that have overlapping windows."""
    common = (
        *(max(a.tile.x0, b.tile.x0), max(a.tile.y0, b.tile.y0)),
        *(min(a.tile.x1, b.tile.x1), min(a.tile.y1, b.tile.y1)),
    )
    near_a, near_b = (_touching(objects.places, common) for objects in (a, b))
    if not len(near_a) or not len(near_b):
        return []
    places_a, places_b = a.places[near_a], b.places[near_b]
    low = np.maximum(places_a[:, None, :2], places_b[None, :, :2])
    high = np.minimum(places_a[:, None, 2:], places_b[None, :, 2:])
    rows, columns = np.nonzero((high > low).all(axis=2))
    areas_a = {index: _areas(a.crops[index], common) for index in near_a[np.unique(rows)].tolist()}
    areas_b = {index: _areas(b.crops[index], common) for index in near_b[np.unique(columns)].tolist()}
    pairs = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        i, j = int(near_a[row]), int(near_b[column])
        window = (*low[row, column].tolist(), *high[row, column].tolist())
        shared = int(np.count_nonzero(_cut(a.crops[i], window) & _cut(b.crops[j], window)))
        if shared:
            pairs.append(Pair(i, j, shared, areas_a[i][1], areas_b[j][1], areas_a[i][0], areas_b[j][0]))
    return pairs


def _touching(places: np.ndarray, window: Sequence[int]) -> np.ndarray:
    x0, y0, x1, y1 = window
    inside = (places[:, 0] < x1) & (places[:, 2] > x0) & (places[:, 1] < y1) & (places[:, 3] > y0)
    return np.flatnonzero(inside)


def _cut(crop: tuple[np.ndarray, int, int], window: Sequence[int]) -> np.ndarray:
    """The pixels of a crop in a window XYXY; smaller than the window where the crop is."""
    mask, x, y = crop
    x0, y0, x1, y1 = window
    return mask[max(y0 - y, 0) : max(y1 - y, 0), max(x0 - x, 0) : max(x1 - x, 0)]


def _areas(crop: tuple[np.ndarray, int, int], common: Sequence[int]) -> tuple[int, int]:
    """Pixels in all, and of them in the common area."""
    return int(np.count_nonzero(crop[0])), int(np.count_nonzero(_cut(crop, common)))
