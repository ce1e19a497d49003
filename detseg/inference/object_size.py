"""Estimate the diameter of an image's objects with the model itself, before predicting the image (INPUT.OBJECT_SIZE).

A network trained with objects of one size still finds most objects of a quarter to three times that size, with boxes of
the right size. So it first detects at a scale at which the objects of a typical image have 0.7 times the size in
training, which takes half the pixels; the confident boxes give the object size, and it detects again at the scale for
that size, until the size found agrees with the one expected. Only if few boxes are confident, other sizes are tried,
and the one with the strongest evidence is used. Large images are sampled in a few windows.

A "look" is one such detection at one scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from detseg.data.object_size import MOST_ENLARGED, image_diameter
from detseg.errors import OutputError
from detseg.models.base import Segmenter
from detseg.models.region_segmenter import RegionSegmenter
from detseg.structures.boxes import box_area, depth_in_window

# Lowest score of a box that counts.
CONFIDENT = 0.5
# Objects in a look have this times their size in training, which takes half the pixels. On validation images of DSB2018
# a factor of 0.5 doubled the errors, as did 1, with which looks at too large objects end too early.
COARSE = 0.7
# Octaves by which boxes may differ from the expected size without another look, and the largest number of looks.
AGREES, LOOKS = 0.5, 4
# A look is sure with this many boxes of this mean score; otherwise it is repeated with sizes multiplied by the others.
SURE_OBJECTS, SURE_SCORE, OTHER_SIZES = 3, 0.75, (4.0, 0.25)
# Edge of a window in network pixels; largest number of windows, and of objects after which no more are needed.
WINDOW, MOST_WINDOWS, ENOUGH = 320, 8, 24
# Smallest size of an image's shorter edge in a look, in network pixels.
_LEAST_EDGE = 32

# Returns the network's input (h, w, C) for a window (y0, x0, y1, x1) of the image, resized to (h, w).
Reader = Callable[[tuple[int, int, int, int], tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Look:
    """The objects found at one scale (network pixels per image pixel).

    boxes: (N, 4) float32 XYXY of confident ones, in image pixels, of any origin. scores: (N,). area: image pixels that
    were examined.
    """

    scale: float
    boxes: np.ndarray
    scores: np.ndarray
    area: float

    @property
    def evidence(self) -> float:
        """Number of objects times their mean score, per image pixel."""
        return float((self.scores - CONFIDENT).sum()) / self.area

    @property
    def is_sure(self) -> bool:
        return len(self.scores) >= SURE_OBJECTS and float(self.scores.mean()) >= SURE_SCORE

    @property
    def diameter(self) -> float:
        return float(np.median(np.sqrt(box_area(self.boxes))))


def estimate_diameter(
    segmenter: Segmenter, read: Reader, size: tuple[int, int], *, object_size: float, typical: float
) -> tuple[float, int]:
    """Estimate the diameter of the objects of an image, in its pixels.

    Args:
        segmenter: in evaluation mode, in the context of its number format.
        read: see `Reader`.
        size: (height, width) of the image.
        object_size: INPUT.OBJECT_SIZE of the training.
        typical: diameter in the training images, pixels: the start value, and the result if nothing is found.

    Returns:
        the diameter, and the number of objects it is based on; 0 if it is `typical`.
    """
    goal = COARSE * object_size

    def look(diameter: float) -> Look:
        return _look(segmenter, read, size, _within_limits(goal / diameter, size))

    def settle(found: Look) -> Look:
        """Repeat the look with the size just found, until the two agree."""
        for _ in range(LOOKS - 1):
            if not len(found.scores) or abs(math.log2(found.diameter * found.scale / goal)) <= AGREES:
                break
            again = look(found.diameter)
            if again.scale == found.scale or not len(again.scores):
                break
            found = again
        return found

    try:
        best = settle(look(typical))
        if not best.is_sure:
            others = [settle(look(typical * factor)) for factor in OTHER_SIZES]
            best = max([best, *others], key=lambda one: one.evidence)
    except OutputError:  # the prediction itself will raise it again, with the name of the image
        return typical, 0
    return image_diameter(best.boxes, typical), len(best.boxes)


def _within_limits(scale: float, size: tuple[int, int]) -> float:
    return min(max(scale, min(_LEAST_EDGE / min(size), 1.0)), MOST_ENLARGED)


def _look(segmenter: Segmenter, read: Reader, size: tuple[int, int], scale: float) -> Look:
    boxes, scores, area = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.float32)], 0.0
    count = 0
    for window in _windows(size, scale):
        y0, x0, y1, x1 = window
        area += (y1 - y0) * (x1 - x0)
        seen = (max(round((y1 - y0) * scale), 1), max(round((x1 - x0) * scale), 1))
        image = read(window, seen)
        if isinstance(segmenter, RegionSegmenter):
            (found,) = segmenter.cache_features([image], [(y1 - y0, x1 - x0)]).predict(masks=False)
        else:
            (found,) = segmenter.predict([image], [(y1 - y0, x1 - x0)])
        # Boxes cut by the side of a window are too small.
        depth = depth_in_window(found.boxes + np.float32([x0, y0, x0, y0]), (x0, y0, x1, y1), *size)
        kept = (depth * scale > 1) & (found.scores >= CONFIDENT)
        boxes.append(found.boxes[kept])
        scores.append(found.scores[kept])
        count += int(kept.sum())
        if count >= ENOUGH:
            break
    return Look(scale, np.concatenate(boxes), np.concatenate(scores), area)


def _windows(size: tuple[int, int], scale: float) -> Iterator[tuple[int, int, int, int]]:
    """Yield windows (y0, x0, y1, x1) spread over an image, distant ones first; the whole image if it fits."""
    edges = [
        np.linspace(0, edge, max(math.ceil(edge * scale / WINDOW - 0.5), 1) + 1).round().astype(int) for edge in size
    ]
    rows, columns = (len(one) - 1 for one in edges)
    total = rows * columns
    order = np.random.default_rng(0).permutation(total) if total > 1 else np.zeros(1, int)
    for index in order[:MOST_WINDOWS].tolist():
        row, column = divmod(index, columns)
        yield int(edges[0][row]), int(edges[1][column]), int(edges[0][row + 1]), int(edges[1][column + 1])
