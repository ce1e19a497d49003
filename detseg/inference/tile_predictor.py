"""Prediction of images of any size in overlapping tiles: the detector sees one tile at a time.

    grid of tiles --(read, prepare, detect, batch by batch)--> predictions of each tile --(stitching)--> one result
    grid of tiles --(read, prepare, maps)--> maps of large windows (map_tiles) --> predictions of each --> one result

Tiles have the scale and the intensities of the whole image. The detector may be anything, including test-time
augmentation and several models; if it makes objects from maps, the maps of tiles are blended first. Memory holds a
batch of tiles, the prefetched tiles, the objects of the image, and the maps of a window.
"""

from __future__ import annotations

import dataclasses
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import ImageRecord
from detseg.data.object_size import DIAMETER, DIAMETER_FROM, MOST_ENLARGED, check_diameter
from detseg.errors import DataError
from detseg.fusion.postprocess import Postprocess
from detseg.images.pixel_source import PixelSource
from detseg.images.reading import open_pixels, reads_parts
from detseg.inference.blocks import apply_in_blocks, joined
from detseg.inference.detector import Detector, PreparedImage
from detseg.inference.image_model import InputImage, ParentImage
from detseg.inference.map_tiles import BlendedMaps, window_grid
from detseg.inference.prefetch import batches, prefetch
from detseg.inference.stitching import TileStore, stitch
from detseg.inference.tiling import AUTO, LARGE, NEVER, Tile, TileFolder, TileGrid, Tiling, make_grid
from detseg.runs.threads import follow_load
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import boxes_by_tile
from detseg.structures.predictions import Predictions

# The mask of a cut object may end this many network pixels away from the tile's side.
RIM = 2.0
# Rows of a large image from which its intensity range is measured.
_ROWS = 16


class TilePredictor:
    """Predict images tile by tile.

    Args:
        detector: sees every tile as an image of its own.
        tiling: which images are cut, and how.
        postprocess: applied to the result; its score threshold already to every tile.
        batch_size: tiles per batch.
        workers: threads that read and prepare tiles in advance.
        state: folder that keeps the predictions of tiles until all images are done, so that an interrupted command can
        continue and several processes can share the tiles of one image; None keeps them in memory.
        identity: plain values that identify the model; tiles of another model in `state` are not used.
        diameter: of the objects in all images, pixels; None: from each image's facts, else estimated, if the model
        needs it (INPUT.OBJECT_SIZE).
        progress: called with an image's name, its number of finished tiles, and its total.
    """

    def __init__(
        self,
        detector: Detector,
        tiling: Tiling,
        *,
        postprocess: Postprocess | None = None,
        batch_size: int = 1,
        workers: int = 0,
        state: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        diameter: float | None = None,
        progress: Callable[[str, int, int], Any] = lambda name, done, total: None,
    ) -> None:
        self.detector = detector
        self.tiling = tiling
        self.postprocess = postprocess
        self.batch_size = batch_size
        self.workers = workers
        self.state = state
        self.identity = {**(identity or {}), "detector": detector.describe()}
        self.diameter = diameter
        self.progress = progress
        self._overviews: weakref.WeakKeyDictionary[PixelSource, np.ndarray] = weakref.WeakKeyDictionary()

    def find_diameter(self, source: PixelSource) -> None:
        """Add the object diameter of an image to its facts, if a model needs it.

        Raises:
            DataError: the image cannot be read, the model does not accept it, or the facts give an invalid diameter.
        """
        if self.detector.sizing_model is None or DIAMETER_FROM in source.facts:
            return
        given = self.diameter or source.facts.get(DIAMETER)
        if given is not None:
            diameter, origin = check_diameter(given, source.name), "given"
        else:
            diameter, objects = self.detector.estimate_diameter(source.read, self._parent(source, measure=True))
            origin = f"estimated from {objects} objects" if objects else "typical of the training images"
        source.facts |= {DIAMETER: diameter, DIAMETER_FROM: origin}

    def open(self, record: ImageRecord) -> PixelSource | None:
        """Open an image file if it is to be predicted in tiles; the caller closes it.

        If this is known only after the object size has been estimated, the file stays open: see `applies`.

        Raises:
            DataError: the file cannot be read.
        """
        if self.tiling.when == NEVER or not reads_parts(record.path):
            return None
        source = open_pixels(record.path, record.metadata)
        estimates = self.detector.sizing_model is not None
        if estimates and self.tiling.when == AUTO and source.height * source.width * MOST_ENLARGED**2 <= LARGE:
            source.close()
            return None
        self.find_diameter(source)
        if estimates or self.applies(source):
            return source
        source.close()
        return None

    def applies(self, source: PixelSource) -> bool:
        """Whether an open image is to be predicted in tiles."""
        if self.tiling.when == NEVER:
            return False
        try:
            scale = self.grid(source).scale
        except DataError:
            # The scale is unknown or too small, but an image with few pixels in its file needs no tiles.
            if self.tiling.when == AUTO and source.height * source.width <= LARGE:
                return False
            raise
        return self.tiling.applies(source.height, source.width, scale)

    def grid(self, source: PixelSource) -> TileGrid:
        """Cut an image. Raises DataError if its scale is not known, ConfigError for impossible tile sizes."""
        scale = self.detector.tile_scale(self._parent(source))
        tile, overlap = self.tiling.sizes(scale)
        return make_grid(source.height, source.width, tile=tile, overlap=overlap, scale=scale)

    def predict(
        self,
        record: ImageRecord,
        source: PixelSource,
        *,
        soft_masks: bool = False,
        boxes: Predictions | None = None,
    ) -> Predictions:
        """Predict one image, by descending score; the caller sets image_id and file_name.

        boxes: external boxes, for which masks are predicted.

        Raises:
            DataError: the image cannot be read, or the model does not accept it.
        """
        if boxes is not None:
            result = self._masks_of_boxes(source, boxes, soft_masks)
        else:
            grid = self.grid(source)
            parts, store = self._detect(record, source, soft_masks, (0, 1))
            # Objects made from maps extend to the last pixel.
            result = stitch(parts, store, rim=1.0 if self.detector.decodes_maps else max(1.0, RIM / min(grid.scale)))
            about = {"tile": grid.tile, "overlap": grid.overlap}
            result.provenance["tiles"] = about if self.tiling.scale is None else {**about, "scale": self.tiling.scale}
        return result if self.postprocess is None else apply_in_blocks(self.postprocess, result)

    def predict_share(
        self, record: ImageRecord, source: PixelSource, share: tuple[int, int], *, soft_masks: bool = False
    ) -> None:
        """Predict every count-th tile, or window of maps, from index `number` (share: number, count) and store it in
        `state` for `predict`.

        Raises:
            DataError: see `predict`.
        """
        self._detect(record, source, soft_masks, share)

    def _detect(
        self, record: ImageRecord, source: PixelSource, soft_masks: bool, share: tuple[int, int]
    ) -> tuple[TileGrid, TileStore]:
        """Predict the missing tiles, or windows of maps, of a share; return them with their grid."""
        grid = self.grid(source)
        parts = self._windows(source) if self.detector.decodes_maps else grid
        store: TileStore = {}
        if self.state is not None:
            kept = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in record.file_name)
            folder = self.state / f"{record.image_id}_{kept}"[-120:]
            store = TileFolder(folder, self._computed(record, source, grid, soft_masks))
        number, count = share
        share_of_parts = [part for part in parts if part.index % count == number]
        missing = [part for part in share_of_parts if part.index not in store]
        done = len(share_of_parts) - len(missing)
        if not missing:
            return parts, store
        parent = self._parent(source, measure=True)
        keep = None if self.postprocess is None else self.postprocess.may_stay
        self.detector.check_intensities(InputImage(_rows_of(source), source.facts, source.name))
        if self.detector.decodes_maps:
            found = self._of_windows(source, parent, grid, missing, soft_masks)
        else:
            found = self._of_tiles(source, parent, missing, soft_masks)
        for part, predictions in zip(missing, found, strict=True):
            if keep is not None:
                predictions = predictions.select(keep(predictions.scores, predictions.classes))
            store[part.index] = predictions
            done += 1
            self.progress(record.file_name, done, len(share_of_parts))
        return parts, store

    def _of_tiles(
        self, source: PixelSource, parent: ParentImage, tiles: Sequence[Tile], soft_masks: bool
    ) -> Iterator[Predictions]:
        """Yield the predictions of each tile."""
        keep = None if self.postprocess is None else self.postprocess.may_stay
        for batch in self._batches(source, parent, tiles):
            yield from self.detector.predict(batch, soft_masks=soft_masks, keep=keep)

    def _of_windows(
        self, source: PixelSource, parent: ParentImage, grid: TileGrid, windows: Sequence[Tile], soft_masks: bool
    ) -> Iterator[Predictions]:
        """Yield the objects made from the maps of each window; grid: of the tiles whose maps are blended."""
        reach = self.detector.reach
        if reach is not None:  # resizing a tile affects two pixels at its border
            reach = tuple(math.ceil(reach / scale) + 2 * (scale != 1) for scale in grid.scale)

        def maps_of(tiles: Sequence[Tile]) -> Iterator[np.ndarray]:
            for batch in self._batches(source, parent, tiles):
                yield from self.detector.maps(batch)

        decoder, level = self.detector.decoder, None
        every = self._windows(source)
        # A threshold that is the mean over the image is measured first: all tiles are then computed twice.
        if len(every) > 1 and decoder.level(np.zeros((len(decoder.map_names), 1, 1), dtype=np.float32)) is not None:
            maps, level = BlendedMaps(grid, every, maps_of, reach), 0.0
            for window in every:
                y0 = every.rows[window.row - 1][1] - window.y0 if window.row else 0
                x0 = every.columns[window.column - 1][1] - window.x0 if window.column else 0
                own = maps.of(window)[:, y0:, x0:]
                level += decoder.level(own) * own[0].size / (source.height * source.width)
        maps = BlendedMaps(grid, windows, maps_of, reach)
        for window in windows:
            yield decoder.decode(maps.of(window), soft_masks=soft_masks, level=level, limited=False)

    def _windows(self, source: PixelSource) -> TileGrid:
        return window_grid(source.height, source.width, len(self.detector.decoder.map_names))

    def _batches(
        self, source: PixelSource, parent: ParentImage, tiles: Sequence[Tile]
    ) -> Iterator[list[PreparedImage]]:
        """Read and prepare tiles; yield them in batches."""
        prepared = prefetch(lambda tile: self._prepare(source, tile, parent), tiles, self.workers)
        for batch in batches(prepared, self.batch_size, lambda one: one.key):
            follow_load()
            yield batch

    def _computed(self, record: ImageRecord, source: PixelSource, grid: TileGrid, soft_masks: bool) -> dict[str, Any]:
        """Return everything that the predictions of tiles depend on."""
        try:
            file = os.stat(record.path)
        except OSError as error:
            raise DataError(f"{record.path}: cannot be read ({error})") from None
        threshold = None if self.postprocess is None else self.postprocess.to_dict().get("score_threshold")
        return {
            "image": [str(record.path), file.st_size, file.st_mtime_ns, source.height, source.width],
            "fields": {name: value for name, value in source.facts.items() if name in record.metadata},
            "grid": [grid.rows, grid.columns, grid.scale],
            "soft_masks": soft_masks,
            "score_threshold": threshold,
            "model": self.identity,
        }

    def _masks_of_boxes(self, source: PixelSource, boxes: Predictions, soft_masks: bool) -> Predictions:
        """Predict masks for external boxes, each in the tile in which it is deepest.

        A box that is whole in no tile gets a tile of its own around it. The result has all boxes in their order.
        """
        parent = self._parent(source, measure=True)
        size = {"height": source.height, "width": source.width}
        parts: list[Predictions] = []
        order: list[np.ndarray] = []
        for tile, chosen in _tiles_of_boxes(self.grid(source), boxes.boxes.astype(np.float64)):
            shift = np.float32([tile.x0, tile.y0, tile.x0, tile.y0])
            given = boxes.select(chosen).without_masks()
            given = Predictions(0, "", *tile.size, given.boxes - shift, given.scores, given.classes)
            (found,) = self.detector.predict(
                [self._prepare(source, tile, parent)], soft_masks=soft_masks, boxes=[given]
            )
            masks = rle_codec.read_runs(found.rles or []).moved(tile.x0, tile.y0, source.height, source.width)
            rles = rle_codec.encode_runs(masks)
            parts.append(dataclasses.replace(found, **size, boxes=found.boxes + shift, rles=rles))
            order.append(chosen)
        if not parts:
            return Predictions.empty(0, "", source.height, source.width)
        return joined(parts).select(np.argsort(np.concatenate(order)))

    def _parent(self, source: PixelSource, *, measure: bool = False) -> ParentImage:
        """measure: also sample the intensities of the whole image, if those of tiles depend on them."""
        overview = None
        if measure and self.detector.needs_overview:
            overview = self._overviews.get(source)
            if overview is None:
                overview = self._overviews[source] = source.overview()
        return ParentImage((source.height, source.width), source.facts, source.name, overview, self.tiling.scale)

    def _prepare(self, source: PixelSource, tile: Tile, parent: ParentImage) -> PreparedImage:
        pixels = source.read(tile.y0, tile.x0, tile.y1, tile.x1)
        return self.detector.prepare(InputImage(pixels, source.facts, source.name, parent))


def _rows_of(source: PixelSource) -> np.ndarray:
    """Return some rows (r, W, C) from all over an image, which are read quickly however large it is."""
    step = math.ceil(source.height / _ROWS)
    return np.concatenate([source.read(y, 0, y + 1, source.width) for y in range(step // 2, source.height, step)])


def _tiles_of_boxes(grid: TileGrid, boxes: np.ndarray) -> Iterator[tuple[Tile, np.ndarray]]:
    """Yield tiles with the indices of the boxes (N, 4) that are predicted in them."""
    tiles, others = boxes_by_tile(boxes, grid.rows, grid.columns, grid.height, grid.width)
    for row, column, inside in tiles:
        yield grid[row * len(grid.columns) + column], inside
    margin = grid.overlap // 2
    for index in others:
        x0, y0 = (max(math.floor(low) - margin, 0) for low in boxes[index, :2])
        x1, y1 = (math.ceil(high) + margin for high in boxes[index, 2:])
        x1, y1 = min(x1, grid.width), min(y1, grid.height)
        yield Tile(-1, -1, -1, min(y0, y1 - 1), min(x0, x1 - 1), y1, x1), np.array([index])
