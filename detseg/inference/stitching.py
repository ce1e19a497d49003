"""From the answers of tiles to one answer: no object cut, doubled or lost at a seam.

Neighbouring tiles show a strip of the image twice. What each found there is compared pixel by pixel:

1. Objects of two tiles agree when, in the area that both show, their masks have an intersection over union of at least
   `AGREE`. Each object agrees with one of another tile at most, the best first.
2. Objects that agree are one object. Where a tile shows it whole, the answer is that of the tile in which it lies
   deepest. Where every tile cuts it (it is larger than the overlap), it is the union of its pieces. Cut pieces agree
   also where one lies in the other by `INSIDE`: a bent object can be one piece here and two there.
3. An object that lies deeper in a tile with whose findings it does not agree was seen better there: that tile decides.
   If it found nothing in this place, or something else that stays, the object is dropped; else the deeper one stays.
4. A piece cut off by its tile that lies in a whole object of another one is dropped; so is, of two of one class that
   share more than half of the smaller one, the less deep.

What follows: where a model says of an object the same in every tile that shows it, the answer is that without tiles,
however large the object is. Objects smaller than the overlap are whole in at least one tile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.inference.tile_pairs import ObjectsOfTiles, TilePair, find_pairs
from detseg.inference.tiling import Tile, TileAnswers, TileGrid
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import clip_boxes
from detseg.structures.mask_crop import MaskCrop, union_of
from detseg.structures.predictions import Predictions, move_window, soft_mask_window, soft_mask_windows

AGREE = 0.5
# Share of the smaller object from which two are in each other's place.
SAME_PLACE = 0.5
# Share of a cut piece, in the area that both tiles show, from which it lies in another cut piece.
INSIDE = 0.9

# Tile and position in it.
Place = tuple[int, int]


@dataclass
class _Facts:
    """What is known of the N objects of a tile when its masks are no longer in memory.

    boxes: (N, 4) float32 of the image. depth: (N,), see TileGrid.depth. is_cut: (N,) bool: the tile's side cuts it.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    depth: np.ndarray
    is_cut: np.ndarray


def stitch(grid: TileGrid, answers: TileAnswers, *, rim: float = 1.0) -> Predictions:
    """Put the answers of all tiles together, by descending score.

    rim: pixels; an object whose mask or box comes as near to a side of its tile as this is taken for cut by it. A model
    draws the border of what is cut up to about a pixel of its own off.
    """
    objects = ObjectsOfTiles(grid, answers)
    facts: list[_Facts] = []
    pairs: dict[tuple[int, int], list[TilePair]] = {}
    for tile in grid:
        shown = objects[tile.index]
        depth = grid.depth(tile, np.concatenate([shown.boxes, shown.masks.boxes()]).astype(np.float64))
        depth = np.minimum(*np.split(depth, 2))
        facts.append(_Facts(shown.boxes, shown.scores, shown.classes, depth, depth < rim))
        for other in grid.later_neighbours(tile):
            found = find_pairs(shown, objects[other.index])
            if found:
                pairs[tile.index, other.index] = found
    return _assemble(grid, answers, _Decision(grid, facts, pairs).groups())


class _Decision:
    """Which objects stay, and which of them are pieces of one."""

    def __init__(self, grid: TileGrid, facts: list[_Facts], pairs: dict[tuple[int, int], list[TilePair]]) -> None:
        self.grid = grid
        self.facts = facts
        self.pairs = pairs
        # Every object that shares pixels with one of another tile -> these, with the pair.
        self.near: dict[Place, list[tuple[Place, TilePair]]] = defaultdict(list)
        for (a, b), found in pairs.items():
            for pair in found:
                self.near[a, pair.first].append(((b, pair.second), pair))
                self.near[b, pair.second].append(((a, pair.first), pair))

    def groups(self) -> list[list[Place]]:
        """Lists of objects that are one in the answer; what is in none is dropped."""
        agreeing = list(self._agreeing())
        in_group = {place for group in agreeing for place in group}
        settled: list[list[Place]] = []
        doubtful: list[list[Place]] = []
        for group in agreeing:
            kept = self._representation(group)
            is_seen_better = self._deeper_tile(kept) not in {-1, *(tile for tile, _ in group)}
            (doubtful if is_seen_better else settled).append(kept)
        for tile, facts in enumerate(self.facts):
            deeper = deeper_tiles(self.grid, self.grid[tile], facts.boxes, facts.depth)
            for index in range(len(facts.scores)):
                if (tile, index) in in_group:
                    continue
                if deeper[index] >= 0:
                    doubtful.append([(tile, index)])
                elif not self._is_fragment((tile, index)):
                    settled.append([(tile, index)])
        return self._without_doubles(settled + self._unrivalled(doubtful, settled))

    def _agreeing(self) -> Iterator[list[Place]]:
        """Groups of two or more objects that agree, directly or by others."""
        parent: dict[Place, Place] = {}

        def root(place: Place) -> Place:
            while parent.setdefault(place, place) != place:
                parent[place] = place = parent[parent[place]]
            return place

        for (a, b), found in self.pairs.items():
            for pair in self._one_to_one(a, b, found):
                parent[root((b, pair.second))] = root((a, pair.first))
        groups: dict[Place, list[Place]] = defaultdict(list)
        for place in sorted(parent):
            groups[root(place)].append(place)
        yield from groups.values()

    def _one_to_one(self, a: int, b: int, found: Iterable[TilePair]) -> Iterator[TilePair]:
        """Pairs that agree, the best first, of one class; of pieces that both tiles cut, any class after that."""
        agreeing = sorted((pair for pair in found if pair.agreement >= AGREE), key=lambda pair: -pair.agreement)
        firsts: set[int] = set()
        seconds: set[int] = set()
        for any_class in (False, True):
            for pair in agreeing:
                fits = self._both_cut(a, b, pair) if any_class else self._one_class(a, b, pair)
                if fits and pair.first not in firsts and pair.second not in seconds:
                    firsts.add(pair.first)
                    seconds.add(pair.second)
                    yield pair
        # A bent object may be one piece here and two there.
        for pair in found:
            if pair.cover_in_common >= INSIDE and self._both_cut(a, b, pair) and self._one_class(a, b, pair):
                yield pair

    def _both_cut(self, a: int, b: int, pair: TilePair) -> bool:
        return bool(self.facts[a].is_cut[pair.first] and self.facts[b].is_cut[pair.second])

    def _one_class(self, a: int, b: int, pair: TilePair) -> bool:
        return bool(self.facts[a].classes[pair.first] == self.facts[b].classes[pair.second])

    def _representation(self, group: list[Place]) -> list[Place]:
        """Those of a group that make up the object: the deepest that is whole, or all pieces."""
        whole = [place for place in group if not self._is_cut(place)]
        return [max(whole, key=self._rank)] if whole else group

    def _rank(self, place: Place) -> tuple[float, float, int]:
        """Deeper first, then the better score, then the earlier tile."""
        facts = self.facts[place[0]]
        return float(facts.depth[place[1]]), float(facts.scores[place[1]]), -place[0]

    def _unrivalled(self, doubtful: list[list[Place]], settled: list[list[Place]]) -> list[list[Place]]:
        """Of what another tile sees better and does not confirm: where that tile's finding is dropped, the best."""
        staying = {place for places in settled for place in places}
        kept = []
        for places in sorted(doubtful, key=lambda places: max(map(self._rank, places)), reverse=True):
            others = [
                other
                for place in places
                for other, pair in self.near.get(place, ())
                if pair.cover >= SAME_PLACE / 2 and other not in places
            ]
            if others and not any(other in staying for other in others) and not any(map(self._is_cut, places)):
                kept.append(places)
                staying.update(places)
        return kept

    def _deeper_tile(self, places: list[Place]) -> int:
        """See `deeper_tiles`; of an object that is one or several pieces."""
        boxes = np.array([self.facts[tile].boxes[index] for tile, index in places])
        box = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]
        depth = np.array([max(self.facts[tile].depth[index] for tile, index in places)])
        return int(deeper_tiles(self.grid, self.grid[places[0][0]], box, depth)[0])

    def _class(self, place: Place) -> int:
        return int(self.facts[place[0]].classes[place[1]])

    def _is_cut(self, place: Place) -> bool:
        return bool(self.facts[place[0]].is_cut[place[1]])

    def _is_fragment(self, place: Place) -> bool:
        """Whether this is a piece of an object that another tile shows whole."""
        return self._is_cut(place) and any(
            pair.cover >= SAME_PLACE and not self._is_cut(other) and self._rank(other) > self._rank(place)
            for other, pair in self.near.get(place, ())
        )

    def _without_doubles(self, kept: list[list[Place]]) -> list[list[Place]]:
        """Drop, of two that stay in one place in two tiles, the less deep."""
        number_of = {place: number for number, places in enumerate(kept) for place in places}
        dropped: set[int] = set()
        for number, places in enumerate(kept):
            for place in places:
                for other, pair in self.near.get(place, ()):
                    rival = number_of.get(other, number)
                    same = self._class(place) == self._class(other)
                    if rival <= number or {rival, number} & dropped or not same or pair.cover < SAME_PLACE:
                        continue
                    ranks = [max(map(self._rank, kept[one])) for one in (number, rival)]
                    dropped.add(number if ranks[0] < ranks[1] else rival)
        return [places for number, places in enumerate(kept) if number not in dropped]


def deeper_tiles(grid: TileGrid, tile: Tile, boxes: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the other tile in which each of the boxes (N, 4) of a tile lies whole and deepest, (N,) int64.

    depth: (N,), of the boxes in their own tile. -1 where no other one is deeper.
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


def _assemble(grid: TileGrid, answers: TileAnswers, groups: list[list[Place]]) -> Predictions:
    """Read the masks of what stays, tile by tile, and make one answer of them."""
    groups = sorted(groups)
    wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)  # tile -> (number of the group, position in the tile)
    for number, places in enumerate(groups):
        for tile, index in places:
            wanted[tile].append((number, index))
    last_tile = [places[-1][0] for places in groups]
    assembly = _Assembly(grid, len(groups))
    for tile in grid:
        here = wanted.get(tile.index, [])
        answer = answers.get(tile.index)
        assembly.add([number for number, _ in here], tile, answer.select(np.array([index for _, index in here], int)))
        assembly.finish([number for number, _ in here if last_tile[number] == tile.index])
    return assembly.result()


class _Assembly:
    """Objects that are put together of pieces; a piece waits for the others of its object."""

    def __init__(self, grid: TileGrid, count: int) -> None:
        self.size = grid.height, grid.width
        self.boxes = np.tile(np.float32([np.inf, np.inf, -np.inf, -np.inf]), (count, 1))
        self.scores = np.full(count, -1, dtype=np.float32)
        self.classes = np.zeros(count, dtype=np.int64)
        self.rles: list[Any] | None = [None] * count
        self.soft: list[Any] | None = [None] * count
        self._masks: dict[int, list[MaskCrop]] = defaultdict(list)
        self._probabilities: dict[int, list[tuple[np.ndarray, tuple[int, ...]]]] = defaultdict(list)

    def add(self, numbers: Sequence[int], tile: Tile, answer: Predictions) -> None:
        """Add one piece to each of the objects `numbers`."""
        boxes = answer.boxes + np.float32([tile.x0, tile.y0, tile.x0, tile.y0])
        for number, box, score, index in zip(numbers, boxes, answer.scores, answer.classes, strict=True):
            self.boxes[number, :2] = np.minimum(self.boxes[number, :2], box[:2])
            self.boxes[number, 2:] = np.maximum(self.boxes[number, 2:], box[2:])
            if score > self.scores[number]:
                self.scores[number], self.classes[number] = score, index
        if answer.rles is None:
            self.rles = None
        else:
            for number, crop in zip(numbers, rle_codec.decode_crops(answer.rles), strict=True):
                self._masks[number].append(crop.moved(tile.x0, tile.y0))
        if answer.soft_masks is None:
            self.soft = None
        else:
            windows = soft_mask_windows(answer.boxes, *tile.size) + np.array([tile.x0, tile.y0, tile.x0, tile.y0])
            for number, crop, window in zip(numbers, answer.soft_masks, windows.tolist(), strict=True):
                self._probabilities[number].append((crop, tuple(window)))

    def finish(self, numbers: Sequence[int]) -> None:
        """No more pieces come for these."""
        if self.rles is not None:
            masks = [union_of(self._masks.pop(number)) for number in numbers]
            for number, rle in zip(numbers, rle_codec.encode_crops(masks, *self.size), strict=True):
                self.rles[number] = rle
        if self.soft is not None:
            for number in numbers:
                window = soft_mask_window(self.boxes[number], *self.size)
                moved = [move_window(crop, old, window) for crop, old in self._probabilities.pop(number)]
                self.soft[number] = np.maximum.reduce(moved)

    def result(self) -> Predictions:
        """All of them, by descending score."""
        order = np.argsort(-self.scores, kind="stable")
        return Predictions(
            0,
            "",
            *self.size,
            clip_boxes(self.boxes[order], *self.size),
            self.scores[order],
            self.classes[order],
            None if self.rles is None else [self.rles[index] for index in order],
            None if self.soft is None else [self.soft[index] for index in order],
        )
