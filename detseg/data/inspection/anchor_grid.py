"""How well anchors on the grids of a feature pyramid meet given boxes.

N boxes, A shapes of anchors. Shapes are (width, height) in pixels of the image at the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Strides of p2 to p6.
STRIDES = (4, 8, 16, 32, 64)
# IoU from which on an anchor is told to find an object, MODEL.RPN.IOU_THRESHOLDS, and the usual one of scores.
HIGH_IOU, LOW_IOU = 0.7, 0.5
_BOXES_TOGETHER = 65536


@dataclass(frozen=True)
class Anchors:
    """As MODEL.ANCHOR_GENERATOR: sizes (square roots of areas) of every level, and ratios (height by width) of all.

    strides: of the levels.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    strides: tuple[int, ...] = STRIDES

    def shapes(self) -> list[tuple[int, float, float]]:
        """Return (stride, width, height) of each anchor, by Detectron2's rule: width = sqrt(size^2 / ratio)."""
        return [
            (stride, float(np.sqrt(size * size / ratio)), float(np.sqrt(size * size * ratio)))
            for stride, sizes in zip(self.strides, self.sizes, strict=True)
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
    result = np.zeros(len(boxes), dtype=np.float64)
    for start in range(0, len(boxes), _BOXES_TOGETHER):
        part = slice(start, start + _BOXES_TOGETHER)
        result[part] = _best_iou(boxes[part].astype(np.float64), image_sizes[part], anchors)
    return result


def _best_iou(boxes: np.ndarray, image_sizes: np.ndarray, anchors: Anchors) -> np.ndarray:
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    best = np.zeros(len(boxes))
    for stride in sorted(set(anchors.strides)):
        last = np.ceil(image_sizes[:, ::-1] / stride) - 1
        offset = np.abs(np.clip(np.rint(centres / stride), 0, last) * stride - centres)
        for own, width, height in anchors.shapes():
            if own != stride:
                continue
            shape = np.array([width, height])
            # Two intervals with their centres `offset` apart.
            common = np.minimum(np.minimum(sides, shape), np.maximum((sides + shape) / 2 - offset, 0))
            shared = common[:, 0] * common[:, 1]
            best = np.maximum(best, shared / (sides.prod(axis=1) + width * height - shared))
    return best


def recall(ious: np.ndarray, threshold: float) -> float:
    """Return the share of boxes whose best anchor reaches `threshold`; NaN without a box."""
    return float((ious >= threshold).mean()) if len(ious) else float("nan")


def recall_curve(ious: np.ndarray, thresholds: Sequence[float]) -> list[float]:
    return [recall(ious, threshold) for threshold in thresholds]
