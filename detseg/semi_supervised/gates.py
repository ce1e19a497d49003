"""The gates that a predicted object must pass before a model is trained with it.

An object is kept if it is sure by all gates, dropped if it is too doubtful by any, and otherwise ignored: neither
object nor background. Stored as YAML:

    classes: [shsy5y, astro, cort]
    score: {shsy5y: 0.6, astro: 0.7, cort: 0.7}
    ignore_score: 0.3
    agreement: 0.6
    ignore_agreement: 0.3
    min_area: 30
    choose: counts
    group_by: group
    image_class: cell_type
    min_sure_share: 0.5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from detseg.coco.pseudo_labels import DROPPED, IGNORED, KEPT
from detseg.errors import DataError
from detseg.fusion.options import FRACTION, PerClass, Rule, Settings, is_number, number, one_of, setting
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

FIXED, COUNTS, PRECISION = "fixed", "counts", "precision"
KEEP, MAJORITY = "keep", "majority"
_PIXELS = number("a number of pixels", at_most=float("inf"))
_PIXELS_OR_NONE = number("a number of pixels, or null for no limit", at_most=float("inf"), or_none=True)
_WANTED = number("a fraction above 0, up to 1", 0, 1, above=0)
_COUNT = Rule(lambda value: is_number(value) and value >= 0 and float(value).is_integer(), "a whole number from 0")
_TEXT = Rule(lambda value: isinstance(value, str), "the name of a field of the images")
_CLASS = Rule(lambda value: isinstance(value, str) and bool(value), "keep, majority, or a field of the images")


@dataclass(frozen=True)
class Gates(Settings):
    """Settings of the gates; most may be a mapping from class name to value.

    score, ignore_score: an object with at least `score` is sure, one below `ignore_score` is dropped. quality,
        ignore_quality: the same for the predicted mask quality, if the model has one. agreement, ignore_agreement: the
        same for the mean IoU with the objects of the other members (models, folds, views), see `agreement_with`; 0 is
        off.
    min_area, max_area: in pixels; smaller or larger objects are not sure (debris, several cells in one).
    choose: how the score limits are chosen. "fixed": as given. "counts": per class and group of images, so that images
        have as many sure objects on average as the labelled images (Noisy Boundaries, Wang et al., CVPR 2022), and
        `ignore_counts` times as many sure or ignored ones; never below `ignore_score`. "precision": the lowest score
        above which the fraction `precision` of the objects that pass the other gates hit a labelled object of their
        class with an IoU greater than `iou`, on out-of-fold predictions; below it, the lowest score above which the
        fraction `ignore_precision` of the ignored objects do.
    group_by: image field with the group, for "counts"; images without it form one group.
    image_class: "keep": an object keeps its predicted class. "majority": all objects of an image get the class with the
        largest sum of scores. Else an image field that determines the class: by its name, or by the labelled images
        with the same value (such as a plate), if all their objects have one class.
    min_sure: an image with fewer sure objects is left out. min_sure_share: so is one with a smaller fraction of sure
        objects among sure and ignored ones. min_image_score: so is one whose sure and ignored objects have a lower mean
        score.
    """

    kind: ClassVar[str] = "gates of pseudo-labels"

    classes: Sequence[str] = ()
    score: PerClass = setting(0.7, FRACTION, per_class=True)
    ignore_score: PerClass = setting(0.3, FRACTION, per_class=True)
    quality: PerClass = setting(0.0, FRACTION, per_class=True)
    ignore_quality: PerClass = setting(0.0, FRACTION, per_class=True)
    agreement: PerClass = setting(0.0, FRACTION, per_class=True)
    ignore_agreement: PerClass = setting(0.0, FRACTION, per_class=True)
    min_area: PerClass = setting(0, _PIXELS, per_class=True)
    max_area: PerClass = setting(None, _PIXELS_OR_NONE, per_class=True)
    choose: str = setting(FIXED, one_of(FIXED, COUNTS, PRECISION))
    precision: PerClass = setting(0.9, _WANTED, per_class=True)
    ignore_precision: PerClass = setting(0.3, _WANTED, per_class=True)
    ignore_counts: float = setting(1.5, number("a number from 1", 1))
    iou: float = setting(0.5, number("an IoU from 0.5, below 1", 0.5, 0.999))
    group_by: str = setting("group", _TEXT)
    image_class: str = setting(KEEP, _CLASS)
    min_sure: int = setting(1, _COUNT)
    min_sure_share: float = setting(0.3, FRACTION)
    min_image_score: float = setting(0.0, FRACTION)
    source: str = field(default=kind, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        count = max(len(self.classes), 1)
        for name in ("score", "quality", "agreement"):
            low, high = (self.values(key, np.arange(count)) for key in (f"ignore_{name}", name))
            # Chosen limits override those of the score.
            if (low > high).any() and not (name == "score" and self.choose != FIXED):
                raise DataError(
                    f"{self.source}: ignore_{name} is {getattr(self, f'ignore_{name}')}, above {name}, "
                    f"{getattr(self, name)}; expected ignore_{name} <= {name}"
                )

    @property
    def asks_for_agreement(self) -> bool:
        """Whether the agreement of an object is needed."""
        values = self.agreement.values() if isinstance(self.agreement, Mapping) else [self.agreement]
        return any(value > 0 for value in values)


@dataclass(frozen=True)
class Candidates:
    """N objects of one image before the gates. agreement: (N,) float64 in [0, 1], or None with a single member."""

    predictions: Predictions
    agreement: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def quality(self) -> np.ndarray:
        """(N,) float32, predicted quality of the masks, NaN if unknown."""
        return self.predictions.quality


@dataclass(frozen=True)
class Verdict:
    """(N,) bool each: which objects are sure, and which too doubtful, by all gates but the score.

    doubts: N lists of the gates by which an object is not sure.
    """

    sure: np.ndarray
    refused: np.ndarray
    doubts: list[list[str]]

    def decide(
        self, scores: np.ndarray, sure_from: np.ndarray, ignore_from: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        """Return the decision on every object, (N,) of DROPPED, IGNORED, KEPT, and the gates that it did not pass.

        scores, sure_from, ignore_from: (N,), the score of each, and the limits for its class and group.
        """
        decisions = np.where(self.sure & (scores >= sure_from), KEPT, IGNORED)
        decisions[self.refused | (scores < ignore_from)] = DROPPED
        doubts = [
            ", ".join([*(["score"] if low else []), *others])
            for low, others in zip((scores < sure_from).tolist(), self.doubts, strict=True)
        ]
        return decisions, doubts


def judge(candidates: Candidates, gates: Gates) -> Verdict:
    """Apply all gates but the score."""
    predictions = candidates.predictions
    count, classes = len(predictions), predictions.classes
    sure, refused = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    doubts: list[list[str]] = [[] for _ in range(count)]
    values = {"agreement": candidates.agreement, "quality": candidates.quality}
    passed = {}
    for name, value in values.items():
        if value is not None:
            passed[name] = ~(value < gates.values(name, classes))  # unknown values, NaN, pass
            refused |= value < gates.values(f"ignore_{name}", classes)
    if predictions.rles is not None:
        areas = rle_codec.area(predictions.rles)
        passed["area"] = (areas >= gates.values("min_area", classes)) & (areas <= gates.values("max_area", classes))
        refused |= areas == 0
    for name, good in passed.items():
        sure &= good
        for index in np.flatnonzero(~good).tolist():
            doubts[index].append(name)
    return Verdict(sure, refused, doubts)


def image_problem(decisions: np.ndarray, scores: np.ndarray, gates: Gates) -> str | None:
    """Return why an image with these decisions (N,) and scores (N,) is left out; None if it is not."""
    sure, used = int((decisions == KEPT).sum()), decisions != DROPPED
    if sure < gates.min_sure:
        return f"{sure or 'no'} sure objects (min_sure {gates.min_sure})"
    if used.any() and sure < gates.min_sure_share * used.sum():
        return f"{sure} of {used.sum()} objects are sure (min_sure_share {gates.min_sure_share})"
    if used.any() and (mean := float(scores[used].mean())) < gates.min_image_score:
        return f"the mean score is {mean:.2f} (min_image_score {gates.min_image_score})"
    return None
