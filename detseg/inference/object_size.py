"""The diameter of an image's objects, found by the model itself before it predicts the image (INPUT.OBJECT_SIZE).

A network that was trained with objects of one size still finds most of them at a quarter to three times that size, and
its boxes are as large as the objects there. So it looks at the image with objects of 0.7 times the size of training
where the image is a typical one, at half of its pixels; the boxes that it is sure of say how large they are, and with
that it looks again, until what it finds has the size that was looked for. Only where it is sure of little, other sizes
are tried, and the one counts that gives the strongest evidence. Large images are looked at in a few windows.
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

# Scores from which on a box counts.
CONFIDENT = 0.5
# Looks are made for objects of the size of training times this, which takes half of the pixels. On validation images of
# DSB2018 a factor of 0.5 doubled the errors, as did 1, with which looks of objects too large end too early.
COARSE = 0.7
# Octaves by which boxes may differ from that size without another look, and looks at most.
AGREES, LOOKS = 0.5, 4
# A look is sure with so many boxes of this mean score; else it is repeated at sizes so many times as large and small.
SURE_OBJECTS, SURE_SCORE, OTHER_SIZES = 3, 0.75, (4.0, 0.25)
# Edge of a window, pixels at the network; how many are looked at, unless there are so many objects in fewer.
WINDOW, MOST_WINDOWS, ENOUGH = 320, 8, 24
# The shorter edge of an image is not shrunk further, pixels at the network.
_LEAST_EDGE = 32

# Gives the network's input (h, w, C), of the rows y0 to y1 and the columns x0 to x1 of the image, at a size (h, w).
Reader = Callable[[tuple[int, int, int, int], tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Look:
    """What was found at a scale (pixels at the network per pixel of the image).

    boxes: (N, 4) float32 XYXY of confident ones, in pixels of the image, of any origin. scores: (N,). area: pixels of
    the image that were looked at.
    """

    scale: float
    boxes: np.ndarray
    scores: np.ndarray
    area: float

    @property
    def evidence(self) -> float:
        """Number of objects times how sure they are, per pixel of the image."""
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
    """Estimate the diameter of the objects of an image, pixels of the image.

    Args:
        segmenter: in evaluation mode, within the context of its number format.
        read: see `Reader`.
        size: (height, width) of the image.
        object_size: INPUT.OBJECT_SIZE, at which it was trained.
        typical: of the training images, pixels: where to begin, and what counts where nothing is found.

    Returns:
        the diameter, and the number of objects that it is of; 0 where it is `typical`.
    """
    goal = COARSE * object_size

    def look(diameter: float) -> Look:
        return _look(segmenter, read, size, _within_limits(goal / diameter, size))

    def settle(found: Look) -> Look:
        """Look again with the size that was found until it is found again."""
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
    except OutputError:  # the prediction itself will meet it, and say which image it is
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
        # What the side of a window cuts is larger than it looks.
        depth = depth_in_window(found.boxes + np.float32([x0, y0, x0, y0]), (x0, y0, x1, y1), *size)
        kept = (depth * scale > 1) & (found.scores >= CONFIDENT)
        boxes.append(found.boxes[kept])
        scores.append(found.scores[kept])
        count += int(kept.sum())
        if count >= ENOUGH:
            break
    return Look(scale, np.concatenate(boxes), np.concatenate(scores), area)


def _windows(size: tuple[int, int], scale: float) -> Iterator[tuple[int, int, int, int]]:
    """(y0, x0, y1, x1) of windows spread over an image, far ones one after the other; the whole image where it fits."""
    edges = [
        np.linspace(0, edge, max(math.ceil(edge * scale / WINDOW - 0.5), 1) + 1).round().astype(int) for edge in size
    ]
    rows, columns = (len(one) - 1 for one in edges)
    total = rows * columns
    order = np.random.default_rng(0).permutation(total) if total > 1 else np.zeros(1, int)
    for index in order[:MOST_WINDOWS].tolist():
        row, column = divmod(index, columns)
        yield int(edges[0][row]), int(edges[1][column]), int(edges[0][row + 1]), int(edges[1][column + 1])
