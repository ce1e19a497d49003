"""The teacher's detections in weak views as labels of the strong views."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detseg.data.views import Views
from detseg.engine.mean_teacher.options import PseudoLabelOptions
from detseg.engine.mean_teacher.thresholds import ClassThresholds
from detseg.models.paste import paste_through, quantise
from detseg.models.rcnn.box_head import BoxPredictor
from detseg.models.rcnn.generalized_rcnn import GeneralizedRCNN
from detseg.models.rcnn.matching import Matcher
from detseg.models.rcnn.rpn import Proposals
from detseg.models.region_segmenter import Detections, RegionMasks
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import BOX_LOSS, MASK_LOSS, Sample

# Proposals with a lower objectness are skipped: they hardly ever become confident detections.
_LEAST_OBJECTNESS = 0.2
# Number of jittered copies of a box, and the largest shift of their edges as a fraction of its sides (Soft Teacher).
_JITTERS, _JITTER = 10, 0.06
# An object within this distance of an edge of the weak view, in pixels, may extend beyond it.
_EDGE = 1.0


@dataclass(frozen=True)
class Labels:
    """The labels of one view.

    sample: the strong view with its labels; None if no detection is confident. found, unsure: numbers of detections
    that became labels and that are ignored.
    """

    sample: Sample | None
    found: int
    unsure: int


class Labeler:
    """Labels views with a teacher in evaluation mode, with thresholds that may adapt during training."""

    def __init__(self, teacher: GeneralizedRCNN, options: PseudoLabelOptions) -> None:
        self.teacher = teacher
        self.options = options
        # Save time on what cannot become a label: more proposals than in training, unlikely proposals, and detections
        # below every threshold.
        rpn = teacher.proposal_generator
        rpn.least_objectness = math.log(_LEAST_OBJECTNESS / (1 - _LEAST_OBJECTNESS))
        least = min(*options.per_class(options.ignore_from), *options.least)
        for module in teacher.roi_heads.modules():
            if isinstance(module, BoxPredictor):
                module.score_threshold = max(module.score_threshold, min(least, 1.0))
        rpn.options = dataclasses.replace(
            rpn.options,
            pre_nms_test=min(rpn.options.pre_nms_test, rpn.options.pre_nms_train),
            post_nms_test=min(rpn.options.post_nms_test, rpn.options.post_nms_train),
        )
        self.thresholds = ClassThresholds(
            options.per_class(options.thresholds), adapts=options.adapt == "counts", bounds=options.adapt_range
        )
        self._unsure = torch.tensor(options.per_class(options.ignore_from), dtype=torch.float64)
        # The same jitter for every box and iteration, so that the training's random numbers are not used.
        generator = torch.Generator().manual_seed(0)
        self._jitter = (torch.rand((_JITTERS, 1, 4), generator=generator) * 2 - 1) * _JITTER

    @torch.inference_mode()
    def __call__(self, views: Sequence[Views], labeled: Sequence[Sample] = ()) -> list[Labels]:
        """Label a batch of views. labeled: the labelled samples of the same step, to which thresholds may adapt."""
        teacher = self.teacher
        features = teacher.extract([view.weak for view in views])
        proposals = teacher.propose(features)
        found = teacher.roi_heads.detect(features[0], proposals, features[1])
        answers = [(one.scores.double().cpu(), one.classes.cpu()) for one in found]
        self.thresholds.observe(labeled, [(s.numpy(), c.numpy()) for s, c in answers], features[1])
        sure = [scores >= torch.from_numpy(self.thresholds.values)[classes] for scores, classes in answers]
        for number, (scores, classes) in enumerate(answers):
            # No masks are computed for an image without a confident detection.
            kept = (sure[number] | (scores >= self._unsure[classes])) & sure[number].any()
            index = torch.nonzero(kept).squeeze(1)
            found[number], sure[number] = found[number][index.to(found[number].boxes.device)], sure[number][index]
        if not any(len(one.boxes) for one in found):
            return [Labels(None, 0, 0) for _ in views]
        boxes, classes = [one.boxes for one in found], [one.classes for one in found]
        of_sure = [
            [part[index.to(part.device)] for part, index in zip(parts, sure, strict=True)] for parts in (boxes, classes)
        ]
        stable = self._stable(features, proposals, *of_sure)
        masks = teacher.region_masks(features, boxes, classes)
        return [self._labels(*parts) for parts in zip(views, found, masks, stable, sure, strict=True)]

    def _stable(
        self,
        features: tuple[dict[str, Tensor], list[tuple[int, int]]],
        proposals: Sequence[Proposals],
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return (n,) bool for every image: which boxes (n, 4) of its labels are reliable enough for the box loss."""
        options = self.options
        if options.box_gate == "rpn":
            matcher = Matcher((options.min_agreement,), (0, 1))
            pairs = zip(proposals, boxes, strict=True)
            return [matcher.match_boxes(of_image.boxes, own)[1] == 1 for of_image, own in pairs]
        if options.box_gate != "jitter":
            return [torch.full((len(own),), options.box_gate == "always") for own in boxes]
        sides = [(own[:, 2:] - own[:, :2]).repeat(1, 2) for own in boxes]
        jitter = self._jitter.to(boxes[0].device)
        # (jitters * n, 4): all boxes with the first jitter, then all with the second, ...
        moved = [(own + jitter * side).flatten(0, 1) for own, side in zip(boxes, sides, strict=True)]
        again = self.teacher.roi_heads.move(features[0], moved, [own.repeat(_JITTERS) for own in classes], features[1])
        deviations = [
            (one.unflatten(0, (_JITTERS, -1)).std(dim=0) / side.clamp(min=1)).mean(dim=1)
            for one, side in zip(again, sides, strict=True)
        ]
        return [deviation <= options.max_jitter for deviation in deviations]

    def _labels(self, view: Views, found: Detections, masks: RegionMasks, stable: Tensor, sure: Tensor) -> Labels:
        """Return the labels of one view. sure: (n,) bool. stable: (m,) bool, for the sure detections."""
        if not bool(sure.any()):
            return Labels(None, 0, 0)
        is_sure, boxes = sure.numpy(), found.boxes.float().cpu().numpy()
        probabilities, quality = masks.on_cpu()
        strong, geometry, size = view.strong, view.geometry, (view.strong.height, view.strong.width)
        crops = list(paste_through(probabilities, boxes, geometry))
        pixels = [(crop >= 0.5, x0, y0) for crop, x0, y0 in crops]
        layers = LabelLayers.from_crops([one for one, label in zip(pixels, is_sure, strict=True) if label], *size)
        outside = geometry.outside()
        ignore = np.zeros(size, dtype=bool)
        for (mask, x0, y0), label in zip(pixels, is_sure, strict=True):
            if not label:
                ignore[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] |= mask
        ignore &= ~layers.foreground()
        for further in (outside, strong.ignore):
            ignore |= False if further is None else further
        weights = np.ones((len(boxes), 3), dtype=np.float32)
        weights[is_sure, BOX_LOSS] = stable.cpu().numpy()
        if outside is not None:  # an object that the weak view cuts may be larger here
            height, width = view.weak.shape[:2]
            cut = (boxes[:, :2] <= _EDGE).any(axis=1) | (boxes[:, 2:] >= [width - _EDGE, height - _EDGE]).any(axis=1)
            weights[cut, BOX_LOSS] = 0
        mask_weights = np.ones(len(boxes), dtype=np.float32) if quality is None else quality
        scores = found.scores.float().cpu().numpy() * mask_weights
        weights[:, MASK_LOSS] = np.where(scores >= self.options.mask_score, mask_weights, 0)
        seen = layers.areas() > 0
        if not seen.any():
            return Labels(None, 0, 0)
        sample = dataclasses.replace(
            strong,
            layers=layers.select(seen),
            classes=found.classes.cpu().numpy()[is_sure][seen],
            ignore=ignore if ignore.any() else None,
            background_weight=self.options.background,
            object_weights=weights[is_sure][seen],
            certainty=self._certainty(crops, size) if self.options.pixel_weights else None,
        )
        return Labels(sample, int(seen.sum()), int((~is_sure).sum()))

    def _certainty(self, crops: Sequence[tuple[np.ndarray, int, int]], size: tuple[int, int]) -> np.ndarray:
        """Return |2 p - 1| of every pixel, (H, W) uint8, 255 for 1; the lowest value where objects overlap."""
        certainty = np.full(size, 255, dtype=np.uint8)
        for crop, x0, y0 in crops:
            window = certainty[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
            np.minimum(window, quantise(np.abs(2 * crop - 1)), out=window)
        return certainty
