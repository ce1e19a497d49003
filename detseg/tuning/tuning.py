"""Predictions files brought to the images of a ground truth, as members to fuse or as parts of one set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.coco.predictions_parsing import ImageEntry
from detseg.errors import DataError, list_problems
from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.fusion.members import Member
from detseg.structures import Predictions
from detseg.tuning.space import Coordinate, State, Value
from detseg.tuning.trials import Outcome, Trials

FOLD = "fold"
# Fewer folds than this cannot be left out.
FEWEST = 2


def read_parts(
    members: Mapping[str, Member], images: Sequence[ImageEntry], missing: str = "refuse"
) -> list[Predictions | None]:
    """Return the predictions of all images from files that share them out, such as those of folds.

    None for an image that no file has, where missing is "leave-out"; "empty": nothing was found in it. Raises DataError
    for images of several files, and for missing ones where that is refused.
    """
    result: list[Predictions | None] = []
    absent, doubled = [], []
    for image in images:
        answers = {name: answer for name, member in members.items() if (answer := member.read(image)) is not None}
        if len(answers) > 1:
            doubled.append(f"{_name(image)}: is in {' and '.join(answers)}")
        if not answers:
            absent.append(_name(image))
        nothing = None if missing == "leave-out" else _empty(image)
        result.append(next(iter(answers.values()), nothing))
    if doubled:
        raise DataError(
            f"images are in several files:\n{list_problems(doubled)}\ngive --fusion FILE to fuse them, or one file"
        )
    if absent and missing == "refuse":
        raise DataError(_absent(absent))
    return result


def read_members(
    members: Mapping[str, Member], images: Sequence[ImageEntry], missing: str = "refuse"
) -> list[list[Predictions | None]]:
    """Return, for every member, the predictions of all images; `missing` as in `read_parts`, for an image of any."""
    absent = [f"{name}: lacks {_name(image)}" for name, member in members.items() for image in member.missing(images)]
    if absent and missing == "refuse":
        raise DataError(_absent(absent))
    answers = [[member.read(image) for member in members.values()] for image in images]
    if missing == "leave-out":
        answers = [[None] * len(row) if None in row else row for row in answers]
    filled = [
        [_empty(image) if answer is None and missing != "leave-out" else answer for answer in row]
        for image, row in zip(images, answers, strict=True)
    ]
    return [list(column) for column in zip(*filled, strict=True)]


def _absent(names: Sequence[str]) -> str:
    return (
        f"images of the ground truth are not in the predictions:\n{list_problems(list(names))}\ngive --missing "
        "leave-out to tune on the others, or --missing empty where nothing was found in them"
    )


def _name(image: ImageEntry) -> str:
    return f"image {image.file_name or image.image_id}"


def _empty(image: ImageEntry) -> Predictions:
    return Predictions.empty(image.image_id, image.file_name, image.height, image.width)


def folds_of(images: Sequence[ImageTruth], predictions: Sequence[Predictions], field: str | None) -> list[Any] | None:
    """Return the fold of every image, or None where they are not known.

    field: an image-level field of the ground truth whose values are the folds; None looks for the fold that the
    predictions come from, then for the field `fold`. Raises DataError where images lack the field.
    """
    if field is None:
        for values in (
            [image.provenance.get(FOLD) for image in predictions],
            [image.metadata.get(FOLD) for image in images],
        ):
            if None not in values and len(set(map(str, values))) >= FEWEST:
                return values
        return None
    lacking = [image.file_name for image in images if image.metadata.get(field) is None]
    if lacking:
        raise DataError(f"ground truth: {len(lacking)} images lack the field {field!r}, such as {lacking[0]}")
    return [image.metadata[field] for image in images]


def classes_to_tune(truth: GroundTruth, predictions: Sequence[Predictions]) -> tuple[list[str], list[str]]:
    """Return the names of the classes that have objects and predictions, and of those that lack one of both."""
    number = len(truth.class_names)
    objects, found = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
    for image in truth.images:
        objects += np.bincount(image.classes[~image.crowd], minlength=number)
    for image in predictions:
        found += np.bincount(image.classes, minlength=number)
    good = (objects > 0) & (found > 0)
    names = np.array(truth.class_names, dtype=object)
    return names[good].tolist(), names[~good].tolist()


# Tuning that reports an honest gain: chosen on some folds, scored on the others, with intervals over images.
#
# Settings chosen on the images that they are scored on look better than they are. So the search is repeated once a fold
# on the images of all other folds, and what it finds is scored on the fold alone: the cross-fitted score. What is
# written is the result of the search on all images.

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
