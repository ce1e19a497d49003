"""Tuning that reports an honest gain: chosen on some folds, scored on the others, with intervals over images.

Settings chosen on the images that they are scored on look better than they are. Therefore the search is repeated once a
fold on the images of all other folds, and what it finds is scored on the fold itself: the cross-fitted score. What is
written is the result of the search on all images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.tuning.space import Coordinate, State, Value
from detseg.tuning.trials import Outcome, Trials

Search = Callable[[np.ndarray], State]


@dataclass(frozen=True)
class Estimate:
    """A score, and the interval in which 95 % of bootstrap samples of the images lie; None where not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Before, after, and the gain, paired by image."""

    before: Estimate
    after: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Curve:
    """How the score of all images changes with one coordinate, the others as chosen: points (S, 2) in order."""

    coordinate: Coordinate
    points: list[tuple[Value, float]]
    chosen: Value


@dataclass(frozen=True)
class TuningResult:
    """in_sample: scored on the images that the settings were chosen on. cross_fitted: None with one fold.

    by_fold: the settings chosen without every fold, by its name.
    """

    before: State
    after: State
    in_sample: Comparison
    cross_fitted: Comparison | None
    by_fold: dict[str, State]
    settings_tried: int


def tune(
    trials: Trials, before: Search, after: Search, folds: Sequence[Any], *, bootstrap: int = 1000, seed: int = 0
) -> TuningResult:
    """Choose settings on all images and without every fold in turn, and compare with those before.

    before, after: image indices -> settings chosen on these images; `before` may return fixed ones. folds: (I,) of any
    kind, equal for the images of one fold. bootstrap: number of samples, 0 for no intervals.
    """
    folds = np.array([str(fold) for fold in folds])
    everything = np.arange(len(folds))
    states = before(everything), after(everything)
    outcomes = [trials.outcome(state) for state in states]
    in_sample = compare(*outcomes, len(folds), bootstrap=bootstrap, seed=seed)
    names = list(dict.fromkeys(folds.tolist()))
    by_fold: dict[str, State] = {}
    cross_fitted = None
    if len(names) > 1:
        for name in names:
            held_out = folds == name
            chosen = [search(np.flatnonzero(~held_out)) for search in (before, after)]
            by_fold[name] = chosen[1]
            outcomes = [
                outcome.pick(held_out, trials.outcome(state)) for outcome, state in zip(outcomes, chosen, strict=True)
            ]
        cross_fitted = compare(*outcomes, len(folds), bootstrap=bootstrap, seed=seed)
    return TuningResult(*states, in_sample, cross_fitted, by_fold, trials.count)


def compare(before: Outcome, after: Outcome, count: int, *, bootstrap: int, seed: int = 0) -> Comparison:
    """Compare two outcomes of `count` images; the samples of the bootstrap are the same for both."""
    everything = np.arange(count)
    values = _three(before, after, everything)
    random = np.random.default_rng(seed)
    samples = [_three(before, after, random.integers(0, count, count)) for _ in range(bootstrap if count > 1 else 0)]
    estimates = []
    for index, value in enumerate(values):
        known = [sample[index] for sample in samples if sample[index] is not None]
        low, high = np.percentile(known, [2.5, 97.5]) if known else (None, None)
        estimates.append(Estimate(value, *(None if limit is None else float(limit) for limit in (low, high))))
    return Comparison(*estimates)


def _three(before: Outcome, after: Outcome, images: np.ndarray) -> tuple[float | None, ...]:
    scores = before.score(images), after.score(images)
    return (*scores, None if None in scores else scores[1] - scores[0])


def random_folds(count: int, number: int, seed: int = 0) -> list[int]:
    """Return the folds of `count` images, as equal in size as can be."""
    folds = np.arange(count) % max(min(number, count), 1)
    return np.random.default_rng(seed).permutation(folds).tolist()


def curves(trials: Trials, state: State, coordinates: Sequence[Coordinate]) -> list[Curve]:
    """Return the curve of every coordinate around the chosen settings."""
    images = np.arange(len(trials.truth.images))
    found = []
    for coordinate in coordinates:
        chosen = coordinate.get(state)
        own = set() if isinstance(chosen, Mapping) else {chosen}
        values = {*coordinate.values, *coordinate.near(chosen, 1), *own} - {None}
        points: list[tuple[Value, float]] = []
        for value in [*([None] if None in coordinate.values else []), *sorted(values)]:
            score = trials.score(coordinate.set(state, value, len(trials.members)), images)
            if score is not None:
                points.append((value, score))
        found.append(Curve(coordinate, points, chosen))
    return found


def to_plain(result: TuningResult) -> dict[str, Any]:
    """Return a result as plain values for JSON."""
    return {
        "before": _plain_state(result.before),
        "after": _plain_state(result.after),
        "in_sample": dataclasses.asdict(result.in_sample),
        "cross_fitted": None if result.cross_fitted is None else dataclasses.asdict(result.cross_fitted),
        "chosen_without_fold": {name: _plain_state(state) for name, state in result.by_fold.items()},
        "settings_tried": result.settings_tried,
    }


def _plain_state(state: State) -> dict[str, Any]:
    fusion = None if state.fusion is None else state.fusion.to_dict()
    return {"postprocess": state.postprocess.to_dict(), "fusion": fusion}
