"""Scenes for tiles: bright cells on a dark image whose objects are known, and the comparison of answers."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions


def draw_disks(height: int, width: int, places) -> np.ndarray:
    """Disks (y, x, radius) on black, (height, width, 1) uint8; they must not touch."""
    image = np.zeros((height, width), dtype=np.uint8)
    for y, x, radius in places:
        y0, y1 = max(int(y - radius), 0), min(int(y + radius) + 2, height)
        x0, x1 = max(int(x - radius), 0), min(int(x + radius) + 2, width)
        rows, columns = np.mgrid[y0:y1, x0:x1]
        image[y0:y1, x0:x1][(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = 255
    return image[:, :, None]


def components(image: np.ndarray) -> np.ndarray:
    """(H, W) labels of the 4-connected bright regions: the untiled answer."""
    return ndimage.label(image[:, :, 0] > 127)[0]


def label_image(predictions: Predictions) -> np.ndarray:
    """(H, W): the number of the prediction, 0 for none; no pixel may be in two."""
    labels = np.zeros((predictions.height, predictions.width), dtype=np.int64)
    for number, (crop, x0, y0) in enumerate(rle_codec.decode_crops(predictions.rles), start=1):
        window = labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
        assert not window[crop].any(), f"object {number} lies on another"
        window[crop] = number
    return labels


def assert_same_objects(predictions: Predictions, expected: np.ndarray) -> None:
    """The same partition of the pixels, whatever the numbers."""
    found = label_image(predictions)
    assert len(predictions) == expected.max(), f"{len(predictions)} objects instead of {expected.max()}"
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()], axis=1), axis=0)
    assert len(pairs) == len(np.unique(expected)), "pixels differ"
    boxes = rle_codec.bounding_boxes(predictions.rles)
    assert np.array_equal(boxes, predictions.boxes), "boxes do not fit the masks"
