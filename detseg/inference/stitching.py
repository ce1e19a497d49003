"""Stitching: combine the predictions of tiles so that no object is cut, duplicated or lost at a seam.

Neighbouring tiles overlap. What each of them found in the overlap is compared pixel by pixel:

1. Objects of two tiles agree if their masks, within the overlap, have an intersection over union of at least `AGREE`.
Each object agrees with at most one object of another tile; the best pairs come first.
2. Objects that agree are one object. If it is whole in a tile, the prediction is that of the tile in which it is
deepest. If every tile cuts it (it is larger than the overlap), it is the union of its pieces. Cut pieces also agree if
one is contained in the other by `INSIDE`: a bent object can be one piece here and two there.
3. If an object is deeper in another tile whose findings do not agree with it, that tile saw it better and decides. If
it found nothing in this place, or another object that stays, the object is dropped; otherwise the deepest stays.
4. A cut piece inside a whole object of another tile is dropped; so is the less deep one of two objects of one class
that share more than half of the smaller one.

Consequently, if the model finds an object equally in every tile that shows it, the result is the same as without tiles,
however large the object is. Objects smaller than the overlap are whole in at least one tile.

Symbols: N objects of all tiles, numbered in the order of the tiles; P pairs of objects of two tiles that share pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from detseg.inference.tiling import Tile, TileGrid
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import clip_boxes
from detseg.structures.mask_crop import MaskCrop, runs_of_crops, union_of
from detseg.structures.overlaps import shared_pixels
from detseg.structures.predictions import Predictions, move_window, soft_mask_window, soft_mask_windows
from detseg.structures.runs import Runs

AGREE = 0.5
# Smallest shared part of the smaller of two objects for them to count as being in the same place.
SAME_PLACE = 0.5
# Smallest part of a cut piece, within the overlap, for it to count as contained in another cut piece.
INSIDE = 0.9


class TileStore(Protocol):
    """The predictions of each tile by its index, in pixels of the tile: a dictionary, or a `TileFolder`."""

    def __contains__(self, index: int) -> bool: ...

    def __getitem__(self, index: int) -> Predictions: ...

    def __setitem__(self, index: int, predictions: Predictions) -> None: ...


def stitch(grid: TileGrid, store: TileStore, *, rim: float = 1.0) -> Predictions:
    """Combine the predictions of all tiles, by descending score.

    rim: pixels; an object whose mask or box comes this close to a side of its tile counts as cut. A model draws the
    border of a cut object up to about one of its own pixels away from the side.
    """
    # Neighbours are at most one row of tiles apart.
    load = lru_cache(maxsize=len(grid.columns) + 3)(lambda index: TileObjects.load(grid, index, store))
    seams = Seams(grid, load, rim)
    return _assemble(grid, store, seams, seams.groups())


@dataclass(frozen=True)
class TileObjects:
    """The objects found in a tile, in pixels of the whole image; masks as runs, for objects without masks their boxes.

    boxes (n, 4) float32 XYXY, scores, classes, quality as in Predictions.
    """

    tile: Tile
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    quality: np.ndarray
    masks: Runs

    @classmethod
    def load(cls, grid: TileGrid, index: int, store: TileStore) -> TileObjects:
        tile, found = grid[index], store[index]
        if found.rles is None:
            windows = soft_mask_windows(found.boxes, *tile.size).tolist()
            full = [(np.ones((y1 - y0, x1 - x0), dtype=bool), x0, y0) for x0, y0, x1, y1 in windows]
            masks = runs_of_crops(full, *tile.size)
        else:
            masks = rle_codec.read_runs(found.rles)
        boxes = found.boxes + np.float32([tile.x0, tile.y0, tile.x0, tile.y0])
        masks = masks.moved(tile.x0, tile.y0, grid.height, grid.width)
        return cls(tile, boxes, found.scores, found.classes, found.quality, masks)


class Seams:
    """Properties of the objects of all tiles except masks, and the pairs that share pixels.

    tile, classes: (N,) int64. boxes: (N, 4) float32 in the image. scores, quality: (N,). depth: (N,), see
    TileGrid.depth. is_cut: (N,) bool: cut by a side of the tile. rank: (N,) int64, larger for greater depth, then
    higher score, then earlier tile. deeper_tile: (N,) int64, another tile in which it is whole and deeper; -1 for none.
    first, second: (P,) int64. agreement, inside, cover: (P,) within the overlap of both tiles, the intersection over
    union and the contained part of the smaller object; and the shared part of the whole smaller object.
    """

    def __init__(self, grid: TileGrid, load: Callable[[int], TileObjects], rim: float) -> None:
        self.grid = grid
        parts: list[tuple[np.ndarray, ...]] = []
        pairs: list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        for tile in grid:
            own = load(tile.index)
            both = own.boxes.astype(np.float64), own.masks.boxes().astype(np.float64)
            depth = np.minimum(*(grid.depth(tile, boxes) for boxes in both))
            deeper = deeper_tiles(grid, tile, own.boxes, depth)
            number = np.full(len(depth), tile.index)
            parts.append((number, own.boxes, own.scores, own.classes, own.quality, depth, deeper))
            for other in grid.later_neighbours(tile):
                pairs.append((tile.index, other.index, *_compare(own, load(other.index))))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        self.tile, self.boxes, self.scores, self.classes, self.quality, self.depth, self.deeper_tile = columns
        self.is_cut = self.depth < rim
        self.rank = _dense_rank(self.depth, self.scores, -self.tile)
        begins = np.searchsorted(self.tile, np.arange(len(grid)))
        nothing = np.zeros(0, dtype=np.int64)
        self.first = np.concatenate([nothing, *(begins[pair[0]] + pair[2] for pair in pairs)])
        self.second = np.concatenate([nothing, *(begins[pair[1]] + pair[3] for pair in pairs)])
        self.agreement, self.inside, self.cover = (
            np.concatenate([nothing, *(pair[column] for pair in pairs)]) for column in (4, 5, 6)
        )
        self._same_class = self.classes[self.first] == self.classes[self.second]
        self._both_cut = self.is_cut[self.first] & self.is_cut[self.second]
        # Object -> objects in the same place, or half of it, with the shared part of the smaller one.
        self._near: dict[int, list[tuple[int, float]]] = defaultdict(list)
        close = self.cover >= SAME_PLACE / 2
        rows = zip(self.first[close].tolist(), self.second[close].tolist(), self.cover[close].tolist(), strict=True)
        for first, second, cover in rows:
            self._near[first].append((second, cover))
            self._near[second].append((first, cover))

    def groups(self) -> list[list[int]]:
        """Return lists of objects that are one in the result; objects in no list are dropped."""
        settled: list[list[int]] = []
        doubtful: list[list[int]] = []
        single = np.ones(len(self.tile), dtype=bool)
        for group in self._agreeing():
            single[group] = False
            whole = [number for number in group if not self.is_cut[number]]
            kept = [max(whole, key=self.rank.__getitem__)] if whole else group
            is_seen_better = self._deeper_tile(kept) not in {-1, *self.tile[group].tolist()}
            (doubtful if is_seen_better else settled).append(kept)
        for number in np.flatnonzero(single).tolist():
            if self.deeper_tile[number] >= 0:
                doubtful.append([number])
            elif not self._is_fragment(number):
                settled.append([number])
        return self._without_doubles(settled + self._unrivalled(doubtful, settled))

    def _agreeing(self) -> list[list[int]]:
        """Return groups of two or more objects that agree, directly or through others."""
        matches = self._one_to_one()
        ends = self.first[matches], self.second[matches]
        if not len(matches):
            return []
        graph = coo_array((np.ones(len(matches)), ends), shape=(len(self.tile),) * 2)
        _, label = connected_components(graph, directed=False)
        members = np.unique(np.concatenate(ends))
        groups: dict[int, list[int]] = defaultdict(list)
        for number in members.tolist():
            groups[label[number]].append(number)
        return list(groups.values())

    def _one_to_one(self) -> list[int]:
        """Return the pairs that agree, best first, within a class; then those of pieces cut by both, of any class."""
        best_first = np.argsort(-self.agreement, kind="stable")
        best_first = best_first[self.agreement[best_first] >= AGREE].tolist()
        taken: set[tuple[int, int]] = set()  # objects with the tile of their match
        matches = []
        for allowed in (self._same_class, self._both_cut):
            for pair in best_first:
                first, second = int(self.first[pair]), int(self.second[pair])
                ends = {(first, int(self.tile[second])), (second, int(self.tile[first]))}
                if allowed[pair] and taken.isdisjoint(ends):
                    taken |= ends
                    matches.append(pair)
        # A bent object may be one piece here and two there.
        pieces = (self.inside >= INSIDE) & self._both_cut & self._same_class
        return [*matches, *np.flatnonzero(pieces).tolist()]

    def _deeper_tile(self, group: list[int]) -> int:
        """Return `deeper_tile` of an object that is one or several pieces."""
        if len(group) == 1:
            return int(self.deeper_tile[group[0]])
        boxes = self.boxes[group]
        box = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]
        return int(deeper_tiles(self.grid, self.grid[int(self.tile[group[0]])], box, self.depth[group].max()[None])[0])

    def _is_fragment(self, number: int) -> bool:
        """Whether this is a piece of an object that is whole in another tile."""
        return bool(self.is_cut[number]) and any(
            cover >= SAME_PLACE and not self.is_cut[other] and self.rank[other] > self.rank[number]
            for other, cover in self._near.get(number, ())
        )

    def _unrivalled(self, doubtful: list[list[int]], settled: list[list[int]]) -> list[list[int]]:
        """Select doubtful objects, best first, that are not cut and whose rivals in the deeper tile were dropped."""
        staying = np.zeros(len(self.tile), dtype=bool)
        staying[[number for group in settled for number in group]] = True
        kept = []
        for group in sorted(doubtful, key=lambda group: self.rank[group].max(), reverse=True):
            others = [other for number in group for other, _ in self._near.get(number, ()) if other not in group]
            if others and not staying[others].any() and not self.is_cut[group].any():
                kept.append(group)
                staying[group] = True
        return kept

    def _without_doubles(self, kept: list[list[int]]) -> list[list[int]]:
        """Drop the less deep of two objects that remain in one place from two tiles."""
        group_of = {number: position for position, group in enumerate(kept) for number in group}
        dropped: set[int] = set()
        for position, group in enumerate(kept):
            for number in group:
                for other, cover in self._near.get(number, ()):
                    rival = group_of.get(other, position)
                    same = self.classes[number] == self.classes[other]
                    if rival <= position or {rival, position} & dropped or not same or cover < SAME_PLACE:
                        continue
                    is_less = self.rank[group].max() < self.rank[kept[rival]].max()
                    dropped.add(position if is_less else rival)
        return [group for position, group in enumerate(kept) if position not in dropped]


def _compare(a: TileObjects, b: TileObjects) -> tuple[np.ndarray, ...]:
    """Return positions in both tiles, agreement, inside and cover of the pairs that share pixels; see Seams."""
    common = (
        *(max(a.tile.x0, b.tile.x0), max(a.tile.y0, b.tile.y0)),
        *(min(a.tile.x1, b.tile.x1), min(a.tile.y1, b.tile.y1)),
    )
    found = shared_pixels(a.masks.within(common), b.masks.within(common))
    smaller = np.minimum(a.masks.areas()[found.first], b.masks.areas()[found.second])
    return found.first, found.second, found.iou, found.of_smaller, found.pixels / smaller


def _dense_rank(*columns: np.ndarray) -> np.ndarray:
    """Return ranks (N,) int64 by the first column, then the second, and so on; equal rows have equal ranks."""
    order = np.lexsort(columns[::-1])
    differs = [column[order][1:] != column[order][:-1] for column in columns]
    rank = np.zeros(len(order), dtype=np.int64)
    rank[order[1:]] = np.cumsum(np.logical_or.reduce(differs))
    return rank


def deeper_tiles(grid: TileGrid, tile: Tile, boxes: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the other tile in which each of the boxes (N, 4) of a tile is whole and deepest, (N,) int64.

    depth: (N,), of the boxes in their own tile. -1 if no other tile is deeper.
    """
    best = np.full(len(boxes), -1)
    depth = np.maximum(depth, 0.0)
    boxes = boxes.astype(np.float64)
    for row in range(max(tile.row - 1, 0), min(tile.row + 2, len(grid.rows))):
        for column in range(max(tile.column - 1, 0), min(tile.column + 2, len(grid.columns))):
            index = row * len(grid.columns) + column
            other = grid.depth(grid[index], boxes)
            better = (other > depth) & (index != tile.index)
            best[better], depth[better] = index, other[better]
    return best


def _assemble(grid: TileGrid, store: TileStore, seams: Seams, groups: list[list[int]]) -> Predictions:
    """Read the masks of the remaining objects, tile by tile, into one Predictions."""
    size = grid.height, grid.width
    if not groups:
        nothing = store[0].select(np.zeros(0))
        return replace(nothing, height=size[0], width=size[1], image_id=0, file_name="")
    groups = sorted(groups)
    members = np.concatenate(groups)
    left = np.array([len(group) for group in groups])  # remaining pieces of each object
    begins = np.cumsum(left) - left
    boxes = np.concatenate(
        [
            np.minimum.reduceat(seams.boxes[members, :2], begins),
            np.maximum.reduceat(seams.boxes[members, 2:], begins),
        ],
        axis=1,
    )
    best = np.array([max(group, key=seams.scores.__getitem__) for group in groups])
    masks: list[Any] | None = [None] * len(groups)
    soft: list[Any] | None = [None] * len(groups)
    pieces: dict[int, list[MaskCrop]] = defaultdict(list)
    probabilities: dict[int, list[tuple[np.ndarray, tuple[int, ...]]]] = defaultdict(list)
    for tile, owners, positions in _by_tile(grid, seams, members, np.repeat(np.arange(len(groups)), left)):
        found = store[tile.index].select(positions)
        masks = None if found.rles is None else masks
        soft = None if found.soft_masks is None else soft
        left -= np.bincount(owners, minlength=len(groups))
        done = [number for number in np.unique(owners).tolist() if not left[number]]
        if masks is not None:
            for number, crop in zip(owners.tolist(), rle_codec.decode_crops(found.rles), strict=True):
                pieces[number].append(crop.moved(tile.x0, tile.y0))
            unions = [union_of(pieces.pop(number)) for number in done]
            for number, rle in zip(done, rle_codec.encode_crops(unions, *size), strict=True):
                masks[number] = rle
        if soft is not None:
            windows = soft_mask_windows(found.boxes, *tile.size) + np.array([tile.x0, tile.y0, tile.x0, tile.y0])
            for number, crop, window in zip(owners.tolist(), found.soft_masks, windows.tolist(), strict=True):
                probabilities[number].append((crop, tuple(window)))
            for number in done:
                window = soft_mask_window(boxes[number], *size)
                moved = [move_window(crop, old, window) for crop, old in probabilities.pop(number)]
                soft[number] = np.maximum.reduce(moved)
    scores, classes = seams.scores[best], seams.classes[best]
    order = np.argsort(-scores, kind="stable")
    return Predictions(
        0,
        "",
        *size,
        clip_boxes(boxes[order], *size),
        scores[order],
        classes[order],
        None if masks is None else [masks[index] for index in order],
        None if soft is None else [soft[index] for index in order],
        quality=seams.quality[best][order],
    )


def _by_tile(
    grid: TileGrid, seams: Seams, members: np.ndarray, owners: np.ndarray
) -> Iterator[tuple[Tile, np.ndarray, np.ndarray]]:
    """Yield every tile with members, with their owners and their positions in the tile."""
    tiles = seams.tile[members]
    begins = np.searchsorted(seams.tile, np.arange(len(grid)))
    order = np.argsort(tiles, kind="stable")
    for index in np.unique(tiles).tolist():
        here = order[np.searchsorted(tiles[order], index) : np.searchsorted(tiles[order], index, side="right")]
        yield grid[index], owners[here], members[here] - begins[index]
