"""Precision and recall by score threshold, from predictions of which each is known to be a hit or not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ScoreCurve(NamedTuple):
    """What is kept at every distinct score, from the highest to the lowest.

    thresholds, precision, recall: (S,) float64; S = 0 where there is no prediction that counts, or no object.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """2 PR / (P + R), (S,) float64; 0 where both are 0."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)


def score_curve(scores: np.ndarray, is_hit: np.ndarray, objects: int, left_out: np.ndarray | None = None) -> ScoreCurve:
    """Return precision and recall of all images together when predictions of score >= t are kept, for every t.

    scores: (N,). is_hit: (N,) bool, which must not depend on t, as where predictions do not overlap. objects: how many
    there are. left_out: (N,) bool, neither hits nor false alarms (inside of crowd regions).
    """
    if left_out is not None:
        scores, is_hit = scores[~left_out | is_hit], is_hit[~left_out | is_hit]
    if not len(scores) or not objects:
        return ScoreCurve(*(np.zeros(0) for _ in ScoreCurve._fields))
    order = np.argsort(-scores, kind="stable")
    scores = scores[order].astype(np.float64)
    hits = np.cumsum(is_hit[order])
    # Equal scores come in together.
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    return ScoreCurve(scores[last], hits[last] / (last + 1), hits[last] / objects)
