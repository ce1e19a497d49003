"""Postprocessing of a model's predictions: thresholds, size limits, holes, overlaps.

A Postprocess is stored as YAML (`postprocess.yaml` of a run folder):

    classes: [shsy5y, astro, cort]
    score_threshold: {shsy5y: 0.42, astro: 0.5, cort: 0.61}
    mask_threshold: null
    mask_quality: 0
    min_area: 30
    max_area: null
    nms_iou: null
    fill_holes: false
    keep_largest_component: false
    resolve_overlaps: true
    overlap_policy: score
    min_visible_fraction: 0.0
    image_class: keep
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from scipy import ndimage

from detseg.fusion.image_class import image_class
from detseg.fusion.options import FRACTION, POWER, SWITCH, PerClass, Settings, number, one_of, setting
from detseg.fusion.overlaps import POLICIES, replace_masks, resolve_overlaps
from detseg.fusion.soft_masks import rescore, threshold_masks
from detseg.fusion.suppression import suppress_duplicates
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

_FRACTION_OR_NONE = number("a number from 0 to 1, or null", 0, 1, or_none=True)
_PIXELS = number("a number of pixels", at_most=float("inf"))
_PIXELS_OR_NONE = number("a number of pixels, or null for no limit", at_most=float("inf"), or_none=True)


@dataclass(frozen=True)
class Postprocess(Settings):
    """Settings; most of them may be a mapping from class name to value.

    classes: the class names in the order of their indices; needed only for settings per class.
    score_threshold: predictions with score >= it are kept. mask_threshold: masks become the pixels with at least this
    probability; None keeps them. mask_quality: scores are multiplied by the mean probability of the mask's pixels to
    this power, before the score threshold; 0 changes nothing. Both need soft masks.
    min_area, max_area: inclusive limits in pixels; None is no limit. nms_iou: a prediction is dropped if its mask IoU
    with a better one of its class is greater; None drops none.
    fill_holes: background enclosed by a mask becomes mask (4-connected background). keep_largest_component: only the
    largest component (8-connected) of a mask is kept. resolve_overlaps: no pixel belongs to two predictions.
    overlap_policy: a shared pixel goes by "score", by "probability" at this pixel, or by a "watershed" on the
    probabilities. min_visible_fraction: a prediction of which less than this is left uncovered by better ones is
    dropped as a likely duplicate.
    image_class: for images with one kind of cell; the class of an image is the one with the largest sum of scores over
    all its predictions. "settings": the values of this class apply to all predictions, whatever their own classes.
    "relabel": in addition, all predictions first get this class. "keep": neither.
    """

    kind: ClassVar[str] = "postprocess settings"

    classes: Sequence[str] = ()
    score_threshold: PerClass = setting(0.0, FRACTION, per_class=True)
    mask_threshold: PerClass = setting(None, _FRACTION_OR_NONE, per_class=True)
    mask_quality: float = setting(0.0, POWER)
    min_area: PerClass = setting(0, _PIXELS, per_class=True)
    max_area: PerClass = setting(None, _PIXELS_OR_NONE, per_class=True)
    nms_iou: PerClass = setting(None, _FRACTION_OR_NONE, per_class=True)
    fill_holes: PerClass = setting(False, SWITCH, per_class=True)
    keep_largest_component: PerClass = setting(False, SWITCH, per_class=True)
    resolve_overlaps: bool = setting(True, SWITCH)
    overlap_policy: str = setting("score", one_of(*POLICIES))
    min_visible_fraction: float = setting(0.5, FRACTION)
    image_class: str = setting("keep", one_of("keep", "settings", "relabel"))
    source: str = field(default=kind, compare=False, repr=False)

    def apply(self, predictions: Predictions) -> Predictions:
        """Return the predictions of one image after all settings, in their original order.

        Order: the image's class; masks and scores by mask probability; score threshold; holes and components; area
        limits; duplicates; overlaps; components and the lower area limit again, for masks that overlaps have split or
        reduced. Apart from the image's class, each step depends only on single predictions or on those of higher
        score. Predictions without masks get only the image's class and the score threshold.
        """
        if self.image_class != "keep":
            settings, predictions = self.of_image(predictions)
            return settings.apply(predictions)
        result = self._limit_scores(predictions)  # first, as dropped predictions need no new masks
        if result.rles is None:
            return result
        result = self._limit_area(self._limit_scores(self.shaped(result)))
        result = suppress_duplicates(result, self.values("nms_iou", result.classes))
        if self.resolve_overlaps:
            before = result
            result = resolve_overlaps(
                before, min_visible_fraction=self.min_visible_fraction, policy=self.overlap_policy
            )
            untouched = {id(rle) for rle in before.rles}
            changed = np.array([id(rle) not in untouched for rle in result.rles], dtype=bool)
            if changed.any():
                result = self._limit_area(self._repair(result, holes=False, only=changed))
        return result

    def shaped(self, predictions: Predictions) -> Predictions:
        """Return all predictions with their masks and scores recomputed by the settings, before any is dropped."""
        settings, result = self.of_image(predictions)
        result = threshold_masks(result, settings.values("mask_threshold", result.classes))
        return settings._repair(rescore(result, settings.mask_quality))

    def of_image(self, predictions: Predictions) -> tuple[Postprocess, Predictions]:
        """Return equivalent settings for this image without `image_class`, and its predictions in their new classes.

        predictions: all of the image, because they choose its class.
        """
        if self.image_class == "keep" or not len(predictions):
            return dataclasses.replace(self, image_class="keep"), predictions
        chosen = image_class(predictions)
        if self.image_class == "relabel":
            predictions = dataclasses.replace(predictions, classes=np.full(len(predictions), chosen))
        return dataclasses.replace(self.of_class(chosen), image_class="keep"), predictions

    def image_classes(self, images: Sequence[Predictions]) -> np.ndarray | None:
        """Return the class (I,) int64 of each image, whose values apply to it; None if `image_class` is "keep"."""
        if self.image_class == "keep":
            return None
        return np.array([image_class(image) if len(image) else 0 for image in images], dtype=np.int64)

    @property
    def needs_soft_masks(self) -> bool:
        """Whether predictions need soft masks."""
        thresholds = self.mask_threshold.values() if isinstance(self.mask_threshold, Mapping) else [self.mask_threshold]
        return self.mask_quality > 0 or any(value is not None for value in thresholds)

    def apply_all(self, predictions: Iterable[Predictions]) -> Iterable[Predictions]:
        """Apply to each image in turn."""
        return (self.apply(image) for image in predictions)

    def without_score_threshold(self) -> Postprocess:
        """Return the same settings with a score threshold of 0."""
        return dataclasses.replace(self, score_threshold=0.0)

    def may_stay(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return (N,) bool: which predictions of an image can pass the score threshold, whatever their masks.

        Rescoring only lowers scores, so the others need no masks. scores: (N,). classes: (N,) int64.
        """
        if self.image_class != "keep":  # the class of the image, and so the threshold, depends on all predictions
            return np.ones(len(scores), dtype=bool)
        return scores >= self.values("score_threshold", classes)

    def _limit_scores(self, predictions: Predictions) -> Predictions:
        return predictions.select(self.may_stay(predictions.scores, predictions.classes))

    def _limit_area(self, predictions: Predictions) -> Predictions:
        low, high = self.values("min_area", predictions.classes), self.values("max_area", predictions.classes)
        if not len(predictions) or (low.max() <= 0 and np.isinf(high).all()):
            return predictions
        areas = rle_codec.area(predictions.rles)
        return predictions.select((areas >= low) & (areas <= high))

    def _repair(self, predictions: Predictions, holes: bool = True, only: np.ndarray | None = None) -> Predictions:
        """Fill holes and keep the largest component if the settings say so; `only` (N,) bool limits it."""
        fill = (self.values("fill_holes", predictions.classes) > 0) & holes
        largest = self.values("keep_largest_component", predictions.classes) > 0
        chosen = np.flatnonzero((fill | largest) & (True if only is None else only))
        crops = rle_codec.decode_crops([predictions.rles[index] for index in chosen])
        repaired = {}
        for index, crop in zip(chosen, crops, strict=True):
            new = keep_largest_component(crop.mask) if largest[index] else crop.mask
            new = ndimage.binary_fill_holes(new) if fill[index] else new
            if np.count_nonzero(new != crop.mask):
                repaired[index] = rle_codec.encode_crop(new, crop.x0, crop.y0, predictions.height, predictions.width)
        return replace_masks(predictions, repaired) if repaired else predictions


def keep_largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest 8-connected component of a mask (h, w) bool; of a tie, the first in row-major order."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
    if count < 2:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
