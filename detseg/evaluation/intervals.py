"""95 % confidence intervals of scores for other images of the same kind, by bootstrap over images.

Images are drawn with replacement, as many as there are, and the score is computed again, 10,000 times (percentile
bootstrap; Efron and Tibshirani, "An Introduction to the Bootstrap", 1993). Two models are compared on the same draws,
paired by image: their difference is known better than either score if both find the same images hard. The intervals
cover the variation between images, not that between trainings.

A score is a ratio of two sums over images. For a mean over images the denominators are 1, or 0 for images without a
score.

Symbols: R scores, I images, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detseg.evaluation.object_ap import ObjectCounts

DRAWS = 10_000
LEVEL = 0.95
# Images x draws that are processed at once.
_AT_ONCE = 2_000_000


class ImageScores(NamedTuple):
    """R scores as numerator `above` and denominator `below` per image, (R, I) float64; never NaN."""

    above: np.ndarray
    below: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """Return the scores (R,) float64, NaN if undefined."""
        return _ratio(self.above.sum(axis=1), self.below.sum(axis=1))

    def of_images(self, chosen: np.ndarray) -> ImageScores:
        """Return the same scores for a subset of images, (I,) bool or indices."""
        return ImageScores(self.above[:, chosen], self.below[:, chosen])


ALL = "all"
# "all" or class name -> score -> value, lower and upper end of its interval.
Named = dict[str, dict[str, list[float | None]]]
NAMES = ("object_ap", "object_ap50", "object_ap75", "mean_f1", "precision", "recall", "foreground_iou")


def image_scores(counts: Sequence[ObjectCounts], row: int = 0) -> ImageScores:
    """Return the scores `NAMES`of `summarize_objects` for one row of the counts (0: all, 1 + k: class k)."""
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
    """Return the interval ends (R, 2) float64 of each score; NaN if it is undefined, or defined on a single image."""
    return _ends(_drawn(scores, seed), scores)


def paired_intervals(base: ImageScores, other: ImageScores, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return other minus base (R,), and its interval (R, 2); both have the same images in the same order."""
    ends = _ends(_drawn(other, seed) - _drawn(base, seed), base)
    return other.values - base.values, ends


def scores_with_intervals(counts: Sequence[ObjectCounts], class_names: Sequence[str], seed: int = 0) -> Named:
    """Return the scores of all objects ("all") and of each class: name -> score -> [value, low, high], None if
    undefined."""
    found: Named = {}
    for row, name in enumerate([ALL, *class_names]):
        scores = image_scores(counts, row)
        found[name] = _named(scores.values, intervals(scores, seed))
    return found


def differences_with_intervals(
    base: Sequence[ObjectCounts], other: Sequence[ObjectCounts], class_names: Sequence[str], seed: int = 0
) -> Named:
    """Return the scores of `other` minus those of `base`, for the same images in the same order, in the form of
    `scores_with_intervals`."""
    found: Named = {}
    for row, name in enumerate([ALL, *class_names]):
        found[name] = _named(*paired_intervals(image_scores(base, row), image_scores(other, row), seed))
    return found


def _named(values: np.ndarray, ends: np.ndarray) -> dict[str, list[float | None]]:
    rows = np.column_stack([values, ends]).tolist()
    return {name: [None if np.isnan(one) else one for one in row] for name, row in zip(NAMES, rows, strict=True)}


def _drawn(scores: ImageScores, seed: int) -> np.ndarray:
    """Return the scores (R, D) of every draw. The draws depend only on the seed and the number of images."""
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
