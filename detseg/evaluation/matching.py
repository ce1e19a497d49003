"""Which prediction is which object: IoUs of the pairs that touch, and a one-to-one matching above a threshold.

Symbols: N predictions, M objects of the truth, P pairs, T IoU thresholds.

The competitions' metrics (Data Science Bowl 2018, Sartorius) call a prediction a hit when its IoU with an object is
greater than a threshold t >= 0.5. Where the masks of one side do not overlap, no object can be hit twice: two disjoint
predictions would each have to cover more than half of it. Files as they come may overlap; then the matching here is a
maximum one-to-one matching of the pairs with IoU > t. It depends neither on the order nor on the scores of the
predictions, a doubled object counts as one hit and one false alarm, and it equals the competitions' count whenever that
is unambiguous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

# 0.50, 0.55, ..., 0.95, each correctly rounded: an IoU of exactly 11/20 is then equal to, not greater than, 0.55.
IOU_THRESHOLDS = np.arange(10, 20) / 20
IOU_THRESHOLDS.flags.writeable = False

# IoUs are computed in tables of at most this many entries (8 bytes each) and kept as pairs.
TABLE_ENTRIES = 4_000_000


@dataclass(frozen=True)
class PairIous:
    """The P pairs of a prediction and an object that touch.

    prediction, truth: (P,) int64, 0-based, sorted by prediction, then truth. iou: (P,) float64 in (0, 1].
    """

    prediction: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    num_predictions: int
    num_truths: int

    def restricted(self, predictions: np.ndarray, truths: np.ndarray) -> PairIous:
        """Return the pairs among the chosen predictions (N,) bool and objects (M,) bool; indices stay as they are."""
        keep = predictions[self.prediction] & truths[self.truth]
        return PairIous(self.prediction[keep], self.truth[keep], self.iou[keep], self.num_predictions, self.num_truths)


def pair_ious(
    predictions: Sequence[Mapping[str, Any]], truths: Sequence[Mapping[str, Any]], above: float = 0.0
) -> PairIous:
    """Return the mask IoUs greater than `above` of all pairs of N predicted and M true masks, given as COCO RLEs.

    No mask is decoded: pycocotools intersects the run-lengths of those pairs alone whose boxes meet. The RLEs have one
    image size and have been checked (detseg's readers do): pycocotools' C code trusts what it is given.
    """
    count = len(truths)
    rows_each = max(1, TABLE_ENTRIES // max(count, 1))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(predictions) if count else 0, rows_each):
        # The table is Fortran-ordered; its transpose is searched in memory order, which is several times faster.
        table = coco_mask.iou(list(predictions[start : start + rows_each]), list(truths), [0] * count).T
        truth, prediction = np.nonzero(table > above)
        found.append((prediction + start, truth, table[truth, prediction]))
    if not found:
        nothing = np.zeros(0, dtype=np.int64)
        return PairIous(nothing, nothing.copy(), np.zeros(0), len(predictions), count)
    prediction, truth, iou = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((truth, prediction))
    return PairIous(prediction[order], truth[order], iou[order], len(predictions), count)


def largest_cover(predictions: Sequence[Mapping[str, Any]], regions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the largest fraction (N,) float64 in [0, 1] of every predicted mask that lies inside one of `regions`."""
    if not len(predictions) or not len(regions):
        return np.zeros(len(predictions))
    return coco_mask.iou(list(predictions), list(regions), [1] * len(regions)).max(axis=1)


def match_pairs(pairs: PairIous, threshold: float) -> np.ndarray:
    """Return for every prediction (N,) int64 the object it is matched with, or -1: a maximum one-to-one matching.

    Only pairs with IoU strictly greater than `threshold` are matched.
    """
    matched = np.full(pairs.num_predictions, -1, dtype=np.int64)
    keep = pairs.iou > threshold
    prediction, truth = pairs.prediction[keep], pairs.truth[keep]
    if not len(prediction):
        return matched
    if _all_different(prediction) and _all_different(truth):
        matched[prediction] = truth
        return matched
    graph = csr_matrix(
        (np.ones(len(prediction), dtype=np.int8), (prediction, truth)), shape=(pairs.num_predictions, pairs.num_truths)
    )
    return maximum_bipartite_matching(graph, perm_type="column").astype(np.int64)


def _all_different(values: np.ndarray) -> bool:
    return bool(np.bincount(values).max() == 1)
