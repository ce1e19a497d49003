"""Whether conditions differ: tests, effect sizes and intervals between groups of experimental units.

The unit is what a condition was applied to: a well, a plate, an animal; an image only if every image is one. Objects of
one unit are not independent replicates, and counting them as such makes any difference significant (Lazic,
Clarke-Williams and Munafo, "What exactly is 'N' in cell culture and animal experiments?", PLoS Biology 16, 2018): each
unit gives one value.

Tests are rank tests, which assume no normal distribution: Mann-Whitney between two conditions, Kruskal-Wallis between
all.

Symbols: C conditions, U units.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy.stats import kruskal, mannwhitneyu, rankdata

DRAWS = 10_000
LEVEL = 0.95
_COUNTED = 20_000  # assignments of ranks up to which the test is exact with ties


@dataclass(frozen=True)
class Difference:
    """Condition `second` minus condition `first` in one measure; NaN if a side has no unit.

    units, medians: of first and second. difference: of the medians. low, high: its 95 % percentile bootstrap interval,
    resampling the units of both sides; NaN if a side has fewer than three. rank_biserial: from -1 (all units of
    `second` are below those of `first`) to 1. p: two-sided Mann-Whitney. p_holm: Holm's correction over all tests of
    the call. least_p: the smallest p that this number of units can give.
    """

    measure: str
    first: str
    second: str
    units: tuple[int, int]
    medians: tuple[float, float]
    difference: float
    low: float
    high: float
    rank_biserial: float
    p: float
    p_holm: float
    least_p: float


def differences(values: Mapping[str, Mapping[str, np.ndarray]], seed: int = 0) -> list[Difference]:
    """Return the differences between all pairs of conditions in every measure.

    values: measure -> condition -> (U,) float64, one value per unit; NaN is ignored.
    """
    asked = [
        (measure, first, second)
        for measure, of_conditions in values.items()
        for first, second in itertools.combinations(of_conditions, 2)
    ]
    sides = [tuple(_known(values[measure][name]) for name in names) for measure, *names in asked]
    tests = [_mann_whitney(*pair) for pair in sides]
    p_values = np.array([p for _, p in tests])
    results = []
    for names, (base, other), (effect, p), adjusted in zip(asked, sides, tests, holm(p_values), strict=True):
        medians = float(np.median(base)) if len(base) else np.nan, float(np.median(other)) if len(other) else np.nan
        low, high = _interval(base, other, seed)
        results.append(
            Difference(
                *names,
                units=(len(base), len(other)),
                medians=medians,
                difference=medians[1] - medians[0],
                low=low,
                high=high,
                rank_biserial=effect,
                p=p,
                p_holm=float(adjusted),
                least_p=min(2 / comb(len(base) + len(other), len(base)), 1.0),
            )
        )
    return results


def kruskal_wallis(values: Mapping[str, np.ndarray]) -> float:
    """Return the Kruskal-Wallis p-value over all conditions; NaN with fewer than two, or if all values are equal.

    values: condition -> (U,) float64; NaN is ignored.
    """
    groups = [group for group in map(_known, values.values()) if len(group)]
    if len(groups) < 2 or len(np.unique(np.concatenate(groups))) < 2:
        return np.nan
    return float(kruskal(*groups).pvalue)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return p-values (N,) float64 corrected for multiple tests (Holm, Scand. J. Statist. 6, 1979).

    NaN, where nothing was tested, stays NaN and is not counted.
    """
    adjusted = np.array(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(adjusted))
    order = tested[np.argsort(adjusted[tested], kind="stable")]
    steps = adjusted[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _mann_whitney(base: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the rank-biserial correlation and the two-sided p-value, exact for few units; NaN without a unit.

    With ties scipy has only the normal approximation, which is too often significant for a handful of units: then all
    assignments of the ranks to the two sides are enumerated.
    """
    if not len(base) or not len(other):
        return np.nan, np.nan
    test = mannwhitneyu(other, base, alternative="two-sided")
    effect, p, count = 2 * test.statistic / (len(base) * len(other)) - 1, test.pvalue, len(base) + len(other)
    if comb(count, len(other)) <= _COUNTED:
        ranks = rankdata(np.concatenate([other, base]))
        sums = ranks[np.array(list(itertools.combinations(range(count), len(other))))].sum(axis=1)
        # The first assignment is the observed one. Ranks with ties are multiples of 1/2, so sums are exact.
        p = min(2 * min(np.mean(sums >= sums[0]), np.mean(sums <= sums[0])), 1.0)
    return float(effect), float(p)


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _interval(base: np.ndarray, other: np.ndarray, seed: int) -> tuple[float, float]:
    if min(len(base), len(other)) < 3:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    first, second = (np.median(side[rng.integers(0, len(side), (DRAWS, len(side)))], axis=1) for side in (base, other))
    outside = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(second - first, [outside, 100 - outside])
    return float(low), float(high)
