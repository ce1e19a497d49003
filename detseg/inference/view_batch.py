"""Views of one image that are predicted together, and the mean of their masks.

All coordinates are pixels of the input image: views are inverted exactly on boxes, probabilities and run lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from detseg.inference.image_model import ImageModel
from detseg.inference.views import PLAIN, Size, View
from detseg.models.map_segmenter import MapSegmenter
from detseg.models.paste import paste_crops, quantise
from detseg.models.region_segmenter import CachedFeatures
from detseg.structures.predictions import Predictions
from detseg.structures.rle import encode_crops


def network_inputs(
    model: ImageModel, channels: np.ndarray, views: Sequence[View], sizes: Sequence[Sequence[Size]]
) -> Iterator[tuple[View, np.ndarray]]:
    """Yield every view with its network input (h, w, C); steps that views share are computed once.

    channels: see ImageModel.channels. sizes: (height, width) of every view at the network, before rotation; for some
    views after an intermediate size, from which it is made.
    """
    value_range = None
    resized: dict[Any, np.ndarray] = {}
    for view, steps in zip(views, sizes, strict=True):
        key = view.intensity_change, *steps
        if key not in resized:
            changed = channels
            if view.intensity_change != PLAIN.intensity_change:
                value_range = value_range or model.preprocess.value_range(channels)
                changed = view.intensity_change(channels, value_range)
            for size in steps:
                changed = model.resized(changed, size)
            resized[key] = changed
        yield view, np.ascontiguousarray(view.symmetry.array(resized[key]))


class ViewBatch:
    """Views of one image with one size at the network, predicted together.

    size: (height, width) of the image. keep: whether features are kept from the boxes for the masks.
    """

    def __init__(self, model: ImageModel, size: tuple[int, int]) -> None:
        self.model = model
        self.size = size
        self.views: list[View] = []
        self.arrays: list[np.ndarray] = []
        self.keep = False
        self._cached: CachedFeatures | None = None

    @property
    def pixels(self) -> int:
        """Network pixels of all views."""
        return sum(array.shape[0] * array.shape[1] for array in self.arrays)

    def detect(self, soft_masks: bool) -> list[Predictions]:
        """Return the boxes and masks found in each view, in pixels of the image."""
        with self.model.autocast():
            found = self.model.segmenter.predict(self.arrays, self._output_sizes(), soft_masks=soft_masks)
        return self._mapped_back(found)

    def maps(self) -> list[np.ndarray]:
        """Return the maps (M, H, W) of each view, at the size of the image."""
        segmenter = self.model.segmenter
        assert isinstance(segmenter, MapSegmenter)
        with self.model.autocast():
            found = segmenter.predict_maps(self.arrays, self._output_sizes())
        if (places := self.model.places) is not None:
            found = [segmenter.with_classes(maps, places) for maps in found]
        turned = zip(self.views, found, strict=True)
        return [segmenter.turned(maps, view.symmetry.inverse) for view, maps in turned]

    def boxes(self) -> list[Predictions]:
        """Return the boxes found in each view, in pixels of the image."""
        if not self.model.segmenter.takes_boxes:
            return [one.without_masks() for one in self.detect(soft_masks=False)]
        with self.model.autocast():
            found = self._features().predict(masks=False)
        return self._mapped_back(found)

    def add_masks(self, mean: MeanMasks) -> None:
        """Add the mask probabilities of each view for the boxes of `mean`."""
        boxes = mean.boxes
        if self.model.places is not None:
            boxes = dataclasses.replace(boxes, classes=np.argsort(self.model.places)[boxes.classes])
        mapped = [view.symmetry.predictions(boxes) for view in self.views]
        with self.model.autocast():
            masks = self._features().region_masks(mapped)
        for view, (probabilities, quality) in zip(self.views, masks, strict=True):
            cells_first = probabilities.transpose(1, 2, 0)
            mean.add(view.symmetry.inverse.array(cells_first).transpose(2, 0, 1), quality, self.model.weight)
        self._cached = None  # these features are not needed again

    def _output_sizes(self) -> list[tuple[int, int]]:
        return [view.symmetry.size(*self.size) for view in self.views]

    def _mapped_back(self, found: Sequence[Predictions]) -> list[Predictions]:
        if (places := self.model.places) is not None:
            found = [dataclasses.replace(one, classes=places[one.classes]) for one in found]
        return [view.symmetry.inverse.predictions(one) for view, one in zip(self.views, found, strict=True)]

    def _features(self) -> CachedFeatures:
        features = self._cached or self.model.segmenter.cache_features(self.arrays, self._output_sizes())
        self._cached = features if self.keep else None
        return features


class MeanMasks:
    """The weighted mean of mask probabilities over views, pasted once because pasting is linear; and of mask qualities
    over the models that predict them. boxes: clipped to the image.
    """

    def __init__(self, boxes: Predictions) -> None:
        self.boxes = boxes
        self.weight = self.quality_weight = 0.0
        self.quality_sum = np.zeros(len(boxes), dtype=np.float32)
        self.sums: dict[int, np.ndarray] = {}  # by mask resolution, which may differ between models

    def add(self, probabilities: np.ndarray, quality: np.ndarray | None, weight: float) -> None:
        """Add masks (N, s, s) float32 within the boxes, and their qualities (N,) float32."""
        if quality is not None:
            self.quality_weight += weight
            self.quality_sum += quality * np.float32(weight)
        self.weight += weight
        size = probabilities.shape[-1]
        self.sums[size] = self.sums.get(size, 0) + probabilities * np.float32(weight)

    def result(self, thresholds: np.ndarray) -> Predictions:
        """Return the boxes, in their order, with masks of the pixels with a mean probability of at least `thresholds`
        (N,), and with soft masks and qualities.
        """
        boxes, height, width = self.boxes.boxes, self.boxes.height, self.boxes.width
        pasted = [paste_crops(sums / np.float32(self.weight), boxes, height, width) for sums in self.sums.values()]
        crops, soft = [], []
        for threshold, (first, *others) in zip(thresholds, zip(*pasted, strict=True), strict=True):
            probability, x0, y0 = first
            probability = sum((crop for crop, _, _ in others), start=probability)
            crops.append((probability >= threshold, x0, y0))
            soft.append(quantise(probability))
        result = dataclasses.replace(self.boxes, rles=encode_crops(crops, height, width), soft_masks=soft)
        return (
            result.with_quality(self.quality_sum / np.float32(self.quality_weight)) if self.quality_weight else result
        )
