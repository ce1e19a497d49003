"""Ignored regions (crowds, uncertain labels) in Detectron2's models: neither object nor background.

Anchors and proposals without an object that lie mostly in such a region are not sampled for any loss, nor is anything
matched to an object that does; ignored pixels do not enter the mask loss. As in detseg/models/rcnn/targets.py.
this holds, is sampled for no loss; ignored pixels do not enter the loss of a mask. As in detseg/models/rcnn/targets.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, ROIHeads
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from detseg.models.rcnn.mask_head import mask_loss

FIELD = "gt_ignored"


def honour_ignored_regions(network: nn.Module) -> bool:
    """Convert each module that labels boxes or trains masks to a subclass that supports ignored regions.

    Returns:
        whether all such modules of an R-CNN were converted; others treat ignored regions as background.
    """
    done = set()
    for module in list(network.modules()):
        for base, subclass in _SUBCLASSES.items():
            # A mask head with its own loss does not know the regions.
            has_own_loss = base is BaseMaskRCNNHead and type(module).forward is not BaseMaskRCNNHead.forward
            if isinstance(module, base) and not has_own_loss:
                own = type(module)
                module.__class__ = type(f"Ignoring{own.__name__}", (subclass, own), {})
                done.add(base)
                break
    heads = getattr(network, "roi_heads", None)
    masks_learn = getattr(heads, "mask_head", None) is not None
    return RPN in done and isinstance(heads, ROIHeads) and (BaseMaskRCNNHead in done or not masks_learn)


class _Matcher:
    """A matcher that excludes ignored boxes after matching. labels: (n,) of the last call, -1 if excluded."""

    def __init__(self, matcher: Callable[[Tensor], tuple[Tensor, Tensor]], objects: Instances, boxes: Tensor) -> None:
        self.matcher = matcher
        self.objects = objects
        self.boxes = boxes
        self.labels: Tensor | None = None

    def __call__(self, overlaps: Tensor) -> tuple[Tensor, Tensor]:
        matches, labels = self.matcher(overlaps)
        if self.objects.has(FIELD):
            region = self.objects.get(FIELD).targets
            labels = labels.to(self.boxes.device)
            labels = region.leave_out_ignored(labels, matches.to(self.boxes.device), self.boxes, background=0)
        self.labels = labels
        return matches, labels


@contextmanager
def _leaving_out(matchers: Any, place: str | int, objects: Instances, boxes: Tensor) -> Iterator[_Matcher]:
    """During the context, `matchers[place]` excludes boxes in the ignored regions of one image."""
    usual = matchers[place]
    matchers[place] = _Matcher(usual, objects, boxes)
    try:
        yield matchers[place]
    finally:
        matchers[place] = usual


class _IgnoringRPN:
    """An RPN that does not sample anchors in ignored regions."""

    def label_and_sample_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> Any:
        if not _any_ignored(gt_instances):
            return super().label_and_sample_anchors(anchors, gt_instances)
        boxes = Boxes.cat(anchors).tensor
        labels, matched = [], []
        for objects in gt_instances:
            with _leaving_out(vars(self), "anchor_matcher", objects, boxes):
                image_labels, image_matched = super().label_and_sample_anchors(anchors, [objects])
            labels += image_labels
            matched += image_matched
        return labels, matched


class _IgnoringROIHeads:
    """ROI heads that do not sample proposals in ignored regions."""

    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        if not _any_ignored(targets):
            return super().label_and_sample_proposals(proposals, targets)
        sampled = []
        for image_proposals, objects in zip(proposals, targets, strict=True):
            boxes = image_proposals.proposal_boxes.tensor
            if self.proposal_append_gt:
                boxes = torch.cat([boxes, objects.gt_boxes.tensor])
            with _leaving_out(vars(self), "proposal_matcher", objects, boxes):
                sampled += super().label_and_sample_proposals([image_proposals], [objects])
        return sampled

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        if len(gt_classes) == 0:
            # Detectron2 skips the labels of images without objects. One background label prevents that.
            gt_classes = gt_classes.new_full((1,), self.num_classes)
        return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)


class _IgnoringCascade(_IgnoringROIHeads):
    """Cascade heads that exclude boxes in ignored regions from later stages."""

    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        if not _any_ignored(targets):
            return super()._match_and_label_boxes(proposals, stage, targets)
        labelled = []
        for image_proposals, objects in zip(proposals, targets, strict=True):
            boxes = image_proposals.proposal_boxes.tensor
            with _leaving_out(self.proposal_matchers, stage, objects, boxes) as matcher:
                (image_labelled,) = super()._match_and_label_boxes([image_proposals], stage, [objects])
            labelled.append(image_labelled[matcher.labels >= 0])
        return labelled


class _IgnoringMaskHead:
    """A mask head whose loss excludes ignored pixels."""

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        if not self.training or not _any_ignored(instances):
            return super().forward(x, instances)
        logits = self.layers(x)
        size = logits.shape[-1]
        classes = torch.cat([image.gt_classes for image in instances])
        if logits.shape[1] == 1:
            classes = torch.zeros_like(classes)
        chosen = logits[torch.arange(len(logits), device=logits.device), classes].float()
        truth, counted = [], []
        for image in instances:
            if len(image) == 0:
                continue
            boxes = image.proposal_boxes.tensor
            truth.append(image.gt_masks.crop_and_resize(boxes, size))
            has_region = image.has(FIELD)
            counted.append(
                image.get(FIELD).targets.counted_in(boxes, size) if has_region else torch.ones_like(truth[-1])
            )
        loss = mask_loss(chosen, torch.cat(truth), torch.cat(counted)) if truth else logits.sum() * 0
        return {"loss_mask": loss * self.loss_weight}


_SUBCLASSES = {
    RPN: _IgnoringRPN,
    CascadeROIHeads: _IgnoringCascade,
    ROIHeads: _IgnoringROIHeads,
    BaseMaskRCNNHead: _IgnoringMaskHead,
}


def _any_ignored(instances: Sequence[Instances]) -> bool:
    return any(image.has(FIELD) for image in instances)
