"""Pixel scores: how well a model separates classes of pixels, before objects are made from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detseg.inference.predictor import Predictor
from detseg.runs.distributed import Processes

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset


class PixelScores:
    """The scores of MapSegmenter.pixel_shares over a data set, from the maps from which a predictor makes objects.
    Tiled images are left out.

    Attributes:
        shares: the two pixel counts, (2,) int64, of every score, summed over the images so far.
    """

    def __init__(self, predictor: Predictor, dataset: CocoDataset) -> None:
        self.shares: dict[str, np.ndarray] = {}
        self._dataset = dataset
        self._detector = predictor.detector
        self._maps: list[np.ndarray] = []
        self._detector.on_maps = self._maps.append

    def add(self, index: int) -> None:
        """Count the pixels of image number `index`, which must be the last one predicted."""
        for maps in self._maps:
            layers, _, ignore = self._dataset.labels(index)
            for name, counts in self._detector.decoder.pixel_shares(maps, layers, ignore).items():
                self.shares[name] = self.shares.get(name, 0) + counts
        self._maps.clear()

    def gathered(self, processes: Processes) -> dict[str, float]:
        """Return every score over the images of all processes, in the main process; 1 for a class that is neither
        present nor predicted.
        """
        totals: dict[str, np.ndarray] = {}
        for own in processes.gather(self.shares):
            for name, counts in own.items():
                totals[name] = totals.get(name, 0) + counts
        return {name: float(part / whole) if whole else 1.0 for name, (part, whole) in totals.items()}
