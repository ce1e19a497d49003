"""Objects from seeds: the peaks of a distance map, separated by a watershed."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage
from skimage.measure import label as components
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed


def watershed_from_peaks(height: np.ndarray, mask: np.ndarray, depth: float) -> np.ndarray:
    """Return labels (H, W) int32, 1..N: the basin of each peak of a map (H, W) float32 inside a mask (H, W) bool.

    depth: two peaks are two objects if the lower one is at least this much above the saddle between them.
    """
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32)
    # Lower than any filled value, so that components of the mask are independent.
    outside = height[mask].min() - np.float32(depth) - 1
    height = np.where(mask, height, outside).astype(np.float32)
    # Reconstruction from `depth` below every peak gives one plateau for peaks that no deeper saddle separates.
    filled = reconstruction(height - np.float32(depth), height, method="dilation")
    seeds = components(local_maxima(filled) & mask, connectivity=2)
    labels = watershed(-height, seeds, mask=mask)
    # Components of the mask without a peak, where the map is flat.
    rest = components(mask & (labels == 0), connectivity=1)
    return np.where(rest > 0, rest + labels.max(), labels).astype(np.int32)


def edge_distances(labels: np.ndarray) -> np.ndarray:
    """Return the edge distance of every pixel of an object, 1 in the middle, (H, W) float32; 0 outside.

    The outline of an object has 1 / d, where d is the distance in pixels from outside to its middle.
    """
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        before, after = ([slice(None)] * 2 for _ in range(2))
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= differs
        edge[tuple(after)] |= differs
    inner = ((labels > 0) & ~edge).astype(np.uint8)
    # The zero padding is not an edge: the image ends there, not the object.
    distance = cv2.distanceTransform(inner, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # The last bit of OpenCV's square roots depends on memory alignment; the squares are integers.
    distance = np.sqrt(np.rint(distance * distance)) + np.float32(1)
    count = int(labels.max())
    largest = np.ones(count + 1, dtype=np.float32)
    if count:
        largest[1:] = ndimage.maximum(distance, labels, np.arange(1, count + 1))
    # An id without pixels has a maximum of 0, which is never used.
    return np.where(labels > 0, distance / np.maximum(largest, 1)[labels], 0).astype(np.float32)
