"""Search for the best settings: one coordinate after the other, or by Optuna."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from detseg.errors import ConfigError
from detseg.tuning.candidates import Hits
from detseg.tuning.space import CHANGE_SCORES, Coordinate, State, Value
from detseg.tuning.thresholds import best_threshold
from detseg.tuning.trials import Trials

# Sums in another order differ in the last digits: a gain must be larger than this.
EPSILON = 1e-9


def coordinate_search(
    trials: Trials,
    start: State,
    coordinates: Sequence[Coordinate],
    images: np.ndarray,
    rounds: int = 3,
    min_gain: float = 0.0,
) -> State:
    """Return settings whose score on the images (indices) no further change of one coordinate has bettered.

    The first round tries the coordinates' own values, each further one these and finer ones around the best so far; it
    ends with a round that finds nothing. Of equal values the present one stays, and it stays unless another one gains
    more than `min_gain`: what hardly matters on these images matters elsewhere, as likely as not, the other way.
    """
    least = max(min_gain, EPSILON)
    state, score = start, _score(trials, start, images)
    with_scores = any(coordinate.setting == "score_threshold" for coordinate in coordinates)
    for number in range(rounds):
        before = score
        for coordinate in coordinates:
            others = _neighbours(trials, coordinate, state, images, number)
            if with_scores and coordinate.setting in CHANGE_SCORES:
                others = [choice for other in others for choice in (other, *_rescored(trials, state, other, images))]
            scores = [_score(trials, other, images) for other in others]
            best = int(np.argmax(scores)) if scores else 0
            if scores and scores[best] > score + least:
                state, score = others[best], scores[best]
        if number and score <= before + EPSILON:
            break
    return state


def _neighbours(trials: Trials, coordinate: Coordinate, state: State, images: np.ndarray, number: int) -> list[State]:
    """Return the states that differ from one in this coordinate, for a round by its number."""
    present = coordinate.get(state)
    values: list[Value] = [*coordinate.values]
    if number and not isinstance(present, dict):
        values += coordinate.near(present, number)
    exact = exact_threshold(trials, state, images) if is_one_threshold(trials, coordinate) else None
    if exact is not None:
        values.append(exact)
    return [coordinate.set(state, value, len(trials.members)) for value in dict.fromkeys(values) if value != present]


def _rescored(trials: Trials, state: State, other: State, images: np.ndarray) -> list[State]:
    """Return `other`, in which scores mean something else than in `state`, with score thresholds that suit it.

    With such as keep the same number of predictions of every class, and with the best one for all.
    """
    tables = trials.table(state), trials.table(other)
    if None in tables:
        return []
    thresholds = {}
    for index, name in enumerate(trials.truth.class_names):
        old, new = (table.scores[table.classes == index] for table in tables)
        limit = state.postprocess.values("score_threshold", np.array([index]))[0]
        kept = int((old >= limit).sum())
        thresholds[name] = float(np.sort(new)[-kept]) if 0 < kept <= len(new) else float(limit)
    one = len(thresholds) == 1
    choices = [next(iter(thresholds.values())) if one else thresholds, exact_threshold(trials, other, images)]
    return [
        dataclasses.replace(other, postprocess=dataclasses.replace(other.postprocess, score_threshold=choice))
        for choice in choices
        if choice is not None
    ]


def is_one_threshold(trials: Trials, coordinate: Coordinate) -> bool:
    """Whether this is the score threshold of all predictions."""
    return coordinate.setting == "score_threshold" and (coordinate.part is None or len(trials.truth.class_names) == 1)


def exact_threshold(trials: Trials, state: State, images: np.ndarray) -> float | None:
    """Return the best of all score thresholds for the images, all else being equal; None where it is not known.

    It is known for object AP of all objects.
    """
    if trials.metric != "object_ap" or trials.class_name is not None:
        return None
    settings = state.postprocess.without_score_threshold()
    hits = trials.hits(dataclasses.replace(state, postprocess=settings))
    if hits is None or not len(hits.image):
        return None
    return best_threshold(_of_images(hits, images), trials.num_objects[images]).threshold


def _of_images(hits: Hits, images: np.ndarray) -> Hits:
    """Return the hits of some images, which are numbered anew in ascending order; images (indices) ascend."""
    place = np.full(int(max(hits.image.max(initial=-1), images.max(initial=-1))) + 1, -1)
    place[images] = np.arange(len(images))
    keep = place[hits.image] >= 0
    parts = {item.name: getattr(hits, item.name)[keep] for item in dataclasses.fields(hits)}
    return Hits(**{**parts, "image": place[parts["image"]]})


def optuna_search(
    trials: Trials, start: State, coordinates: Sequence[Coordinate], images: np.ndarray, count: int, seed: int = 0
) -> State:
    """Return the best of `count` settings that Optuna's TPE sampler tries, `start` being the first.

    Raises ConfigError where Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "Optuna is not installed: pip install 'detseg[tuning]', or --search coordinate, which needs nothing"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    best, best_score = start, _score(trials, start, images)

    def objective(trial: optuna.Trial) -> float:
        nonlocal best, best_score
        state = start
        for coordinate in coordinates:
            state = coordinate.set(state, _suggest(trial, coordinate), len(trials.members))
        score = _score(trials, state, images)
        if score > best_score + EPSILON:
            best, best_score = state, score
        return score if math.isfinite(score) else 0.0

    study.optimize(objective, n_trials=max(count - 1, 1))
    return best


def _suggest(trial: object, coordinate: Coordinate) -> Value:
    """Let Optuna choose: from an interval, or from the values where one of them is None."""
    values = coordinate.values
    if None in values or len(values) < 3:
        # Optuna keeps choices by their place: a value of another type than its neighbours would be warned of.
        return values[trial.suggest_categorical(coordinate.name, list(range(len(values))))]
    low, high = min(values), max(values)
    if coordinate.setting in ("min_area", "max_area", "fusion.min_members"):
        return trial.suggest_int(coordinate.name, int(low), int(high))
    return round(trial.suggest_float(coordinate.name, low, high), 4)


def _score(trials: Trials, state: State, images: np.ndarray) -> float:
    score = trials.score(state, images)
    return -math.inf if score is None else score
