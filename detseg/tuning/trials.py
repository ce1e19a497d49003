"""What settings score: every trial is computed for all images at once and kept, whatever images are then asked about.

Object scores (object AP, F1, precision, recall) come from a `CandidateTable`, in milliseconds a trial; settings that it
does not know (another overlap policy, components, overlaps left alone) and COCO AP are computed by applying the
postprocess.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from detseg.errors import ConfigError
from detseg.evaluation.evaluate import count_all, metrics_of
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.fuse import fuse
from detseg.structures import Predictions
from detseg.tuning.candidates import (
    OBJECT_METRICS,
    CandidateTable,
    CountTable,
    Hits,
    count_hits,
    is_fast,
    object_numbers,
)
from detseg.tuning.space import State

COCO_METRICS = tuple(f"coco_{kind}_{name}" for kind in ("bbox", "segm") for name in ("ap", "ap50", "ap75"))
# Tables that are kept for later trials (some 15 MB each for 90 images of 1,000 predictions), and fused predictions.
KEPT_TABLES, KEPT_FUSIONS = 32, 3


class Outcome(Protocol):
    """What settings give on I images."""

    def score(self, images: np.ndarray) -> float | None:
        """Return the score of images (indices, which may repeat); None where it is not defined."""
        ...

    def pick(self, images: np.ndarray, other: Outcome) -> Outcome:
        """Return this outcome with those of the other one for the images (I,) bool."""
        ...


class ObjectOutcome:
    """A score that is a sum over images divided by another: numerators, denominators (I,) float64."""

    def __init__(self, numerators: np.ndarray, denominators: np.ndarray) -> None:
        self.numerators = numerators
        self.denominators = denominators

    def score(self, images: np.ndarray) -> float | None:
        whole = self.denominators[images].sum()
        return float(self.numerators[images].sum() / whole) if whole > 0 else None

    def pick(self, images: np.ndarray, other: ObjectOutcome) -> ObjectOutcome:
        return ObjectOutcome(
            np.where(images, other.numerators, self.numerators),
            np.where(images, other.denominators, self.denominators),
        )


class CocoOutcome:
    """COCO AP is no sum over images: the predictions themselves are kept."""

    def __init__(self, truth: GroundTruth, processed: Sequence[Predictions], metric: str, row: str | None) -> None:
        self._truth, self._processed = truth, list(processed)
        self._metric, self._row = metric, row

    def score(self, images: np.ndarray) -> float | None:
        # An image that is drawn twice is two images.
        part = _Images(self._truth.class_names, [self._truth.images[index] for index in images])
        metrics = metrics_of(part, [self._processed[index] for index in images], None)
        return (metrics if self._row is None else metrics["per_class"][self._row])[self._metric]

    def pick(self, images: np.ndarray, other: CocoOutcome) -> CocoOutcome:
        chosen = [
            theirs if take else own for own, theirs, take in zip(self._processed, other._processed, images, strict=True)
        ]
        return CocoOutcome(self._truth, chosen, self._metric, self._row)


class _Images(GroundTruth):
    """Some images of a ground truth, some of them perhaps several times."""

    def __post_init__(self) -> None:
        """The whole has been checked."""


def parse_metric(metric: str, class_names: Sequence[str]) -> tuple[str, str | None]:
    """Return the key of a score and the class that it is of: `object_ap`, `per_class.NAME.object_ap`."""
    known = [*OBJECT_METRICS, *COCO_METRICS]
    key, row = metric, None
    if metric.startswith("per_class."):
        row, _, key = metric.removeprefix("per_class.").rpartition(".")
        if row not in class_names:
            raise ConfigError(f"metric {metric}: there is no class {row!r}; there are: {', '.join(class_names)}")
    if key not in known:
        raise ConfigError(f"there is no metric {key!r} to tune; there are: {', '.join(known)}, per_class.NAME.METRIC")
    return key, row


class Trials:
    """The outcomes of settings on the images of a ground truth."""

    def __init__(
        self,
        truth: GroundTruth,
        members: Sequence[Sequence[Predictions]],
        metric: str,
        on_trial: Callable[[], Any] = lambda: None,
    ) -> None:
        """members: of each the predictions of all images, in the order of the truth; one member is not fused.

        on_trial: called whenever a setting is computed that was not before.
        """
        self.truth = truth
        self.members = [list(member) for member in members]
        self.metric, self.class_name = parse_metric(metric, truth.class_names)
        self.count = 0
        self._row = 0 if self.class_name is None else 1 + truth.class_names.index(self.class_name)
        self._objects = object_numbers(truth.images, len(truth.class_names))
        self._on_trial = on_trial
        self._outcomes: dict[str, Outcome] = {}
        self._scores: dict[tuple[str, bytes], float | None] = {}
        self._tables: OrderedDict[str, CandidateTable] = OrderedDict()
        self._fused: OrderedDict[str, list[Predictions]] = OrderedDict()

    @property
    def num_objects(self) -> np.ndarray:
        """The number of objects (I,) int64 of every image."""
        return self._objects[:, 0]

    @property
    def is_coco(self) -> bool:
        return self.metric in COCO_METRICS

    def score(self, state: State, images: np.ndarray) -> float | None:
        """Return the score of settings on images (indices); None where it is not defined."""
        key = state.key, np.asarray(images, dtype=np.int64).tobytes()
        if key not in self._scores:
            self._scores[key] = self.outcome(state).score(images)
        return self._scores[key]

    def outcome(self, state: State) -> Outcome:
        """Return what settings give on all images."""
        key = state.key
        if key in self._outcomes:
            return self._outcomes[key]
        self.count += 1
        self._on_trial()
        if self.is_coco:
            return CocoOutcome(self.truth, self.processed(state), self.metric, self.class_name)
        outcome = ObjectOutcome(*self._counts(state).parts(self.metric, self._row))
        self._outcomes[key] = outcome
        return outcome

    def processed(self, state: State) -> list[Predictions]:
        """Return the predictions of all images after fusion and postprocess."""
        return [state.postprocess.apply(image) for image in self.predictions(state)]

    def predictions(self, state: State) -> list[Predictions]:
        """Return the predictions of all images before the postprocess."""
        if state.fusion is None:
            return self.members[0]
        return _kept(
            self._fused,
            state.fusion_key,
            lambda: [fuse(image, state.fusion) for image in zip(*self.members, strict=True)],
            KEPT_FUSIONS,
        )

    def hits(self, state: State) -> Hits | None:
        """Return the hits of settings that a table knows, else None."""
        table = self.table(state)
        return None if table is None else table.hits(state.postprocess)

    def table(self, state: State) -> CandidateTable | None:
        """Return the table that knows these settings, else None."""
        if not is_fast(state.postprocess):
            return None

        def make() -> CandidateTable:
            shaped = [state.postprocess.shaped(image) for image in self.predictions(state)]
            return CandidateTable(self.truth.images, shaped)

        return _kept(self._tables, state.masks_key, make, KEPT_TABLES)

    def _counts(self, state: State) -> CountTable:
        hits = self.hits(state)
        if hits is not None:
            return count_hits(hits, self._objects)
        counts = count_all(self.truth, self.processed(state))
        return CountTable.of_images(counts or [], len(self.truth.class_names))


def _kept(store: OrderedDict[str, Any], key: str, make: Callable[[], Any], limit: int) -> Any:
    """Return what is stored under a key, made where it is not; the longest unused is forgotten."""
    if key not in store:
        store[key] = make()
        while len(store) > limit:
            store.popitem(last=False)
    store.move_to_end(key)
    return store[key]
