"""Prediction of an image of any size in tiles that overlap: a detector sees one tile at a time.

    grid of tiles --(read, prepare, detect, batch by batch)--> answer of each tile --(stitching)--> one answer

Tiles are seen at the scale and with the intensities of the whole image. The detector may be anything, augmentation at
test time and several models included. Memory holds a batch of tiles, those read ahead, and the objects of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.images.pixel_source import PixelSource
from detseg.inference.detector import Detector, InputImage, Prepared, Whole, map_ahead
from detseg.inference.stitching import stitch
from detseg.inference.tiling import AnswersInMemory, Tile, TileAnswers, TileGrid, Tiling, make_grid
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

# A mask's border is drawn up to this many pixels at the network off the side of a tile that cuts the object.
RIM = 2.0


@dataclass(frozen=True)
class WindowPlan:
    """How one image is cut. scale: pixels at the network per pixel (y, x). tile, overlap: pixels of the image."""

    grid: TileGrid
    scale: tuple[float, float]
    tile: int
    overlap: int


class SlidingWindow:
    """Predicts images tile by tile.

    Args:
        detector: sees every tile as an image of its own.
        tiling: how images are cut.
        batch_size: tiles that go through the network at once.
        workers: threads that read and prepare tiles ahead.
        keep: answers of tiles are cut down to these objects before they are put together: function of an answer.
    """

    def __init__(
        self,
        detector: Detector,
        tiling: Tiling,
        *,
        batch_size: int = 1,
        workers: int = 0,
        keep: Callable[[Predictions], Predictions] | None = None,
    ) -> None:
        self.detector = detector
        self.tiling = tiling
        self.batch_size = batch_size
        self.workers = workers
        self.keep = keep

    def plan(self, source: PixelSource) -> WindowPlan:
        """Cut an image. Raises DataError where its scale at the network is not known, ConfigError for other sizes."""
        whole = Whole((source.height, source.width), scale=self.tiling.scale)
        nothing = np.zeros((0, 0, 1), dtype=np.uint8)
        scale = self.detector.scale(InputImage(nothing, source.facts, source.name, whole))
        tile, overlap = self.tiling.sizes(scale)
        grid = make_grid(source.height, source.width, tile=tile, overlap=overlap, scale=scale)
        return WindowPlan(grid, scale, tile, overlap)

    def predict(
        self,
        source: PixelSource,
        *,
        soft_masks: bool = False,
        answers: TileAnswers | None = None,
        done: Callable[[int], Any] = lambda count: None,
    ) -> Predictions:
        """Find the objects of an image, by descending score; image_id and file_name are left to the caller.

        answers: of tiles that were predicted before, where new ones are added too; None keeps them in memory.
        done: told how many tiles were finished since it was told last.

        Raises:
            DataError: the image cannot be read, or the model cannot take it.
        """
        plan = self.plan(source)
        answers = AnswersInMemory() if answers is None else answers
        self.detect(source, plan, answers, plan.grid, soft_masks=soft_masks, done=done)
        return self.stitched(plan, answers)

    def detect(
        self,
        source: PixelSource,
        plan: WindowPlan,
        answers: TileAnswers,
        tiles: Iterable[Tile],
        *,
        soft_masks: bool = False,
        done: Callable[[int], Any] = lambda count: None,
    ) -> None:
        """Add the answers of tiles; those that are there already are not predicted again."""
        missing = []
        for tile in tiles:
            if tile.index in answers:
                done(1)
            else:
                missing.append(tile)
        if not missing:
            return
        whole = self._whole(source)
        prepared = map_ahead(lambda tile: (tile, self._prepare(source, tile, whole)), missing, self.workers)
        for batch in _batches(prepared, self.batch_size):
            found = self.detector.predict([one for _, one in batch], soft_masks=soft_masks)
            for (tile, _), answer in zip(batch, found, strict=True):
                answers.put(tile.index, answer if self.keep is None else self.keep(answer))
            done(len(batch))

    def stitched(self, plan: WindowPlan, answers: TileAnswers) -> Predictions:
        """Put the answers of all tiles together."""
        return stitch(plan.grid, answers, rim=max(1.0, RIM / min(plan.scale)))

    def mask_boxes(self, source: PixelSource, boxes: Predictions, *, soft_masks: bool = False) -> Predictions:
        """Give masks to the boxes of somebody else's: each is seen in the tile in which it lies deepest.

        A box that is whole in no tile is seen in a tile of its own around it. All are in the answer, in their order.
        """
        plan = self.plan(source)
        whole = self._whole(source)
        parts: list[tuple[np.ndarray, Predictions]] = []
        for tile, chosen in self._tiles_of_boxes(plan, boxes.boxes.astype(np.float64)):
            given = boxes.select(chosen)
            shift = np.float32([tile.x0, tile.y0, tile.x0, tile.y0])
            size = {"height": tile.size[0], "width": tile.size[1]}
            given = dataclasses.replace(given, **size, boxes=given.boxes - shift, rles=None, soft_masks=None)
            prepared = self._prepare(source, tile, whole)
            (answer,) = self.detector.predict([prepared], soft_masks=soft_masks, boxes=[given])
            masks = rle_codec.read_runs(answer.rles or [])
            rles = rle_codec.encode_runs(masks.moved(tile.x0, tile.y0, source.height, source.width))
            size = {"height": source.height, "width": source.width}
            parts.append((chosen, dataclasses.replace(answer, **size, boxes=answer.boxes + shift, rles=rles)))
        return _in_order(parts, source, len(boxes))

    def _tiles_of_boxes(self, plan: WindowPlan, boxes: np.ndarray) -> Iterator[tuple[Tile, np.ndarray]]:
        """Tiles with the positions of the boxes that are seen in them."""
        deepest = np.full(len(boxes), -np.inf)
        of_tile = np.full(len(boxes), -1)
        for tile in plan.grid:
            depth = plan.grid.depth(tile, boxes)
            better = (depth >= 0) & (depth > deepest)
            deepest[better], of_tile[better] = depth[better], tile.index
        for index in np.unique(of_tile[of_tile >= 0]):
            yield plan.grid[int(index)], np.flatnonzero(of_tile == index)
        for index in np.flatnonzero(of_tile < 0):
            margin = plan.overlap // 2
            x0, y0 = np.maximum(np.floor(boxes[index, :2]).astype(int) - margin, 0)
            x1, y1 = np.ceil(boxes[index, 2:]).astype(int) + margin
            y1, x1 = min(int(y1), plan.grid.height), min(int(x1), plan.grid.width)
            yield Tile(-1, -1, -1, min(int(y0), y1 - 1), min(int(x0), x1 - 1), y1, x1), np.array([index])

    def _whole(self, source: PixelSource) -> Whole:
        overview = source.overview() if self.detector.needs_overview else None
        return Whole((source.height, source.width), overview, self.tiling.scale)

    def _prepare(self, source: PixelSource, tile: Tile, whole: Whole) -> Prepared:
        pixels = source.read(tile.y0, tile.x0, tile.y1, tile.x1)
        return self.detector.prepare(InputImage(pixels, source.facts, source.name, whole))

    def describe(self, plan: WindowPlan) -> Mapping[str, Any]:
        """What provenance says of an answer."""
        return {"tiles": self.tiling.describe(plan.tile, plan.overlap)}


def _batches(prepared: Iterable[tuple[Tile, Prepared]], batch_size: int) -> Iterator[Sequence[tuple[Tile, Prepared]]]:
    """Neighbours of one key together."""
    batch: list[tuple[Tile, Prepared]] = []
    for tile, one in prepared:
        if batch and (len(batch) == batch_size or batch[0][1].key != one.key):
            yield batch
            batch = []
        batch.append((tile, one))
    if batch:
        yield batch


def _in_order(parts: Sequence[tuple[np.ndarray, Predictions]], source: PixelSource, count: int) -> Predictions:
    """One answer of parts (positions, predictions)."""
    if not count:
        return Predictions.empty(0, "", source.height, source.width)
    order = np.argsort(np.concatenate([chosen for chosen, _ in parts]))
    found = [part for _, part in parts]
    soft = (
        None if any(part.soft_masks is None for part in found) else [mask for part in found for mask in part.soft_masks]
    )
    together = Predictions(
        0,
        "",
        source.height,
        source.width,
        np.concatenate([part.boxes for part in found]),
        np.concatenate([part.scores for part in found]),
        np.concatenate([part.classes for part in found]),
        [rle for part in found for rle in part.rles],
        soft,
    )
    return together.select(order)
