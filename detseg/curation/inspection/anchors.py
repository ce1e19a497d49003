"""How well anchors on the grids of a feature pyramid meet given boxes.

N boxes, A shapes of anchors. Shapes are (width, height) in pixels of the image at the network.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

# Strides of p2 to p6.
STRIDES = (4, 8, 16, 32, 64)
# IoU from which on RPN takes an anchor for an object, MODEL.RPN.IOU_THRESHOLDS, and the usual one of scores.
HIGH_IOU, LOW_IOU = 0.7, 0.5
# Recalls at these say how good anchors are: of what RPN can still learn, the usual one, and that of its own limit.
FOUND_FROM = (0.3, LOW_IOU, HIGH_IOU)
# Enough boxes to choose by; more say the same.
MOST_BOXES = 20000
RATIOS = 3
# Of k-means.
_ROUNDS, _STARTS = 100, 5
# A second size a level doubles the anchors: taken where so much more is found.
_WORTH = 0.05


@dataclass(frozen=True)
class Anchors:
    """As MODEL.ANCHOR_GENERATOR: sizes (square roots of areas) of every level, and ratios (height by width) of all."""

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]

    def shapes(self) -> list[tuple[int, float, float]]:
        """Return (stride, width, height) of each anchor, by Detectron2's rule: width = sqrt(size^2 / ratio)."""
        return [
            (stride, float(np.sqrt(size * size / ratio)), float(np.sqrt(size * size * ratio)))
            for stride, sizes in zip(STRIDES, self.sizes, strict=True)
            for size in sizes
            for ratio in self.ratios
        ]


def best_iou(boxes: np.ndarray, image_sizes: np.ndarray, anchors: Anchors) -> np.ndarray:
    """Return for each box its largest IoU with an anchor at a place of its level's grid, (N,) float64.

    Anchors are centred at multiples of the stride (MODEL.ANCHOR_GENERATOR.OFFSET 0) from 0 on, as many as a level has.
    Of anchors of one shape that one meets a box best whose centre is next to that of the box, in x and in y.

    Args:
        boxes: (N, 4) XYXY. image_sizes: (N, 2) height, width of their images. Both in pixels at the network.
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
        # Two intervals with their centres so far apart.
        common = np.minimum(np.minimum(sides, shape), np.maximum((sides + shape) / 2 - offsets[stride], 0))
        shared = common[:, 0] * common[:, 1]
        best = np.maximum(best, shared / (sides.prod(axis=1) + width * height - shared))
    return best


def recall(ious: np.ndarray, threshold: float) -> float:
    """Return the share of boxes whose best anchor reaches `threshold`; NaN without a box."""
    return float((ious >= threshold).mean()) if len(ious) else float("nan")


def fitness(ious: np.ndarray) -> float:
    """Return how good anchors are: the mean recall at IoU 0.3, 0.5 and 0.7, for objects count that none fits well."""
    return float(np.mean([recall(ious, threshold) for threshold in FOUND_FROM]))


# Anchors that suit given boxes: k-means with the distance 1 - IoU (Redmon and Farhadi 2017, section 2), in a pyramid.
#
# N boxes; shapes are (width, height), compared as if they had one centre.


def shape_iou(shapes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of shapes (N, 2) with others (K, 2), one centre assumed: (N, K) float64."""
    shared = np.minimum(shapes[:, None], others[None]).prod(axis=2)
    return shared / (shapes.prod(axis=1)[:, None] + others.prod(axis=1)[None] - shared)


def cluster_shapes(shapes: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Cluster shapes (N, 2) by k-means with the distance 1 - IoU.

    Of several starts (the first spread over the areas, the others drawn) the best one counts.

    Returns:
        the means (k, 2), by area, k = `count` or as many different shapes as there are; and the mean IoU of a shape
        with its nearest.
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
            # A mean that nothing is near to moves to the shape that is met worst.
            means[number] = own.mean(axis=0) if len(own) else shapes[ious.max(axis=1).argmin()]
    return means


def choose_ratios(shapes: np.ndarray) -> tuple[float, ...]:
    """Return `RATIOS` ratios height by width, ascending: the clusters of shapes (N, 2) brought to one area.

    The longest and the flattest twentieth count as the next ones: slivers at borders must not get an anchor of their
    own.
    """
    ratio = np.log(shapes[:, 1] / shapes[:, 0])
    ratio = np.clip(ratio, *np.quantile(ratio, (0.05, 0.95)))
    means, _ = cluster_shapes(np.exp(np.stack([-ratio, ratio], axis=1) / 2), RATIOS)
    ratios = sorted({round(float(height / width), 2) for width, height in means})
    return tuple(ratios) or (0.5, 1.0, 2.0)


def choose_anchors(boxes: np.ndarray, image_sizes: np.ndarray) -> Anchors:
    """Choose sizes and ratios for a pyramid: those whose anchors on the grids meet the boxes best (`fitness`).

    Candidates are the clusters of the boxes' sizes, one or two a level, and ladders of sizes that grow by a factor; no
    size is below twice its level's stride, where the grid's gaps would cost more than a better shape brings.

    Args:
        boxes: (N, 4) XYXY, N > 0. image_sizes: (N, 2) height, width. Both at the network.
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
        while len(clusters) < count:  # where there are too few different sizes, larger ones follow
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
