"""Search for the best settings: one coordinate after the other, or by Optuna."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from detseg.errors import ConfigError
from detseg.tuning.space import CHANGE_SCORES, WHOLE_NUMBERS, Coordinate, State, Value
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
    """Return settings whose score on the images (indices) no further change of one coordinate has improved.

    The first round tries the coordinates' own values, each further one these and finer ones around the best so far; it
    ends with a round that finds nothing. Of equal values the present one stays, and it stays unless another one gains
    more than `min_gain`: what hardly matters on these images is as likely as not to be worse on others.
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
            if coordinate.setting == "score_threshold" and of_all:
                exact = trials.exact_threshold(state, images)
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
    """Return `other`, in which scores mean something else than in `state`, with score thresholds that suit it.

    These keep the same number of predictions of every class; or they are the one best threshold for all.
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
    same_number = next(iter(thresholds.values())) if len(thresholds) == 1 else thresholds
    choices = [choice for choice in (same_number, trials.exact_threshold(other, images)) if choice is not None]
    processes = [dataclasses.replace(other.postprocess, score_threshold=choice) for choice in choices]
    return [dataclasses.replace(other, postprocess=process) for process in processes]


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

    def suggest(trial: optuna.Trial, coordinate: Coordinate) -> Value:
        values = coordinate.values
        if None in values or len(values) < 3:
            # By index: Optuna warns of a choice whose type differs from that of the others.
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
