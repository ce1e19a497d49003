"""How far a score could differ on other images of the kind: 95 % intervals by drawing the images anew.

The images are drawn with replacement, as many as there are, and the score is computed again, 10,000 times (percentile
bootstrap; Efron and Tibshirani, "An Introduction to the Bootstrap", 1993). Two models are compared on the same draws,
image by image: a difference is known better than either score where both find the same images hard. An interval tells
how far other images could differ, not how far another training could.

A score is a ratio of two sums over images. The mean over images has ones below, and zeros where an image has no score.

Symbols: R scores, I images, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detseg.evaluation.object_ap import ObjectCounts

DRAWS = 10_000
LEVEL = 0.95
# Images times draws that are held at once.
_AT_ONCE = 2_000_000


class ImageScores(NamedTuple):
    """R scores as parts of every image, (R, I) float64 both: above and below the line; NaN is nowhere."""

    above: np.ndarray
    below: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """Return the scores (R,) float64, NaN where they are not defined."""
        return _ratio(self.above.sum(axis=1), self.below.sum(axis=1))

    def of_images(self, chosen: np.ndarray) -> ImageScores:
        """Return the scores over some images, (I,) bool or indices."""
        return ImageScores(self.above[:, chosen], self.below[:, chosen])


ALL = "all"
# Name of all objects or of a class -> score -> value, and the ends of its interval.
Named = dict[str, dict[str, list[float | None]]]
NAMES = ("object_ap", "object_ap50", "object_ap75", "mean_f1", "precision", "recall", "foreground_iou")


def image_scores(counts: Sequence[ObjectCounts], row: int = 0) -> ImageScores:
    """Return the scores `NAMES`, as `summarize_objects` has them, of one row of the counts (0: all, 1 + k: class k)."""
    above, below = np.zeros((len(NAMES), len(counts))), np.zeros((len(NAMES), len(counts)))
    for index, image in enumerate(counts):
        if not image.occurs()[row]:
            continue
        precision, f1 = image.average_precision()[row], image.f1()[row]
        hits, alarms, misses = (int(part[row, 0]) for part in (image.hits, image.false_alarms, image.misses))
        foreground = image.foreground_iou()[row]
        above[:, index] = (precision.mean(), precision[0], precision[5], f1.mean(), hits, hits, foreground)
        below[:, index] = (1, 1, 1, 1, hits + alarms, hits + misses, 1)
    return ImageScores(above, below)


def intervals(scores: ImageScores, seed: int = 0) -> np.ndarray:
    """Return (R, 2) float64: the lower and upper end for each score; NaN where it is not defined, or of one image."""
    return _ends(_drawn(scores, seed), scores)


def paired_intervals(base: ImageScores, other: ImageScores, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return other minus base (R,), and the ends of its interval (R, 2); both of the same images in the same order."""
    ends = _ends(_drawn(other, seed) - _drawn(base, seed), base)
    return other.values - base.values, ends


def scores_with_intervals(counts: Sequence[ObjectCounts], class_names: Sequence[str], seed: int = 0) -> Named:
    """Return the scores of all objects ("all") and of each class: name -> score -> [value, low, high], None where not
    defined."""
    found: Named = {}
    for row, name in enumerate([ALL, *class_names]):
        scores = image_scores(counts, row)
        found[name] = _named(scores.values, intervals(scores, seed))
    return found


def differences_with_intervals(
    base: Sequence[ObjectCounts], other: Sequence[ObjectCounts], class_names: Sequence[str], seed: int = 0
) -> Named:
    """Return the scores of `other` minus those of `base`, of the same images in the same order, as
    `scores_with_intervals`."""
    found: Named = {}
    for row, name in enumerate([ALL, *class_names]):
        found[name] = _named(*paired_intervals(image_scores(base, row), image_scores(other, row), seed))
    return found


def _named(values: np.ndarray, ends: np.ndarray) -> dict[str, list[float | None]]:
    rows = np.column_stack([values, ends]).tolist()
    return {name: [None if np.isnan(one) else one for one in row] for name, row in zip(NAMES, rows, strict=True)}


def _drawn(scores: ImageScores, seed: int) -> np.ndarray:
    """Return the scores (R, D) of every draw. Of one seed, the images drawn depend on nothing but their number."""
    images = scores.above.shape[1]
    drawn = np.full((len(scores.above), DRAWS), np.nan)
    rng = np.random.default_rng(seed)
    step = max(_AT_ONCE // max(images, 1), 1)
    for start in range(0, DRAWS if images else 0, step):
        number = min(step, DRAWS - start)
        picks = rng.integers(0, images, (number, images)) + np.arange(number)[:, None] * images
        times = np.bincount(picks.ravel(), minlength=number * images).reshape(number, images).T.astype(np.float64)
        drawn[:, start : start + number] = _ratio(scores.above @ times, scores.below @ times)
    return drawn


def _ends(drawn: np.ndarray, scores: ImageScores) -> np.ndarray:
    ends = np.full((len(drawn), 2), np.nan)
    outside = 100 * (1 - LEVEL) / 2
    for row, values in enumerate(drawn):
        if np.count_nonzero(scores.below[row]) > 1 and not np.isnan(values).all():
            ends[row] = np.nanpercentile(values, [outside, 100 - outside])
    return ends


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
