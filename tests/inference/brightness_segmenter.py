"""A RegionSegmenter with a known answer that turns with the image: brightness is the probability of an object."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from detseg.data.augment.resampling import resize_box, resize_image
from detseg.models.paste import paste_masks
from detseg.models.region_segmenter import RegionSegmenter
from detseg.structures.predictions import Predictions

# Of a mask, along each side.
CELLS = 28


class BrightnessSegmenter(RegionSegmenter):
    """Objects are 8-connected regions of half brightness or more, at the size of the output.

    Score: the mean brightness of the object. Class: 0. `seen` holds the shape of every image whose features were
    computed, by batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[list[tuple[int, ...]]] = []

    def forward(self, samples):
        return {"loss": self.scale.sum() * len(samples)}

    def cache_features(self, images, output_sizes=None):
        self.seen.append([image.shape for image in images])
        return Brightness(images, output_sizes or [image.shape[:2] for image in images])


class Brightness:
    """Stands for CachedFeatures: the brightness (H, W) of every image at the size of its output, from 0 to 1."""

    def __init__(self, images, sizes) -> None:
        gray = [image.astype(np.float32).mean(axis=2, keepdims=True) for image in images]
        self.bright = [resize_image(image, *size)[:, :, 0] / 255 for image, size in zip(gray, sizes, strict=True)]

    def predict(self, *, masks=True, soft_masks=False, keep=None):
        found = [self._found(bright, soft_masks) for bright in self.bright]
        return found if keep is None else [one.select(keep(one.scores, one.classes)) for one in found]

    def predict_masks(self, boxes, *, soft_masks=False):
        return [
            _answer(bright, given.boxes, given.classes, given.scores, soft_masks)
            for bright, given in zip(self.bright, boxes, strict=True)
        ]

    def region_masks(self, boxes):
        return [(_masks(bright, given.boxes), None) for bright, given in zip(self.bright, boxes, strict=True)]

    @staticmethod
    def _found(bright: np.ndarray, soft_masks: bool) -> Predictions:
        labels, count = ndimage.label(bright >= 0.5, structure=np.ones((3, 3)))
        slices = ndimage.find_objects(labels)
        boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in slices], dtype=np.float32).reshape(-1, 4)
        scores = np.array([bright[labels == index + 1].mean() for index in range(count)])
        return _answer(bright, boxes, np.zeros(count), scores, soft_masks)


def _masks(bright: np.ndarray, boxes) -> np.ndarray:
    """The brightness within each box, (N, CELLS, CELLS) float32."""
    windows = [tuple(box[[1, 0, 3, 2]].tolist()) for box in boxes]
    masks = [resize_box(bright[:, :, None], window, CELLS, CELLS)[:, :, 0] for window in windows]
    return np.array(masks, dtype=np.float32).reshape(-1, CELLS, CELLS)


def _answer(bright: np.ndarray, boxes, classes, scores, soft_masks: bool) -> Predictions:
    height, width = bright.shape
    boxes = np.clip(boxes, 0, np.float32([width, height, width, height]))
    rles, soft = paste_masks(_masks(bright, boxes), boxes, *bright.shape, soft_masks=soft_masks)
    return Predictions(0, "", *bright.shape, boxes, scores, classes, rles, soft)
