"""Images that are predicted in tiles among those of a data set: which they are, what is kept of them, thresholds.

Where a state folder is given, the answers of their tiles stay in it until all images are done: a command that was
interrupted goes on there, and several processes share the tiles of one image.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import ImageRecord
from detseg.errors import DataError
from detseg.fusion.postprocess import Postprocess
from detseg.images.pixel_source import PixelSource
from detseg.images.reading import open_pixels, reads_parts
from detseg.inference.detector import Detector
from detseg.inference.sliding_window import SlidingWindow, WindowPlan
from detseg.inference.tiling import AUTO, LARGE, NEVER, AnswersInFolder, AnswersInMemory, TileAnswers, Tiling
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

# Thresholds and overlaps of larger images are worked out block by block, with objects this far around it.
BLOCK = 4096
HALO = 512


@dataclass
class TileProgress:
    """Told how an image in tiles comes along: start(name, tiles), advance(count), end()."""

    start: Callable[[str, int], Any] = lambda name, tiles: None
    advance: Callable[[int], Any] = lambda count: None
    end: Callable[[], Any] = lambda: None


class LargeImages:
    """See the module.

    Args:
        detector, postprocess: of the predictor.
        tiling: which images are cut, and how.
        batch_size, workers: see SlidingWindow.
        state: folder of answers; None keeps them in memory.
        identity: plain values that say which model predicts; answers of another are not taken.
        progress: is told of tiles.
    """

    def __init__(
        self,
        detector: Detector,
        postprocess: Postprocess | None,
        tiling: Tiling,
        *,
        batch_size: int = 1,
        workers: int = 0,
        state: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        progress: TileProgress | None = None,
    ) -> None:
        self.tiling = tiling
        self.postprocess = postprocess
        self.state = state
        self.progress = progress or TileProgress()
        self.identity = {**(identity or {}), "detector": detector.describe()}
        keep = None if postprocess is None else self._above_threshold
        self.window = SlidingWindow(detector, tiling, batch_size=batch_size, workers=workers, keep=keep)

    def _above_threshold(self, answer: Predictions) -> Predictions:
        """What the score threshold leaves; scores only fall after that."""
        return answer.select(answer.scores >= self.postprocess.values("score_threshold", answer.classes))

    def claim(self, record: ImageRecord) -> PixelSource | None:
        """Open the image if it is to be predicted in tiles; the caller closes it.

        Raises:
            DataError: it cannot be read.
        """
        if self.tiling.when == NEVER or not reads_parts(record.path):
            return None
        source = open_pixels(record.path, record.metadata)
        if self.claims(source):
            return source
        source.close()
        return None

    def claims(self, source: PixelSource) -> bool:
        """Whether an image that is open is to be predicted in tiles."""
        size = source.height, source.width
        if self.tiling.when == NEVER:
            return False
        try:
            scale = self.window.plan(source).scale
        except DataError:
            # Shrunk much, or of unknown scale: an image that is small in its file is no matter of tiles.
            if self.tiling.when == AUTO and math.prod(size) <= LARGE:
                return False
            raise
        return self.tiling.applies(*size, scale)

    def predict(
        self,
        record: ImageRecord,
        source: PixelSource,
        *,
        soft_masks: bool = False,
        boxes: Predictions | None = None,
    ) -> Predictions:
        """Predict one image, thresholds applied.

        boxes: of somebody else's, to which masks are given.

        Raises:
            DataError: the image cannot be read, or the model cannot take it.
        """
        if boxes is not None:
            return _with_thresholds(self.postprocess, self.window.mask_boxes(source, boxes, soft_masks=soft_masks))
        plan, answers = self._detect(record, source, soft_masks, (0, 1))
        answer = self.window.stitched(plan, answers)
        answer.provenance.update(self.window.describe(plan))
        return _with_thresholds(self.postprocess, answer)

    def predict_share(
        self, record: ImageRecord, source: PixelSource, share: tuple[int, int], *, soft_masks: bool = False
    ) -> None:
        """Predict every count-th tile from number `number` on (share: number, count), for `predict` to find in `state`.

        Raises:
            DataError: as `predict`.
        """
        self._detect(record, source, soft_masks, share)

    def _detect(
        self, record: ImageRecord, source: PixelSource, soft_masks: bool, share: tuple[int, int]
    ) -> tuple[WindowPlan, TileAnswers]:
        plan = self.window.plan(source)
        answers: TileAnswers = AnswersInMemory()
        if self.state is not None:
            what = self._what(record, source, plan, soft_masks)
            answers = AnswersInFolder(self.state / _folder_name(record), what)
        number, count = share
        tiles = [tile for tile in plan.grid if tile.index % count == number]
        self.progress.start(record.file_name, len(tiles))
        try:
            self.window.detect(source, plan, answers, tiles, soft_masks=soft_masks, done=self.progress.advance)
        finally:
            self.progress.end()
        return plan, answers

    def _what(self, record: ImageRecord, source: PixelSource, plan: WindowPlan, soft_masks: bool) -> dict[str, Any]:
        try:
            file = os.stat(record.path)
        except OSError as error:
            raise DataError(f"{record.path}: cannot be read ({error})") from None
        threshold = None if self.postprocess is None else self.postprocess.to_dict().get("score_threshold")
        return {
            "image": [str(record.path), file.st_size, file.st_mtime_ns, source.height, source.width],
            "fields": {name: value for name, value in source.facts.items() if name in record.metadata},
            "grid": [plan.grid.rows, plan.grid.columns, plan.scale],
            "soft_masks": soft_masks,
            "score_threshold": threshold,
            "model": self.identity,
        }


def _folder_name(record: ImageRecord) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in record.file_name)
    return f"{record.image_id}_{kept}"[-120:]


def _with_thresholds(postprocess: Postprocess | None, predictions: Predictions) -> Predictions:
    if postprocess is None:
        return predictions
    return apply_in_blocks(postprocess, predictions)


def apply_in_blocks(
    postprocess: Postprocess, predictions: Predictions, *, block: int = BLOCK, halo: int = HALO
) -> Predictions:
    """`Postprocess.apply`, in memory that does not grow with the image: block by block where it is larger than one.

    Every block sees the objects up to `halo` pixels around it, and gives those whose box then has its centre in it. The
    result is that of the whole image unless a chain of overlaps, each changed by the one before, is longer than that.
    """
    height, width = predictions.height, predictions.width
    if max(height, width) <= block or predictions.rles is None:
        return postprocess.apply(predictions)
    boxes = predictions.boxes
    parts = []
    for y in range(0, height, block):
        for x in range(0, width, block):
            near = (boxes[:, 0] < x + block + halo) & (boxes[:, 2] > x - halo)
            near &= (boxes[:, 1] < y + block + halo) & (boxes[:, 3] > y - halo)
            if near.any():
                done = _in_window(postprocess, predictions.select(near))
                middle = (done.boxes[:, :2] + done.boxes[:, 2:]) / 2
                inside = (middle >= [x, y]) & (middle < [x + block, y + block])
                parts.append(done.select(inside.all(axis=1)))
    return _together(predictions, parts)


def _in_window(postprocess: Postprocess, predictions: Predictions) -> Predictions:
    """Apply to the smallest window with all objects, in place of the image."""
    places = rle_codec.bounding_boxes(predictions.rles)
    low = np.floor(np.minimum(predictions.boxes, places)[:, :2].min(axis=0)).astype(int)
    high = np.ceil(np.maximum(predictions.boxes, places)[:, 2:].max(axis=0)).astype(int)
    x0, y0 = (int(edge) for edge in np.maximum(low, 0))
    x1, y1 = min(int(high[0]), predictions.width), min(int(high[1]), predictions.height)
    inside = postprocess.apply(_moved(predictions, -x0, -y0, y1 - y0, x1 - x0))
    return _moved(inside, x0, y0, predictions.height, predictions.width)


def _moved(predictions: Predictions, right: int, down: int, height: int, width: int) -> Predictions:
    """The same objects in a window height x width whose origin lies elsewhere."""
    masks = rle_codec.read_runs(predictions.rles).moved(right, down, height, width)
    return dataclasses.replace(
        predictions,
        height=height,
        width=width,
        boxes=predictions.boxes + np.float32([right, down, right, down]),
        rles=rle_codec.encode_runs(masks),
    )


def _together(of: Predictions, parts: list[Predictions]) -> Predictions:
    if not parts:
        return of.select(np.zeros(len(of), dtype=bool))
    joined = dataclasses.replace(
        of,
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        classes=np.concatenate([part.classes for part in parts]),
        rles=[rle for part in parts for rle in part.rles],
        soft_masks=None if of.soft_masks is None else [mask for part in parts for mask in part.soft_masks],
    )
    return joined.select(np.argsort(-joined.scores, kind="stable"))
