"""Groups of detections that show one object: what their score, class and box is.

Symbols: N detections, K groups, w weights of members, s scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detseg.fusion.pool import Pool


@dataclass(frozen=True)
class Groups:
    """number: (N,) int64, the group of every detection, 0..K-1. leaders: (K,) int64, the best of each, ascending."""

    number: np.ndarray
    leaders: np.ndarray

    def __len__(self) -> int:
        return len(self.leaders)

    @classmethod
    def from_leaders(cls, leader: np.ndarray) -> Groups:
        """Make groups of the detections (N,) that have the same leader."""
        leaders, number = np.unique(leader, return_inverse=True)
        return cls(number.reshape(-1), leaders)


def best_of_members(pool: Pool, groups: Groups) -> tuple[Pool, Groups]:
    """Return the detections without those that are not the best of their member in their group."""
    keys = groups.number * (int(pool.members.max(initial=0)) + 1) + pool.members
    keep = np.sort(np.unique(keys, return_index=True)[1])
    # A leader is the best of its group, and therefore of its member.
    return pool.select(keep), Groups(groups.number[keep], np.searchsorted(keep, groups.leaders))


def found_by(pool: Pool, groups: Groups, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many different members (K,) int64 found each group, and the sum (K,) of their weights (M,)."""
    pairs = np.unique(groups.number * len(weights) + pool.members)
    group, member = np.divmod(pairs, len(weights))
    return np.bincount(group, minlength=len(groups)), np.bincount(group, weights[member], len(groups))


def group_scores(pool: Pool, groups: Groups, weights: np.ndarray, rule: str, agreement: float) -> np.ndarray:
    """Return the score (K,) float64, in [0, 1], of every group; the rules are explained at `FusionOptions.scores`.

    weights: (M,) of all members, those that found nothing included.
    """
    count = len(groups)
    total = weights.sum()
    sizes = np.bincount(groups.number, minlength=count)
    sums = np.bincount(groups.number, pool.weighted_scores, count)
    of_detections = np.bincount(groups.number, pool.weights, count)
    of_members = found_by(pool, groups, weights)[1]
    if rule == "max":
        scores = pool.weighted_scores[groups.leaders] / weights.max()
    elif rule == "mean":
        scores = sums / of_detections
    elif rule == "avg":
        scores = sums / sizes * np.minimum(sizes, len(weights)) / total
    elif rule == "box_and_model_avg":
        scores = sums / of_detections * of_members / total
    else:  # absent_model_aware_avg
        scores = sums / (of_detections + total - of_members)
    if agreement:
        scores = scores * (of_members / total) ** agreement
    return np.clip(scores, 0.0, 1.0)


def group_classes(pool: Pool, groups: Groups, rule: str) -> np.ndarray:
    """Return the class (K,) int64 of every group: of its "best" detection, or by "vote" of weighted scores."""
    best = pool.classes[groups.leaders]
    if rule == "best" or not len(pool):
        return best
    kinds = int(pool.classes.max()) + 1
    keys, inverse = np.unique(groups.number * kinds + pool.classes, return_inverse=True)
    votes = np.bincount(inverse.reshape(-1), pool.weighted_scores)
    group, kind = np.divmod(keys, kinds)
    # The last of a group in this order has most votes; of equal ones, the class of the best detection, then the lower.
    order = np.lexsort((-kind, kind == best[group], votes, group))
    last = np.append(np.diff(group[order]) > 0, True)
    return kind[order][last]
