"""How well a model tells classes of pixels, before objects are made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detseg.inference.predictor import Predictor
from detseg.runs.distributed import Processes

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset


class PixelScores:
    """The IoU of every class of pixels of MapSegmenter.pixel_overlaps over a data set, from the maps that a predictor
    makes objects of. Images that are predicted in tiles are left out.

    Attributes:
        overlaps: pixels in both and in either, (2,) int64, by class, over all images so far.
    """

    def __init__(self, predictor: Predictor, dataset: CocoDataset) -> None:
        self.overlaps: dict[str, np.ndarray] = {}
        self._dataset = dataset
        self._detector = predictor.detector
        self._maps: list[np.ndarray] = []
        self._detector.on_maps = self._maps.append

    def add(self, index: int) -> None:
        """Count the pixels of image number `index`, which was predicted last."""
        for maps in self._maps:
            layers, _, ignore = self._dataset.labels(index)
            for name, counts in self._detector.decoder.pixel_overlaps(maps, layers, ignore).items():
                self.overlaps[name] = self.overlaps.get(name, 0) + counts
        self._maps.clear()

    def gathered(self, processes: Processes) -> dict[str, float]:
        """Return iou_NAME of every class over the images of all processes, in the main one; 1 where a class is neither
        there nor predicted.
        """
        totals: dict[str, np.ndarray] = {}
        for part in processes.gather(self.overlaps):
            for name, counts in part.items():
                totals[name] = totals.get(name, 0) + counts
        return {f"iou_{name}": float(both / either) if either else 1.0 for name, (both, either) in totals.items()}
