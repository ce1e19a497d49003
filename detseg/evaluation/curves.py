"""Precision and recall as functions of the score threshold, given which predictions are hits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ScoreCurve(NamedTuple):
    """Precision and recall at every distinct score, from the highest to the lowest.

    thresholds, precision, recall: (S,) float64; S = 0 without objects, or without predictions that count.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """2 PR / (P + R), (S,) float64; 0 if both are 0."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)


def score_curve(scores: np.ndarray, is_hit: np.ndarray, objects: int, left_out: np.ndarray | None = None) -> ScoreCurve:
    """Return precision and recall over all images if predictions with score >= t are kept, for every t.

    scores: (N,). is_hit: (N,) bool, which must not depend on t, as for predictions without overlaps. objects: their
    number. left_out: (N,) bool, neither true nor false positives (inside crowd regions).
    """
    if left_out is not None:
        scores, is_hit = scores[~left_out | is_hit], is_hit[~left_out | is_hit]
    if not len(scores) or not objects:
        return ScoreCurve(*(np.zeros(0) for _ in ScoreCurve._fields))
    order = np.argsort(-scores, kind="stable")
    scores = scores[order].astype(np.float64)
    hits = np.cumsum(is_hit[order])
    # Equal scores enter together.
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    return ScoreCurve(scores[last], hits[last] / (last + 1), hits[last] / objects)
