"""The gates that a predicted object passes before a model learns from it.

An object is kept where all of them say that it is sure, dropped where one says that it is too doubtful, and between the
two it is ignored: neither object nor background. Stored as YAML:

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
_WANTED = number("a share above 0, up to 1", 0, 1, above=0)
_COUNT = Rule(lambda value: is_number(value) and value >= 0 and float(value).is_integer(), "a whole number from 0")
_TEXT = Rule(lambda value: isinstance(value, str), "the name of a field of the images")
_CLASS = Rule(lambda value: isinstance(value, str) and bool(value), "keep, majority, or a field of the images")


@dataclass(frozen=True)
class Gates(Settings):
    """Settings of the gates; most may be a mapping class name -> value.

    score, ignore_score: an object of at least `score` is sure, one below `ignore_score` is dropped. quality,
        ignore_quality: the same for the quality of its mask that the model predicts, where it does. agreement,
        ignore_agreement: the same for the mean IoU with what the other members (models, folds, views) have found, see
        `agreement_with`; 0 does not ask.
    min_area, max_area: in pixels; what is smaller or larger is not sure (debris, several cells in one).
    choose: how the limits of the score are chosen. "fixed": as given. "counts": of every class and group of images, as
        many objects an image are sure as the labelled images have (Noisy Boundaries, Wang et al., CVPR 2022), and
        `ignore_counts` times as many are sure or ignored; never below `ignore_score`. "precision": the lowest score
        from which on the share `precision` of the objects that pass the other gates hits an object of the labelled
        images, of the same class, by an IoU greater than `iou`, on predictions out of fold; below it, the lowest from
        which on the share `ignore_precision` of what is ignored does.
    group_by: field of the images that says their group, for "counts"; images without it are of one group.
    image_class: "keep": an object has the class that was predicted. "majority": all objects of an image get the class
        with the largest sum of scores. Else a field of the images that says the class: by its name, or as the labelled
        images of this value (a plate, for example) have it, where all their objects are of one class.
    min_sure: an image with fewer sure objects is left out. min_sure_share: one of whose sure and ignored objects a
        smaller share is sure. min_image_score: one whose sure and ignored objects have a lower mean score.
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
            # What is chosen takes neither limit of the score as it is.
            if (low > high).any() and not (name == "score" and self.choose != FIXED):
                raise DataError(
                    f"{self.source}: ignore_{name} is {getattr(self, f'ignore_{name}')}, above {name}, "
                    f"{getattr(self, name)}; an object is ignored from ignore_{name} on, and sure from {name} on"
                )

    @property
    def asks_for_agreement(self) -> bool:
        """Whether an object needs an agreement to pass."""
        values = self.agreement.values() if isinstance(self.agreement, Mapping) else [self.agreement]
        return any(value > 0 for value in values)


@dataclass(frozen=True)
class Candidates:
    """N objects of one image before the gates. agreement: (N,) float64 in [0, 1], or None where there is one member."""

    predictions: Predictions
    agreement: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def quality(self) -> np.ndarray:
        """(N,) float32, what the models say of their masks, NaN where they say nothing."""
        return self.predictions.quality


@dataclass(frozen=True)
class Verdict:
    """Of N objects: which are sure, and which too doubtful, by all gates but the score, (N,) bool both.

    doubts: N lists of the gates by which an object is not sure.
    """

    sure: np.ndarray
    refused: np.ndarray
    doubts: list[list[str]]

    def decide(
        self, scores: np.ndarray, sure_from: np.ndarray, ignore_from: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        """Return the decision on every object, (N,) of DROPPED, IGNORED, KEPT, and the gates that it did not pass.

        scores, sure_from, ignore_from: (N,), the score of each and the limits of its class and group.
        """
        decisions = np.where(self.sure & (scores >= sure_from), KEPT, IGNORED)
        decisions[self.refused | (scores < ignore_from)] = DROPPED
        doubts = [
            ", ".join([*(["score"] if low else []), *others])
            for low, others in zip((scores < sure_from).tolist(), self.doubts, strict=True)
        ]
        return decisions, doubts


def judge(candidates: Candidates, gates: Gates) -> Verdict:
    """Ask all gates but the score."""
    predictions = candidates.predictions
    count, classes = len(predictions), predictions.classes
    sure, refused = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    doubts: list[list[str]] = [[] for _ in range(count)]
    values = {"agreement": candidates.agreement, "quality": candidates.quality}
    passed = {}
    for name, value in values.items():
        if value is not None:
            passed[name] = ~(value < gates.values(name, classes))  # what is not known, NaN, passes
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
    """Say why an image with these decisions (N,) and scores (N,) is left out; None where it is not."""
    sure, used = int((decisions == KEPT).sum()), decisions != DROPPED
    if sure < gates.min_sure:
        return f"{sure or 'no'} sure objects (min_sure {gates.min_sure})"
    if used.any() and sure < gates.min_sure_share * used.sum():
        return f"{sure} of {used.sum()} objects are sure (min_sure_share {gates.min_sure_share})"
    if used.any() and (mean := float(scores[used].mean())) < gates.min_image_score:
        return f"the mean score is {mean:.2f} (min_image_score {gates.min_image_score})"
    return None
