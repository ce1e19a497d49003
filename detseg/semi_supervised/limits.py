"""The score limits above which objects are sure, and above which they are ignored: given, or chosen.

Symbols: K classes, M objects of many images, G groups of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.evaluation.intervals import ImageScores, intervals
from detseg.semi_supervised.gates import Gates
from detseg.tuning.thresholds import short_number_between

# A limit above all scores, for a class without sure objects.
NEVER = 2.0
# Number of parts for cross-validation of a limit if the images have no folds.
PARTS = 5


@dataclass(frozen=True)
class Pool:
    """M objects of many images, with the result of all gates but the score.

    images, groups, classes: (M,) int64, indices of image, group and class. scores: (M,) float64. sure, refused: (M,)
    bool. hits: (M,) bool, whether it hits a labelled object, if known.
    """

    images: np.ndarray
    groups: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    sure: np.ndarray
    refused: np.ndarray
    hits: np.ndarray | None = None

    @classmethod
    def join(cls, parts: Sequence[Mapping[str, Any]]) -> Pool:
        """Join the objects of images: one mapping per image, of arrays (N,) or one value for all of its objects."""
        columns: dict[str, list[np.ndarray]] = {}
        for part in parts:
            for name, value in part.items():
                columns.setdefault(name, []).append(np.broadcast_to(value, len(part["scores"])))
        kinds = {
            "images": int,
            "groups": int,
            "classes": int,
            "scores": float,
            "sure": bool,
            "refused": bool,
            "hits": bool,
        }
        nothing = {name: [np.zeros(0, dtype=kind)] for name, kind in kinds.items()}
        return cls(**{name: np.concatenate(values) for name, values in (columns or nothing).items()})


@dataclass(frozen=True)
class ScoreLimits:
    """sure, ignore: (G, K) float64, the limits of every group and class; one row applies to all groups.

    rows: summary of each, plain values by column.
    """

    sure: np.ndarray
    ignore: np.ndarray
    rows: list[dict[str, Any]] = field(default_factory=list)

    def of(self, group: int, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits for objects of classes (N,) in an image of a group: sure from, ignored from, (N,) both."""
        row = group if len(self.sure) > 1 else 0
        return self.sure[row][classes], self.ignore[row][classes]


def fixed_limits(gates: Gates, names: Sequence[str]) -> ScoreLimits:
    """Return the limits given by the gates."""
    classes = np.arange(len(names))
    sure, ignore = gates.values("score", classes), gates.values("ignore_score", classes)
    rows = [
        {"class": name, "sure_from": high, "ignore_from": low}
        for name, high, low in zip(names, sure.tolist(), ignore.tolist(), strict=True)
    ]
    return ScoreLimits(sure[None], ignore[None], rows)


def limits_by_counts(
    pool: Pool,
    images: np.ndarray,
    rates: np.ndarray,
    gates: Gates,
    names: Sequence[str],
    groups: Sequence[str],
) -> ScoreLimits:
    """Return limits that give as many sure objects as the labelled images have; none is below `ignore_score`.

    pool: of the unlabelled images. images: (G,) int64, number of these per group. rates: (G, K) float64, mean number of
    objects per labelled image.
    """
    floors = gates.values("ignore_score", np.arange(len(names)))
    sure, ignore = np.full(rates.shape, NEVER), np.full(rates.shape, NEVER)
    rows = []
    for group, group_name in enumerate(groups):
        for index, name in enumerate(names):
            own = (pool.groups == group) & (pool.classes == index)
            wanted = rates[group, index] * images[group]
            passing = pool.scores[own & pool.sure]
            sure[group, index] = _limit_of_best(passing, wanted, floors[index])
            more = _limit_of_best(pool.scores[own & ~pool.refused], wanted * gates.ignore_counts, floors[index])
            ignore[group, index] = min(more, sure[group, index])
            rows.append(
                {
                    "group": group_name,
                    "class": name,
                    "sure_from": _limit(sure[group, index]),
                    "ignore_from": _limit(ignore[group, index]),
                    "wanted_per_image": float(rates[group, index]),
                    "reached_per_image": float((passing >= sure[group, index]).sum() / max(images[group], 1)),
                }
            )
    return ScoreLimits(sure, ignore, rows)


def _limit_of_best(scores: np.ndarray, wanted: float, floor: float) -> float:
    """Return the limit reached by the `wanted` best of the scores (M,), rounded to whole objects; at least `floor`."""
    count = int(wanted + 0.5)
    if not count:
        return NEVER
    ranked = np.sort(scores)[::-1]
    if count >= len(ranked):
        return floor
    return max(short_number_between(ranked[count], ranked[count - 1]), floor)


def limits_by_precision(
    pool: Pool, objects: np.ndarray, folds: Sequence[Any], gates: Gates, names: Sequence[str]
) -> ScoreLimits:
    """Return limits above which the desired fractions of objects are hits, with an estimate of their precision.

    The reported precision of a limit is cross-validated: for every fold the limit is chosen on the others. Its interval
    (95 %) is from a bootstrap over images.

    pool: of labelled images, predicted out of fold. objects: (K,) int64, number of labelled objects. folds: of every
    image, or Nones.
    """
    folds = np.array([index % PARTS if fold is None else fold for index, fold in enumerate(folds)], dtype=object)
    classes = np.arange(len(names))
    wanted, wanted_low = gates.values("precision", classes), gates.values("ignore_precision", classes)
    sure, ignore = np.full((1, len(names)), NEVER), np.full((1, len(names)), NEVER)
    rows = []
    for index, name in enumerate(names):
        own = pool.classes == index
        passing, open_ = own & pool.sure, own & ~pool.refused
        sure[0, index] = lowest_limit(pool.scores[passing], pool.hits[passing], wanted[index])
        doubtful = open_ & ~(passing & (pool.scores >= sure[0, index]))
        low = lowest_limit(pool.scores[doubtful], pool.hits[doubtful], wanted_low[index])
        ignore[0, index] = min(low, sure[0, index])
        chosen = np.zeros(len(own), dtype=bool)
        for fold in dict.fromkeys(folds.tolist()):
            is_here = folds[pool.images] == fold
            limit = lowest_limit(pool.scores[passing & ~is_here], pool.hits[passing & ~is_here], wanted[index])
            chosen |= passing & is_here & (pool.scores >= limit)
        hits, all_ = (
            np.bincount(pool.images[where], minlength=len(folds)).astype(np.float64)[None]
            for where in (chosen & pool.hits, chosen)
        )
        scores = ImageScores(hits, all_)
        ends = intervals(scores)[0]
        kept = passing & (pool.scores >= sure[0, index])
        ignored = open_ & ~kept & (pool.scores >= ignore[0, index])
        rows.append(
            {
                "class": name,
                "sure_from": _limit(sure[0, index]),
                "ignore_from": _limit(ignore[0, index]),
                "wanted_precision": float(wanted[index]),
                "precision": _known(scores.values[0]),
                "precision_low": _known(ends[0]),
                "precision_high": _known(ends[1]),
                "objects": int(kept.sum()),
                "recall": float((kept & pool.hits).sum() / max(objects[index], 1)),
                # Labelled objects that would be background in the pseudo-labels.
                "missed": float(1 - ((kept | ignored) & pool.hits).sum() / max(objects[index], 1)),
            }
        )
    return ScoreLimits(sure, ignore, rows)


def lowest_limit(scores: np.ndarray, hits: np.ndarray, wanted: float) -> float:
    """Return the lowest limit at which the fraction `wanted` of the objects that reach it are hits; NEVER if none.

    scores: (M,). hits: (M,) bool. Objects with equal scores reach it together.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    precision = np.cumsum(hits[order]) / np.arange(1, len(ranked) + 1)
    is_last_of_equal = np.append(ranked[1:] < ranked[:-1], True)[: len(ranked)]
    good = np.flatnonzero(is_last_of_equal & (precision >= wanted))
    if not len(good):
        return NEVER
    last = good[-1]
    below = ranked[last + 1] if last + 1 < len(ranked) else 0.0
    return short_number_between(below, ranked[last])


def _limit(value: float) -> float | None:
    """Return a limit for the summary: None if no object reaches it."""
    return float(value) if value <= 1 else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
