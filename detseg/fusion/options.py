"""How the predictions of several members (models, flips, tiles, other programs) become one list an image.

Stored as YAML (configs/fusion/*.yaml). A setting that may differ between classes is one value, or one value a class by
name, with the names listed under `classes`:

    method: wbf
    overlap: box_iou
    classes: [shsy5y, astro, cort]
    threshold: {shsy5y: 0.5, astro: 0.6, cort: 0.5}
    masks: mean
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from detseg.errors import DataError
from detseg.fusion.settings import FRACTION, POWER, SWITCH, PerClass, Rule, Settings, is_number, number, one_of, setting

SCORE_RULES = ("max", "mean", "avg", "box_and_model_avg", "absent_model_aware_avg")
_ABOVE_ZERO = number("a number greater than 0", above=0)
_MASK_THRESHOLD = number("a number greater than 0, up to 1", 0, 1, above=0)
_COUNT = Rule(lambda value: is_number(value) and value >= 1 and float(value).is_integer(), "a whole number from 1")


@dataclass(frozen=True)
class FusionOptions(Settings):
    """Settings of `fuse`; thresholds and numbers of members may be a mapping class name -> value.

    method: what is done with detections of one object. "nms": the best stays (greedy non-maximum suppression).
        "soft_nms": all stay, and the scores of those that overlap a better one decay (Bodla et al., ICCV 2017). "wbf":
        they become one, with the mean box (weighted boxes fusion, Solovyev et al., Image and Vision Computing 2021).
    overlap: what decides that two detections are one object: "box_iou"; "mask_iou"; "intersection_over_smaller", of
        the masks where both have one, else of the boxes.
    threshold: an overlap greater than this is one object (of a pair, that of the better one's class counts).
    across_classes: compare detections of different classes too.
    mask_quality: scores of detections with masks are first multiplied by the mean probability of the mask's pixels to
        this power (`soft_masks.rescore`); 0 changes nothing.
    min_score: detections of a lower score are left out before anything else but that.
    decay, sigma, min_decayed_score: of soft_nms. "linear": a score is multiplied by 1 - overlap where the overlap is
        greater than `threshold`. "gaussian": by exp(-overlap^2 / sigma), whatever the overlap. What falls below
        `min_decayed_score` is dropped.
    scores: of a fused object, from the scores of its detections times the weights of their members; names and formulas
        are those of the package ensemble-boxes. "max" (the default of nms) divides by the largest weight; "mean" is the
        weighted mean; "avg" (the default of wbf) the mean, times min(detections, members) / sum of weights;
        "box_and_model_avg", "absent_model_aware_avg".
    one_per_member: of several detections of one object by one member, only the best counts in scores, boxes and masks.
        A member that sees an object several times otherwise lowers the mean score of its own best detection.
    agreement: power; scores are multiplied by (weight of the members that found the object / sum of weights)^power. 0
        changes nothing.
    min_members: objects found by fewer members than this are dropped.
    masks: of a fused object. "best": of its best detection. "vote": the pixels in masks of more than `mask_threshold`
        of its detections, by weight of the members; half is enough at 0.5. "mean": the mean of the soft masks, by
        weight x score, is at least `mask_threshold`; hard masks count where there are no soft ones.
    without_mask: what becomes of an object that only members without masks have found, where others have masks:
        "drop", or "rectangle", its box as mask.
    cluster_class: of a fused object when classes are compared across: of its "best" detection, or by "vote" (sum of
        weighted scores).
    image_class: where images hold one kind of cell. "drop" the detections of all classes but one, or "relabel" them;
        the class is that with the largest sum of scores, areas or numbers (`image_class_by`).
    weights: one a member, in the order of the members; empty for 1 each.
    backend: "detseg", or "ensemble_boxes": the box methods by that package, for members without masks.
    """

    kind: ClassVar[str] = "fusion options"

    method: str = setting("nms", one_of("nms", "soft_nms", "wbf"))
    overlap: str = setting("box_iou", one_of("box_iou", "mask_iou", "intersection_over_smaller"))
    threshold: PerClass = setting(0.5, FRACTION, per_class=True)
    across_classes: bool = setting(False, SWITCH)
    mask_quality: float = setting(0.0, POWER)
    min_score: PerClass = setting(0.0, FRACTION, per_class=True)
    decay: str = setting("gaussian", one_of("gaussian", "linear"))
    sigma: float = setting(0.5, _ABOVE_ZERO)
    min_decayed_score: float = setting(0.001, FRACTION)
    scores: str = setting("default", one_of("default", *SCORE_RULES))
    one_per_member: bool = setting(False, SWITCH)
    agreement: float = setting(0.0, POWER)
    min_members: PerClass = setting(1, _COUNT, per_class=True)
    masks: str = setting("best", one_of("best", "vote", "mean"))
    mask_threshold: PerClass = setting(0.5, _MASK_THRESHOLD, per_class=True)
    without_mask: str = setting("drop", one_of("drop", "rectangle"))
    cluster_class: str = setting("best", one_of("best", "vote"))
    image_class: str = setting("keep", one_of("keep", "drop", "relabel"))
    image_class_by: str = setting("score", one_of("score", "area", "count"))
    weights: Sequence[float] = ()
    backend: str = setting("detseg", one_of("detseg", "ensemble_boxes"))
    classes: Sequence[str] = ()
    source: str = field(default=kind, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", check_weights(self.weights, self.source))
        if self.method == "soft_nms":
            if self.masks != "best":
                raise DataError(
                    f"{self.source}: soft_nms keeps every detection with its own mask: masks must be best, not "
                    f"{self.masks}"
                )
            if self.scores != "default" or self.one_per_member or self.agreement or self.min_members != 1:
                raise DataError(
                    f"{self.source}: soft_nms has no groups of detections, so that scores, one_per_member, agreement "
                    "and min_members cannot be set; use nms or wbf"
                )
        if self.backend == "ensemble_boxes":
            if self.method == "soft_nms":
                raise DataError(
                    f"{self.source}: the package ensemble-boxes returns scores as they were before soft-NMS; use "
                    "backend: detseg"
                )
            own = {"overlap": "box_iou", "across_classes": False, "agreement": 0.0, "min_members": 1}
            own["one_per_member"] = False
            other = [key for key, value in own.items() if getattr(self, key) != value]
            if other or isinstance(self.threshold, Mapping):
                raise DataError(
                    f"{self.source}: the package ensemble-boxes has no {other[0] if other else 'threshold per class'}; "
                    "use backend: detseg"
                )

    @property
    def score_rule(self) -> str:
        """How scores are put together, one of `SCORE_RULES`."""
        if self.scores != "default":
            return self.scores
        return "avg" if self.method == "wbf" else "max"

    @property
    def needs_soft_masks(self) -> bool:
        """Whether members should have mask probabilities."""
        return self.masks == "mean" or self.mask_quality > 0


def check_weights(weights: Sequence[float], source: str) -> tuple[float, ...]:
    """Return the weights of members as floats. Raises DataError for what is not positive and finite."""
    try:
        values = tuple(weights)
    except TypeError:
        raise DataError(f"{source}: weights: expected one number a member, not {weights!r}") from None
    wrong = [value for value in values if not is_number(value) or not 0 < value < math.inf]
    if wrong:
        raise DataError(
            f"{source}: the weight of a member is {wrong[0]!r}, expected a number greater than 0; leave a member out "
            "instead of giving it no weight"
        )
    return tuple(float(value) for value in values)
