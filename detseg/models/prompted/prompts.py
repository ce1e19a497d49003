"""From objects to prompts: boxes, points inside, and negative points on neighbours.

Symbols: N objects, P points of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

from detseg.models.prompted.options import BOX, POINT, PromptOptions
from detseg.structures.mask_crop import MaskCrop

INSIDE, OUTSIDE, NONE = 1, 0, -10  # as numbered in transformers


@dataclass(frozen=True)
class Prompts:
    """points: (N, P, 2) float32 xy, or None. labels: (N, P) int64, INSIDE, OUTSIDE, or NONE for padding.

    boxes: (N, 4) float32 XYXY half-open, or None. Coordinates are pixels of the image: the centre of the first one is
    at (0.5, 0.5).
    """

    points: np.ndarray | None
    labels: np.ndarray | None
    boxes: np.ndarray | None

    def within(self, indices: np.ndarray, window: tuple[int, int, int, int]) -> Prompts:
        """Return the prompts of some objects in pixels of a window XYXY of the image; points outside become NONE."""
        x0, y0, x1, y1 = window
        points, labels, boxes = self.points, self.labels, self.boxes
        if points is not None:
            points, labels = points[indices], labels[indices]
            outside = ((points < (x0, y0)) | (points >= (x1, y1))).any(axis=2)
            labels = np.where(outside, NONE, labels)
            points = np.where(outside[..., None], 0, points - np.float32([x0, y0]))
        if boxes is not None:
            low, high = np.float32([0, 0, 0, 0]), np.float32([x1 - x0, y1 - y0] * 2)
            boxes = np.clip(boxes[indices] - np.float32([x0, y0, x0, y0]), low, high)
        return Prompts(points, labels, boxes)


def make_prompts(boxes: np.ndarray, crops: Sequence[MaskCrop] | None, options: PromptOptions) -> Prompts:
    """Return the prompts of N objects.

    boxes: (N, 4) XYXY. crops: their masks; None for boxes without masks, whose points are their centres. Points are as
    deep inside as possible, the first the deepest. Negative points are those of the nearest neighbours, within a
    distance of an object's own size, that are not in its mask.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    points = labels = None
    if POINT in options.kinds:
        if crops is None:
            inside = [((box[:2] + box[2:]) / 2)[None] for box in boxes]
        else:
            inside = [deepest_points(crop, options.points) for crop in crops]
        outside = _on_neighbours(boxes, crops, inside, options.negatives)
        own = [(INSIDE,) * len(one) + (OUTSIDE,) * len(other) for one, other in zip(inside, outside, strict=True)]
        longest = max(map(len, own), default=1)
        points = np.zeros((len(boxes), longest, 2), dtype=np.float32)
        labels = np.full((len(boxes), longest), NONE, dtype=np.int64)
        for index, numbers in enumerate(own):
            points[index, : len(numbers)] = np.concatenate([inside[index], outside[index]])
            labels[index, : len(numbers)] = numbers
    return Prompts(points, labels, boxes if BOX in options.kinds else None)


def deepest_points(crop: MaskCrop, count: int) -> np.ndarray:
    """Return up to `count` points (n, 2) float32 xy of an object: the centres of the pixels farthest from its edge.

    Points after the first are also far from it.
    """
    left = np.pad(crop.mask, 1).astype(np.uint8, order="C")
    found = np.zeros((0, 2), dtype=np.float32)
    while len(found) < count and left.any():
        distance = cv2.distanceTransform(left, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        found = np.append(found, np.float32([[crop.x0 + x - 0.5, crop.y0 + y - 0.5]]), axis=0)
        cv2.circle(left, (int(x), int(y)), max(int(distance[y, x]), 1), 0, thickness=-1)
    return found


def _on_neighbours(
    boxes: np.ndarray, crops: Sequence[MaskCrop] | None, inside: Sequence[np.ndarray], count: int
) -> list[np.ndarray]:
    """Return for every object the first points of its nearest neighbours, (n, 2) float32."""
    found = [np.zeros((0, 2), dtype=np.float32)] * len(boxes)
    known = [index for index, points in enumerate(inside) if len(points)]
    if not count or len(known) < 2:
        return found
    first = np.array([inside[index][0] for index in known])
    tree = cKDTree(first)
    reach = 2 * np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    for place, index in enumerate(known):
        # Some may be inside the object's own mask, so twice as many are queried.
        distances, near = tree.query(first[place], k=min(2 * count + 1, len(known)), distance_upper_bound=reach[index])
        near = near[np.isfinite(distances)]
        others = first[near[near != place]]
        is_own = _covers(others, boxes[index], None if crops is None else crops[index])
        found[index] = others[~is_own][:count]
    return found


def _covers(points: np.ndarray, box: np.ndarray, crop: MaskCrop | None) -> np.ndarray:
    """Return whether points (n, 2) are in an object's mask, or in its box without a mask, (n,) bool."""
    if crop is None:
        return ((points >= box[:2]) & (points < box[2:])).all(axis=1)
    x, y = (np.floor(points) - (crop.x0, crop.y0)).astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < crop.mask.shape[1]) & (y < crop.mask.shape[0])
    inside[inside] = crop.mask[y[inside], x[inside]]
    return inside
