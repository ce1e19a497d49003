"""How well the anchors on the grids of a feature pyramid fit given boxes.

N boxes, A anchor shapes. Shapes are (width, height) in pixels at network scale.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

# Strides of p2 to p6.
STRIDES = (4, 8, 16, 32, 64)
# IoU at which RPN assigns an anchor to an object, MODEL.RPN.IOU_THRESHOLDS, and the common one of scores.
HIGH_IOU, LOW_IOU = 0.7, 0.5
# Recall at these IoUs measures anchors: enough for RPN to learn, the common threshold, and RPN's own.
FOUND_FROM = (0.3, LOW_IOU, HIGH_IOU)
# Enough boxes to choose by; more would not change the result.
MOST_BOXES = 20000
RATIOS = 3
# Of k-means.
_ROUNDS, _STARTS = 100, 5
# A second size per level doubles the anchors: used if recall gains this much.
_WORTH = 0.05


@dataclass(frozen=True)
class Anchors:
    """As MODEL.ANCHOR_GENERATOR: sizes (square roots of areas) per level, and aspect ratios (height / width) of all."""

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]

    def shapes(self) -> list[tuple[int, float, float]]:
        """Return (stride, width, height) of each anchor, by Detectron2's formula width = sqrt(size^2 / ratio)."""
        return [
            (stride, float(np.sqrt(size * size / ratio)), float(np.sqrt(size * size * ratio)))
            for stride, sizes in zip(STRIDES, self.sizes, strict=True)
            for size in sizes
            for ratio in self.ratios
        ]


def best_iou(boxes: np.ndarray, image_sizes: np.ndarray, anchors: Anchors) -> np.ndarray:
    """Return for each box its largest IoU with an anchor on the grid of any level, (N,) float64.

    Anchors are centred at multiples of the stride (MODEL.ANCHOR_GENERATOR.OFFSET 0), from 0 to the size of the level.
    Among anchors of one shape, the best is the one with its centre nearest to that of the box, in x and in y.

    Args:
        boxes: (N, 4) XYXY. image_sizes: (N, 2) height, width of their images. Both in pixels at network scale.
    """
    boxes = boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    best = np.zeros(len(boxes))
    offsets = {}
    for stride in STRIDES:
        last = np.ceil(image_sizes[:, ::-1] / stride) - 1
        offsets[stride] = np.abs(np.clip(np.rint(centres / stride), 0, last) * stride - centres)
    for stride, width, height in anchors.shapes():
        shape = np.array([width, height])
        # Intersection of two intervals, given the distance of their centres.
        common = np.minimum(np.minimum(sides, shape), np.maximum((sides + shape) / 2 - offsets[stride], 0))
        shared = common[:, 0] * common[:, 1]
        best = np.maximum(best, shared / (sides.prod(axis=1) + width * height - shared))
    return best


def recall(ious: np.ndarray, threshold: float) -> float:
    """Return the fraction of boxes whose best anchor reaches `threshold`; NaN without boxes."""
    return float((ious >= threshold).mean()) if len(ious) else float("nan")


def fitness(ious: np.ndarray) -> float:
    """Return the mean recall at IoU 0.3, 0.5 and 0.7, which also counts objects that no anchor fits well."""
    return float(np.mean([recall(ious, threshold) for threshold in FOUND_FROM]))


# Anchors for given boxes: k-means with the distance 1 - IoU (Redmon and Farhadi 2017, section 2), in a pyramid.
#
# N boxes; shapes are (width, height), compared as if they had the same centre.


def shape_iou(shapes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of shapes (N, 2) with others (K, 2) at the same centre: (N, K) float64."""
    shared = np.minimum(shapes[:, None], others[None]).prod(axis=2)
    return shared / (shapes.prod(axis=1)[:, None] + others.prod(axis=1)[None] - shared)


def cluster_shapes(shapes: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Cluster shapes (N, 2) by k-means with the distance 1 - IoU.

    The best of several starts is taken (the first spread over the areas, the others random).

    Returns:
        the means (k, 2), sorted by area, with k = `count` or the number of distinct shapes if smaller; and the mean IoU
        of the shapes with their nearest mean.
    """
    different = np.unique(shapes, axis=0)
    count = min(count, len(different))
    if not count:
        return np.zeros((0, 2)), float("nan")
    rng = np.random.default_rng(0)
    by_area = shapes[np.argsort(shapes.prod(axis=1), kind="stable")]
    best, best_fit = different[:count], -1.0
    for start in range(_STARTS):
        places = (np.arange(count) + 0.5) / count if start == 0 else rng.random(count)
        means = by_area[(places * len(by_area)).astype(np.int64)].astype(np.float64)
        means = _settle(shapes, means)
        fit = float(shape_iou(shapes, means).max(axis=1).mean())
        if fit > best_fit + 1e-9:
            best, best_fit = means, fit
    return best[np.argsort(best.prod(axis=1), kind="stable")], best_fit


def _settle(shapes: np.ndarray, means: np.ndarray) -> np.ndarray:
    owner = np.full(len(shapes), -1)
    for _ in range(_ROUNDS):
        ious = shape_iou(shapes, means)
        nearest = ious.argmax(axis=1)
        if np.array_equal(nearest, owner):
            break
        owner = nearest
        for number in range(len(means)):
            own = shapes[owner == number]
            # A mean without members moves to the shape with the worst fit.
            means[number] = own.mean(axis=0) if len(own) else shapes[ious.max(axis=1).argmin()]
    return means


def choose_ratios(shapes: np.ndarray) -> tuple[float, ...]:
    """Return `RATIOS` aspect ratios (height / width), ascending: the clusters of shapes (N, 2) scaled to equal area.

    The longest and the flattest twentieth are clipped: slivers at borders must not get an anchor of their own.
    """
    ratio = np.log(shapes[:, 1] / shapes[:, 0])
    ratio = np.clip(ratio, *np.quantile(ratio, (0.05, 0.95)))
    means, _ = cluster_shapes(np.exp(np.stack([-ratio, ratio], axis=1) / 2), RATIOS)
    ratios = sorted({round(float(height / width), 2) for width, height in means})
    return tuple(ratios) or (0.5, 1.0, 2.0)


def choose_anchors(boxes: np.ndarray, image_sizes: np.ndarray) -> Anchors:
    """Choose sizes and ratios for a pyramid, those whose anchors on the grids fit the boxes best (`fitness`).

    Candidates are the clusters of the boxes' sizes, one or two per level, and geometric series of sizes. No size is
    below twice the stride of its level, where the gaps of the grid would cost more than a better shape gains.

    Args:
        boxes: (N, 4) XYXY, N > 0. image_sizes: (N, 2) height, width. Both at network scale.
    """
    if len(boxes) > MOST_BOXES:
        rows = np.random.default_rng(0).choice(len(boxes), MOST_BOXES, replace=False)
        boxes, image_sizes = boxes[rows], image_sizes[rows]
    shapes = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    ratios = choose_ratios(shapes)
    sides = np.sqrt(shapes.prod(axis=1))
    best: dict[int, tuple[float, Anchors]] = {}
    for per_level, quantiles, factors in (
        (1, (0.02, 0.05, 0.1, 0.2, 0.35, 0.5), (1.5, 2.0)),
        (2, (0.02, 0.05, 0.1, 0.2, 0.35), (1.25, 1.41, 1.6)),
    ):
        count = per_level * len(STRIDES)
        clusters = list(cluster_shapes(np.repeat(sides[:, None], 2, axis=1), count)[0][:, 0])
        while len(clusters) < count:  # with too few distinct sizes, larger ones are added
            clusters.append(clusters[-1] * 2 ** (1 / per_level))
        starts = itertools.product(np.quantile(sides, quantiles), factors)
        for sizes in [clusters, *(first * factor ** np.arange(count) for first, factor in starts)]:
            levels = np.maximum(np.reshape(sizes, (-1, per_level)), 2.0 * np.array(STRIDES)[:, None])
            rounded = tuple(tuple(round(size, 0 if size >= 10 else 1) for size in level) for level in levels.tolist())
            anchors = Anchors(rounded, ratios)
            found = fitness(best_iou(boxes, image_sizes, anchors))
            if per_level not in best or found > best[per_level][0]:
                best[per_level] = found, anchors
    return best[2][1] if best[2][0] >= best[1][0] + _WORTH else best[1][1]
