"""Triage: classify the kind of an image, and choose its model and score threshold by it.

Kinds are an image-level field of the labelled images (`group`), such as fluorescence, histology, bright field. A
multinomial logistic regression on a dozen image statistics learns them. Model and threshold per kind are used instead
of common ones only if they gain in cross-validation, with classifier, models and thresholds all chosen without the
images that they are scored on.

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
# Larger images are cropped to their centre.
_EDGE = 1024
_DECAY, _STEPS = 1e-2, 400
_FEWEST = 5  # labelled images that a kind needs for a threshold of its own


def image_features(path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> np.ndarray:
    """Return FEATURES (F,) float64 of an image's centre; none depends on the unit of intensities.

    fields: of its COCO image, for what the file does not record. Raises DataError if it cannot be read.
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
    """kinds: K names. middle, scale: (F,), to standardize features. weights: (F + 1, K), the last row is the bias."""

    kinds: tuple[str, ...]
    middle: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, kinds: Sequence[str]) -> KindClassifier:
        """Fit to features (I, F) and the kind of every image; all kinds have equal weight, however rare."""
        names, target = np.unique(np.array(kinds), return_inverse=True)
        middle, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
        inputs = np.concatenate([(features - middle) / scale, np.ones((len(features), 1))], axis=1)
        shares = 1 / (np.bincount(target)[target] * len(names))
        wanted, weights = np.eye(len(names))[target], np.zeros((inputs.shape[1], len(names)))
        # The loss is convex and this bounds the Lipschitz constant of its gradient, so gradient descent converges.
        step = 1 / (0.5 * np.linalg.norm(inputs * np.sqrt(shares)[:, None], 2) ** 2 + _DECAY)
        for _ in range(_STEPS):
            slope = inputs.T @ ((softmax(inputs @ weights, axis=1) - wanted) * shares[:, None])
            weights -= step * (slope + _DECAY * weights)
        return cls(tuple(names.tolist()), middle, scale, weights)

    def predict(self, features: np.ndarray) -> list[str]:
        """Return the kind of every image, from features (I, F)."""
        inputs = np.concatenate([(features - self.middle) / self.scale, np.ones((len(features), 1))], axis=1)
        return [self.kinds[index] for index in (inputs @ self.weights).argmax(axis=1)]


@dataclass(frozen=True)
class Choice:
    """Model and settings for an image. model: index into `Triage.models`. settings: postprocess for its predictions."""

    model: int
    settings: Postprocess


@dataclass(frozen=True)
class Model:
    """A model to choose from. checkpoint: hash of its weights; "" if unknown, or if the models of several folds made
    the predictions.
    """

    name: str
    checkpoint: str = ""


@dataclass(frozen=True)
class Triage:
    """The content of a triage file (`predict --triage`).

    models: those to choose from. usual: the choice for all images. own: the choice per kind, empty if that did not
    gain. report: how it was decided, plain values.
    """

    classifier: KindClassifier
    models: tuple[Model, ...]
    usual: Choice
    own: dict[str, Choice]
    report: dict[str, Any] = field(default_factory=dict)

    def choice_of(self, path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> tuple[str, Choice]:
        """Return the kind of an image, and the choice for it. Raises DataError if the image cannot be read."""
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
        """Read a triage file. Raises DataError if it is none."""
        problem = f"{path}: not a triage file of this version ({FORMAT}); make it with `detseg fit_triage`"
        try:
            content = json_object(Path(path))
        except OSError as error:
            raise DataError(
                f"{path}: not readable ({error.strerror}); expected a file of `detseg fit_triage`"
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
    """Fit the classifier, choose model and score threshold for every kind, and decide by cross-validation whether they
    are used.

    members: for each model the predictions, one per image of the truth, in its order, without a score threshold.
    features: (I, F). start: all other settings. The report has the accuracy (in total and per kind), object_ap with one
    model and threshold for all and with those per kind, both cross-validated, and the gain with its 95 % paired
    interval; choices per kind are used if the lower end of the interval is above 0.

    Raises DataError with fewer than two kinds, or fewer images than folds.
    """
    kinds_array = np.array(kinds)
    names, counts = np.unique(kinds_array, return_counts=True)
    if len(names) < 2 or len(kinds) < folds:
        raise DataError(f"{len(names)} kinds in {len(kinds)} images; expected two or more kinds, and {folds} images")
    # Stratified folds: the images of every kind are dealt out in turn.
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
    """Return the best model and threshold for all chosen images, and for each kind with enough of them.

    Of a tie, the first model is taken. hits: per model. objects, kinds: (I,). images: indices, ascending. start: all
    other settings.
    """

    def best(chosen: np.ndarray) -> Choice:
        found = [best_threshold(one.of_images(chosen), objects[chosen]) for one in hits]
        model = int(np.argmax([each.object_ap for each in found]))
        return Choice(model, replace(start, score_threshold=found[model].threshold))

    own = {str(name): images[kinds[images] == name] for name in np.unique(kinds[images])}
    return best(images), {name: best(chosen) for name, chosen in own.items() if len(chosen) >= _FEWEST}
