"""Tune settings and estimate the gain by cross-fitting: chosen on some folds, scored on the others.

Settings chosen on the images that they are scored on look better than they are. Therefore the search is repeated for
every fold on the images of all others, and its result is scored on that fold: the cross-fitted score, with intervals
over images. The settings that are written come from the search on all images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.errors import ConfigError
from detseg.tuning.space import CHANGE_SCORES, WHOLE_NUMBERS, Coordinate, State, Value
from detseg.tuning.trials import Outcome, Trials

# Search for the best settings: coordinate by coordinate, or with Optuna.

# Sums in another order differ in the last digits: only a larger gain counts.
EPSILON = 1e-9


def coordinate_search(
    trials: Trials,
    start: State,
    coordinates: Sequence[Coordinate],
    images: np.ndarray,
    rounds: int = 3,
    min_gain: float = 0.0,
) -> State:
    """Return settings whose score on the images (indices) no change of a single coordinate improves further.

    The first round tries the coordinates' own values, each further round also finer ones around the best so far; the
    search ends after a round without a gain. The present value is replaced only by one that gains more than `min_gain`,
    because a setting that hardly matters on these images is as likely as not to be worse on others.
    """
    least = max(min_gain, EPSILON)
    state, score = start, _score(trials, start, images)
    with_thresholds = any(coordinate.setting == "score_threshold" for coordinate in coordinates)
    for number in range(rounds):
        before = score
        for coordinate in coordinates:
            present = coordinate.get(state)
            values: list[Value] = [*coordinate.values]
            if number and not isinstance(present, dict):
                values += coordinate.near(present, number)
            of_all = coordinate.part is None or len(trials.truth.class_names) == 1
            exact = None
            if coordinate.setting == "score_threshold":
                exact = trials.exact_threshold(state, images, None if of_all else coordinate.part)
            if exact is not None:
                values.append(exact)
            count = len(trials.members)
            others = [coordinate.set(state, value, count) for value in dict.fromkeys(values) if value != present]
            if with_thresholds and coordinate.setting in CHANGE_SCORES:
                others = [
                    choice
                    for other in others
                    for choice in (other, *_with_new_thresholds(trials, state, other, images))
                ]
            scores = [_score(trials, other, images) for other in others]
            best = int(np.argmax(scores)) if scores else 0
            if scores and scores[best] > score + least:
                state, score = others[best], scores[best]
        if number and score <= before + EPSILON:
            break
    return state


def _with_new_thresholds(trials: Trials, state: State, other: State, images: np.ndarray) -> list[State]:
    """Return `other`, whose scores have another meaning than those of `state`, with suitable score thresholds.

    These keep the number of predictions of every class; or are the best common threshold; or, if images have a class,
    the best threshold for the images of each class.
    """
    tables = trials.table(state), trials.table(other)
    if None in tables:
        return []
    thresholds = {}
    for index, name in enumerate(trials.truth.class_names):
        old, new = (table.scores[table.ruling == index] for table in tables)
        limit = state.postprocess.values("score_threshold", np.array([index]))[0]
        kept = int((old >= limit).sum())
        thresholds[name] = float(np.sort(new)[-kept]) if 0 < kept <= len(new) else float(limit)
    same_number = next(iter(thresholds.values())) if len(thresholds) == 1 else thresholds
    choices = [same_number, trials.exact_threshold(other, images)]
    if other.postprocess.image_class != "keep":
        exact = {name: trials.exact_threshold(other, images, name) for name in thresholds}
        choices.append({name: thresholds[name] if value is None else value for name, value in exact.items()})
    choices = [choice for choice in choices if choice is not None]
    processes = [dataclasses.replace(other.postprocess, score_threshold=choice) for choice in choices]
    return [dataclasses.replace(other, postprocess=process) for process in processes]


def optuna_search(
    trials: Trials, start: State, coordinates: Sequence[Coordinate], images: np.ndarray, count: int, seed: int = 0
) -> State:
    """Return the best of `count` settings tried by Optuna's TPE sampler, of which `start` is the first.

    Raises ConfigError if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "Optuna is not installed: pip install 'detseg[tuning]', or --search coordinate, which needs no package"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    best, best_score = start, _score(trials, start, images)

    def suggest(trial: optuna.Trial, coordinate: Coordinate) -> Value:
        values = coordinate.values
        if len(values) < 3 or any(value is None or isinstance(value, str) for value in values):
            # By index: Optuna warns about choices of different types.
            return values[trial.suggest_categorical(coordinate.name, list(range(len(values))))]
        low, high = min(values), max(values)
        if coordinate.setting in WHOLE_NUMBERS:
            return trial.suggest_int(coordinate.name, int(low), int(high))
        return round(trial.suggest_float(coordinate.name, low, high), 4)

    def objective(trial: optuna.Trial) -> float:
        nonlocal best, best_score
        state = start
        for coordinate in coordinates:
            state = coordinate.set(state, suggest(trial, coordinate), len(trials.members))
        score = _score(trials, state, images)
        if score > best_score + EPSILON:
            best, best_score = state, score
        return score if math.isfinite(score) else 0.0

    study.optimize(objective, n_trials=max(count - 1, 1))
    return best


def _score(trials: Trials, state: State, images: np.ndarray) -> float:
    score = trials.score(state, images)
    return -math.inf if score is None else score


Search = Callable[[np.ndarray], State]


@dataclass(frozen=True)
class Estimate:
    """A score, and its 95 % bootstrap interval over images; None if undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Scores before and after, and the gain, paired by image."""

    before: Estimate
    after: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Curve:
    """Score of all images as a function of one coordinate, the others as chosen; points: sorted by value."""

    coordinate: Coordinate
    points: list[tuple[Value, float]]
    chosen: Value


@dataclass(frozen=True)
class TuningResult:
    """in_sample: scores on the images that the settings were chosen on. cross_fitted: None with one fold.

    by_fold: settings chosen without each fold, by its name. outcome: of the chosen settings, cross-fitted if available.
    """

    before: State
    after: State
    in_sample: Comparison
    cross_fitted: Comparison | None
    by_fold: dict[str, State]
    settings_tried: int
    outcome: Outcome


def tune(
    trials: Trials, before: Search, after: Search, folds: Sequence[Any], *, bootstrap: int = 1000, seed: int = 0
) -> TuningResult:
    """Choose settings on all images and without each fold in turn, and compare with those before.

    before, after: function from image indices to settings chosen on these images; `before` may return fixed ones.
    folds: (I,), equal for the images of a fold. bootstrap: number of samples, 0 for no intervals.
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
    return TuningResult(*states, in_sample, cross_fitted, by_fold, trials.count, outcomes[1])


def compare(before: Outcome, after: Outcome, count: int, *, bootstrap: int, seed: int = 0) -> Comparison:
    """Compare two outcomes of `count` images; both have the same bootstrap samples."""
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
    """Return random folds of `count` images, as equal in size as possible."""
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
