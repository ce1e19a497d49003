"""Proposals sampled and labelled for training, and prediction of many regions in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detseg.models.rcnn.matching import Matcher, sample_labels
from detseg.models.rcnn.rpn import Proposals
from detseg.models.rcnn.targets import Targets


@dataclass(frozen=True)
class Regions:
    """Proposals of one image sampled for training: boxes (P, 4), classes (P,) int64 (K: background), objects (P,)
    int64.

    If sampled by RegionSampling, the `foreground` ones on objects come first.
    """

    boxes: Tensor
    classes: Tensor
    objects: Tensor
    foreground: int

    def matched_boxes(self, target: Targets) -> Tensor:
        """Return the box (P, 4) of the object of each region, zeros if the image has no objects."""
        return target.boxes[self.objects] if len(target.boxes) else torch.zeros_like(self.boxes)


@dataclass(frozen=True)
class RegionSampling:
    """batch_size proposals per image are used in the loss, at most positive_fraction of them on objects.

    append_objects: the objects' own boxes are proposals too, so that there are good ones from the start.
    """

    matcher: Matcher
    batch_size: int
    positive_fraction: float
    append_objects: bool = True

    @torch.no_grad()
    def __call__(self, proposals: Proposals, target: Targets, num_classes: int) -> Regions:
        """Label the proposals of one image and sample from them."""
        boxes = proposals.boxes
        if self.append_objects:
            boxes = torch.cat((boxes, target.boxes))
        classes, matches = label_boxes(boxes, target, self.matcher, num_classes)
        positive, negative = sample_labels(classes, self.batch_size, self.positive_fraction, background=num_classes)
        chosen = torch.cat((positive, negative))
        return Regions(boxes[chosen], classes[chosen], matches[chosen], len(positive))


@torch.no_grad()
def label_boxes(boxes: Tensor, target: Targets, matcher: Matcher, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the class (n,) int64 of boxes (n, 4), num_classes for background and -1 for neither, and their objects."""
    matches, labels = matcher.match_boxes(target.boxes, boxes)
    classes = torch.full_like(matches, num_classes)
    if len(target.classes):
        classes = torch.where(labels == 1, target.classes[matches], classes)
    classes[labels == -1] = -1
    return target.leave_out_ignored(classes, matches, boxes, background=num_classes), matches


def by_portions(
    function: Callable[[list[Tensor]], tuple[Tensor, ...]], boxes: Sequence[Tensor], size: int
) -> tuple[Tensor, ...]:
    """Apply function(boxes of every image), which returns tensors with a row per box, in chunks."""
    parts = [function(portion) for portion in in_portions(boxes, size)]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def in_portions(boxes: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Split the boxes (N, 4) of every image, in their order, into chunks of `size` boxes over all images.

    There is at least one chunk; each has a tensor for every image, possibly empty.
    """
    firsts = [0]
    for image_boxes in boxes:
        firsts.append(firsts[-1] + len(image_boxes))
    for start in range(0, max(firsts[-1], 1), size):
        yield [
            image_boxes[max(start - first, 0) : max(start + size - first, 0)]
            for image_boxes, first in zip(boxes, firsts, strict=False)
        ]
