"""Scores of settings: every trial is computed for all images at once and cached, to be scored on any subset of images.

Object scores (object AP, F1, precision, recall) come from a `CandidateTable`, in milliseconds per trial. COCO AP and
settings that the table does not support (another overlap policy, components, overlaps kept) are computed by applying
the postprocess.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.errors import ConfigError
from detseg.evaluation.evaluate import count_all, metrics_of
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.fuse import fuse
from detseg.structures import Predictions
from detseg.tuning.candidates import OBJECT_METRICS, CandidateTable, CountTable, is_fast, object_numbers
from detseg.tuning.space import State
from detseg.tuning.thresholds import best_threshold

COCO_METRICS = tuple(f"coco_{kind}_{name}" for kind in ("bbox", "segm") for name in ("ap", "ap50", "ap75"))
# Cached tables (some 15 MB each for 90 images of 1,000 predictions), and cached fused predictions.
KEPT_TABLES, KEPT_FUSIONS = 32, 3


@dataclass(frozen=True)
class ObjectOutcome:
    """Outcome on I images as a score that is a ratio of two sums over images, (I,) float64 each."""

    numerators: np.ndarray
    denominators: np.ndarray

    def score(self, images: np.ndarray) -> float | None:
        """Return the score on images (indices, which may repeat); None if undefined."""
        whole = self.denominators[images].sum()
        return float(self.numerators[images].sum() / whole) if whole > 0 else None

    def pick(self, images: np.ndarray, other: ObjectOutcome) -> ObjectOutcome:
        """Return this outcome with that of `other` on the images (I,) bool."""
        return ObjectOutcome(
            np.where(images, other.numerators, self.numerators),
            np.where(images, other.denominators, self.denominators),
        )


@dataclass(frozen=True)
class CocoOutcome:
    """Outcome on I images for COCO AP, which is no sum over images and needs the predictions."""

    truth: GroundTruth
    processed: Sequence[Predictions]
    metric: str
    class_name: str | None

    def score(self, images: np.ndarray) -> float | None:
        """See `ObjectOutcome.score`; an image that occurs twice counts as two images."""
        part = _SomeImages(self.truth.class_names, [self.truth.images[index] for index in images])
        metrics = metrics_of(part, [self.processed[index] for index in images], None)
        return (metrics if self.class_name is None else metrics["per_class"][self.class_name])[self.metric]

    def pick(self, images: np.ndarray, other: CocoOutcome) -> CocoOutcome:
        """As `ObjectOutcome.pick`."""
        pairs = zip(self.processed, other.processed, images, strict=True)
        return dataclasses.replace(self, processed=[theirs if take else own for own, theirs, take in pairs])


Outcome = ObjectOutcome | CocoOutcome


class _SomeImages(GroundTruth):
    """A subset of a ground truth, possibly with repeated images."""

    def __post_init__(self) -> None:
        """Skip the checks, which the whole has passed and repeated images would fail."""


def parse_metric(metric: str, class_names: Sequence[str]) -> tuple[str, str | None]:
    """Return the key of a score and its class, or None: `object_ap`, `per_class.NAME.object_ap`."""
    known = [*OBJECT_METRICS, *COCO_METRICS]
    key, class_name = metric, None
    if metric.startswith("per_class."):
        class_name, _, key = metric.removeprefix("per_class.").rpartition(".")
        if class_name not in class_names:
            raise ConfigError(f"metric {metric}: there is no class {class_name!r}; there are: {', '.join(class_names)}")
    if key not in known:
        raise ConfigError(f"there is no metric {key!r} to tune; there are: {', '.join(known)}, per_class.NAME.METRIC")
    return key, class_name


class Trials:
    """The outcomes of settings on the images of a ground truth."""

    def __init__(
        self,
        truth: GroundTruth,
        members: Sequence[Sequence[Predictions]],
        metric: str,
        on_trial: Callable[[], Any] = lambda: None,
    ) -> None:
        """members: predictions of all images by each member, in the order of the truth; a single member is not fused.

        on_trial: called for every setting that is computed for the first time.
        """
        self.truth = truth
        self.members = [list(member) for member in members]
        self.metric, self.class_name = parse_metric(metric, truth.class_names)
        self.count = 0
        self._objects = object_numbers(truth.images, len(truth.class_names))
        self._on_trial = on_trial
        self._outcomes: dict[str, Outcome] = {}
        self._scores: dict[tuple[str, bytes], float | None] = {}
        self._tables: OrderedDict[str, CandidateTable] = OrderedDict()
        self._fused: OrderedDict[str, list[Predictions]] = OrderedDict()

    @property
    def is_coco(self) -> bool:
        return self.metric in COCO_METRICS

    def score(self, state: State, images: np.ndarray) -> float | None:
        """Return the score on images (indices); None if undefined."""
        key = state.key, np.asarray(images, dtype=np.int64).tobytes()
        if key not in self._scores:
            self._scores[key] = self.outcome(state).score(images)
        return self._scores[key]

    def outcome(self, state: State) -> Outcome:
        """Return the outcome on all images."""
        if state.key in self._outcomes:
            return self._outcomes[state.key]
        self.count += 1
        self._on_trial()
        if self.is_coco:  # it holds all predictions, so only its scores are cached
            return CocoOutcome(self.truth, self.processed(state), self.metric, self.class_name)
        table = self.table(state)
        if table is None:
            counts = count_all(self.truth, self.processed(state)) or []
            counted = CountTable.of_images(counts, len(self.truth.class_names))
        else:
            counted = CountTable.of_hits(table.hits(state.postprocess), self._objects)
        row = 0 if self.class_name is None else 1 + self.truth.class_names.index(self.class_name)
        outcome = self._outcomes[state.key] = ObjectOutcome(*counted.parts(self.metric, row))
        return outcome

    def processed(self, state: State) -> list[Predictions]:
        """Return the predictions of all images after fusion and postprocess."""
        return [state.postprocess.apply(image) for image in self.predictions(state)]

    def predictions(self, state: State) -> list[Predictions]:
        """Return the predictions of all images before the postprocess."""
        if state.fusion is None:
            return self.members[0]
        return _stored(
            self._fused,
            state.fusion_key,
            lambda: [fuse(image, state.fusion) for image in zip(*self.members, strict=True)],
            KEPT_FUSIONS,
        )

    def table(self, state: State) -> CandidateTable | None:
        """Return the table for these settings, or None if they are not supported."""
        if not is_fast(state.postprocess):
            return None

        def make() -> CandidateTable:
            post, images = state.postprocess, self.predictions(state)
            shaped = [post.shaped(image) for image in images]
            return CandidateTable(self.truth.images, shaped, image_classes=post.image_classes(images))

        return _stored(self._tables, state.masks_key, make, KEPT_TABLES)

    def exact_threshold(self, state: State, images: np.ndarray, class_name: str | None = None) -> float | None:
        """Return the best of all score thresholds on the images (indices), with all other settings fixed.

        class_name: optimize the threshold of this class; None for a common one. Returns None if the exact optimum is
        not known; it is known for object AP of all objects, and of a class if it alone counts in its images.
        """
        table = self.table(state)
        if table is None or self.metric != "object_ap" or self.class_name is not None:
            return None
        if class_name is not None:
            if state.postprocess.image_class == "keep":
                return None
            ruled = table.image[table.ruling == self.truth.class_names.index(class_name)]
            images = images[np.isin(images, ruled)]
        hits = table.hits(state.postprocess.without_score_threshold())
        if not len(hits.image) or not len(images):
            return None
        return best_threshold(hits.of_images(images), self._objects[images, 0]).threshold


def _stored(store: OrderedDict[str, Any], key: str, make: Callable[[], Any], limit: int) -> Any:
    """Return the value cached under `key`, or make it; the least recently used is evicted above `limit`."""
    if key not in store:
        store[key] = make()
        while len(store) > limit:
            store.popitem(last=False)
    store.move_to_end(key)
    return store[key]
