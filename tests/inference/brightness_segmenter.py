"""A Segmenter whose answer is known and turns with the image: brightness is the probability of being an object."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from detseg.data.augment.resampling import resize_image
from detseg.models.base import Segmenter
from detseg.structures.predictions import Predictions, soft_mask_window
from detseg.structures.rle import encode_crop


class BrightnessSegmenter(Segmenter):
    """Objects are 8-connected regions of half brightness or more, at the size of the output.

    Score: the mean brightness of the object. Class: 0. `seen` holds the shape of every image that it was asked for, by
    batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[list[tuple[int, ...]]] = []

    def forward(self, samples):
        return {"loss": self.scale.sum() * len(samples)}

    def predict(self, images, *, output_sizes=None, boxes=None, classes=None, scores=None, soft_masks=False):
        self.seen.append([image.shape for image in images])
        sizes = output_sizes or [image.shape[:2] for image in images]
        answers = []
        for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
            bright = resize_image(image.astype(np.float32).mean(axis=2, keepdims=True), *size)[:, :, 0] / 255
            if boxes is None:
                answers.append(self._found(bright, soft_masks))
            else:
                given = [boxes[index], classes[index], np.ones(len(boxes[index])) if scores is None else scores[index]]
                answers.append(self._answer(bright, *given, soft_masks))
        return answers

    def _found(self, bright: np.ndarray, soft_masks: bool) -> Predictions:
        labels, count = ndimage.label(bright >= 0.5, structure=np.ones((3, 3)))
        slices = ndimage.find_objects(labels)
        boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in slices], dtype=np.float32).reshape(-1, 4)
        scores = np.array([bright[labels == index + 1].mean() for index in range(count)])
        return self._answer(bright, boxes, np.zeros(count), scores, soft_masks)

    @staticmethod
    def _answer(bright: np.ndarray, boxes, classes, scores, soft_masks: bool) -> Predictions:
        rles, soft = [], []
        for box in boxes:
            x0, y0, x1, y1 = soft_mask_window(box, *bright.shape)
            crop = np.rint(bright[y0:y1, x0:x1] * 255).astype(np.uint8)
            rles.append(encode_crop(crop >= 128, x0, y0, *bright.shape))
            soft.append(crop)
        return Predictions(0, "", *bright.shape, boxes, scores, classes, rles, soft if soft_masks else None)
