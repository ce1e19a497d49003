"""Triage: a small classifier of the kind of image, which chooses its model, and the settings of the predictions.

Kinds are an image-level field of the labelled images (`group`): fluorescence, histology, bright field. A multinomial
logistic regression on a dozen numbers of the pixels learns them. The model and score threshold of a kind replace those
of all images only where that gains in cross-validation, classifier, models and thresholds all chosen without the images
that they are scored on.

Symbols: I images, F features, K kinds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.special import softmax

from detseg.errors import DataError
from detseg.evaluation.evaluate import count_all
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.intervals import NAMES, image_scores, paired_intervals
from detseg.files.atomic import json_object, write_json
from detseg.fusion.postprocess import Postprocess
from detseg.images.reading import open_pixels
from detseg.structures import Predictions
from detseg.tuning.candidates import Hits, object_numbers
from detseg.tuning.thresholds import best_threshold, hits_without_threshold

FORMAT = "detseg triage 2"
FEATURES = (
    *("mean", "spread", "skewness", "low", "median", "high", "saturation", "saturation_spread", "red", "blue"),
    *("fine", "coarse"),
)
# Of larger images the middle is looked at.
_EDGE = 1024
_DECAY, _STEPS = 1e-2, 400
_FEWEST = 5  # labelled images of a kind, for a threshold of its own


def image_features(path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> np.ndarray:
    """Return FEATURES (F,) float64 of an image's middle; none depends on the unit of its intensities.

    fields: of its COCO image, for what its file does not say. Raises DataError where it cannot be read.
    """
    with open_pixels(Path(path), fields or {}) as source:
        y, x = (max(side - _EDGE, 0) // 2 for side in (source.height, source.width))
        pixels = source.read(y, x, min(y + _EDGE, source.height), min(x + _EDGE, source.width)).astype(np.float32)
    colours = pixels if pixels.shape[2] == 3 else np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    low, high = np.percentile(colours, [0.5, 99.5])
    colours = np.clip((colours - low) / max(high - low, 1e-6), 0, 1)
    gray, saturation = colours.mean(axis=2), colours.max(axis=2) - colours.min(axis=2)
    spread = float(gray.std())
    skewness = float(((gray - gray.mean()) ** 3).mean()) / max(spread, 1e-3) ** 3
    red, blue = ((colours[..., channel] - colours[..., 1]).mean() for channel in (0, 2))
    blurred, more = cv2.GaussianBlur(gray, (0, 0), 1.5), cv2.GaussianBlur(gray, (0, 0), 6)
    texture = np.abs(gray - blurred).mean(), np.abs(blurred - more).mean()
    values = [gray.mean(), spread, skewness, *np.percentile(gray, [10, 50, 90]), saturation.mean(), saturation.std()]
    return np.array([*values, red, blue, *texture], dtype=np.float64)


@dataclass(frozen=True)
class KindClassifier:
    """kinds: K names. middle, scale: (F,) of the features. weights: (F + 1, K), the last row is the bias."""

    kinds: tuple[str, ...]
    middle: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, kinds: Sequence[str]) -> KindClassifier:
        """Learn from features (I, F) and the kind of every image; all kinds count alike, however rare."""
        names, target = np.unique(np.array(kinds), return_inverse=True)
        middle, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
        inputs = np.concatenate([(features - middle) / scale, np.ones((len(features), 1))], axis=1)
        shares = 1 / (np.bincount(target)[target] * len(names))
        wanted, weights = np.eye(len(names))[target], np.zeros((inputs.shape[1], len(names)))
        # The loss is convex and its slope at most grows with this: plain descent arrives.
        step = 1 / (0.5 * np.linalg.norm(inputs * np.sqrt(shares)[:, None], 2) ** 2 + _DECAY)
        for _ in range(_STEPS):
            slope = inputs.T @ ((softmax(inputs @ weights, axis=1) - wanted) * shares[:, None])
            weights -= step * (slope + _DECAY * weights)
        return cls(tuple(names.tolist()), middle, scale, weights)

    def predict(self, features: np.ndarray) -> list[str]:
        """Return the kind of every image of features (I, F)."""
        inputs = np.concatenate([(features - self.middle) / self.scale, np.ones((len(features), 1))], axis=1)
        return [self.kinds[index] for index in (inputs @ self.weights).argmax(axis=1)]


@dataclass(frozen=True)
class Choice:
    """What an image gets. model: which of those that the triage was fitted with, by number. settings: what is done to
    the predictions of that model.
    """

    model: int
    settings: Postprocess


@dataclass(frozen=True)
class Model:
    """A model that can be chosen. name: what it is called. checkpoint: the hash of its weights, "" where that is not
    known, or several predicted the images, as those of folds do.
    """

    name: str
    checkpoint: str = ""


@dataclass(frozen=True)
class Triage:
    """What `predict --triage` reads.

    models: those to choose from. usual: what all images get. own: what those of each kind get instead, empty where that
    did not gain. report: how it was decided, plain values.
    """

    classifier: KindClassifier
    models: tuple[Model, ...]
    usual: Choice
    own: dict[str, Choice]
    report: dict[str, Any] = field(default_factory=dict)

    def choice_of(self, path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> tuple[str, Choice]:
        """Return the kind of an image, and what it gets. Raises DataError where it cannot be read."""
        (kind,) = self.classifier.predict(image_features(path, fields)[None])
        return kind, self.own.get(kind, self.usual)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file."""
        one = self.classifier
        arrays = {"middle": one.middle, "scale": one.scale, "weights": one.weights}
        content = {"format": FORMAT, "kinds": list(one.kinds), "features": list(FEATURES)}
        content |= {name: array.tolist() for name, array in arrays.items()}
        content["models"] = [{"name": model.name, "checkpoint": model.checkpoint} for model in self.models]
        content |= {"usual": _to_dict(self.usual), "own": {name: _to_dict(choice) for name, choice in self.own.items()}}
        write_json(Path(path), {**content, "report": self.report})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Triage:
        """Raises DataError where it is no such file."""
        problem = f"{path}: is no triage file of this version ({FORMAT}); make it with `detseg fit_triage`"
        try:
            content = json_object(Path(path))
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); expected a file of `detseg fit_triage`"
            ) from None
        except ValueError:
            raise DataError(problem) from None
        if content.get("format") != FORMAT or content.get("features") != list(FEATURES):
            raise DataError(problem)
        try:
            kinds = tuple(str(kind) for kind in content["kinds"])
            arrays = [np.array(content[name], dtype=np.float64) for name in ("middle", "scale", "weights")]
            if [array.shape for array in arrays] != [(len(FEATURES),)] * 2 + [(len(FEATURES) + 1, len(kinds))]:
                raise DataError(problem)
            models = tuple(Model(str(one["name"]), str(one["checkpoint"])) for one in content["models"])
            choices = {"usual": content["usual"], **{f"own of {name}": one for name, one in content["own"].items()}}
            read = [
                Choice(range(len(models))[one["model"]], Postprocess.from_dict(one["settings"], f"{path}: {name}"))
                for name, one in choices.items()
            ]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise DataError(problem) from None
        return cls(KindClassifier(kinds, *arrays), models, read[0], dict(zip(content["own"], read[1:], strict=True)))


def _to_dict(choice: Choice) -> dict[str, Any]:
    return {"model": choice.model, "settings": choice.settings.to_dict()}


def fit_triage(
    truth: GroundTruth,
    members: Mapping[Model, Sequence[Predictions]],
    features: np.ndarray,
    kinds: Sequence[str],
    *,
    start: Postprocess,
    folds: int = 5,
    seed: int = 0,
) -> Triage:
    """Fit the classifier, choose a model and its score threshold for every kind, and decide by cross-validation whether
    they are used.

    members: of every model the predictions, one per image of the truth, in its order, without a score threshold.
    features: (I, F). start: all other settings. The report has accuracy (of all, and of each kind), object_ap of one
    model with one threshold and of the kinds' own, both on images that chose neither, and the gain with its 95 % paired
    interval; they are used where its lower end is above 0.

    Raises DataError with fewer than two kinds, or fewer images than folds.
    """
    kinds_array = np.array(kinds)
    names, counts = np.unique(kinds_array, return_counts=True)
    if len(names) < 2 or len(kinds) < folds:
        raise DataError(f"{len(names)} kinds in {len(kinds)} images; expected two or more kinds, and {folds} images")
    # Every kind is dealt out to the folds in turn.
    fold_of, rng = np.zeros(len(kinds), dtype=np.int64), np.random.default_rng(seed)
    place = 0
    for name in names:
        own = rng.permutation(np.flatnonzero(kinds_array == name))
        fold_of[own] = (place + np.arange(len(own))) % folds
        place += len(own)
    columns = list(members.values())
    hits = [hits_without_threshold(truth, column, start)(None) for column in columns]
    objects = object_numbers(truth.images, len(truth.class_names))[:, 0]
    guessed = np.empty(len(kinds), dtype=object)
    one: list[Any] = [None] * len(kinds)
    several: list[Any] = [None] * len(kinds)
    for fold in range(folds):
        inside, outside = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        guessed[outside] = KindClassifier.fit(features[inside], kinds_array[inside]).predict(features[outside])
        usual, own = _choose(hits, objects, kinds_array, inside, start)
        for index in outside:
            for side, choice in ((one, usual), (several, own.get(guessed[index], usual))):
                side[index] = choice.settings.apply(columns[choice.model][index])
    scores = [image_scores(count_all(truth, side)) for side in (one, several)]
    row = NAMES.index("object_ap")
    gain, ends = (values[row] for values in paired_intervals(*scores, seed))
    right = guessed == kinds_array
    usual, own = _choose(hits, objects, kinds_array, np.arange(len(kinds)), start)
    report = {
        "images": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "folds": folds,
        "accuracy": float(right.mean()),
        "accuracy_by_kind": {name: float(right[kinds_array == name].mean()) for name in names.tolist()},
        "object_ap_one": float(scores[0].values[row]),
        "object_ap_own": float(scores[1].values[row]),
        "gain": float(gain),
        "interval": [float(end) for end in ends],
        "used": bool(ends[0] > 0),
        "chosen": {
            name: {"model": choice.model, "score_threshold": choice.settings.score_threshold}
            for name, choice in {"one": usual, **own}.items()
        },
    }
    used = own if report["used"] else {}
    return Triage(KindClassifier.fit(features, kinds), tuple(members), usual, used, report)


def _choose(
    hits: Sequence[Hits], objects: np.ndarray, kinds: np.ndarray, images: np.ndarray, start: Postprocess
) -> tuple[Choice, dict[str, Choice]]:
    """Return the best model with its best threshold for all of some images, and for those of every kind that has
    enough; of equal models the first. Other settings are those of `start`.

    hits: of every model. objects: (I,) of every image. kinds: (I,). images: indices, ascending.
    """

    def best(chosen: np.ndarray) -> Choice:
        found = [best_threshold(one.of_images(chosen), objects[chosen]) for one in hits]
        model = int(np.argmax([each.object_ap for each in found]))
        return Choice(model, replace(start, score_threshold=found[model].threshold))

    own = {str(name): images[kinds[images] == name] for name in np.unique(kinds[images])}
    return best(images), {name: best(chosen) for name, chosen in own.items() if len(chosen) >= _FEWEST}
