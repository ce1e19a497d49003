"""The objects of an image on the device of the model, and their masks within boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from detseg.errors import DataError
from detseg.models.rcnn.matching import PAIRS_PER_CHUNK, pair_iou
from detseg.models.rcnn.roi_align import axis_weights, crop_side
from detseg.models.torchvision_ops import roi_align
from detseg.structures.sample import CLASS_LOSS, MASK_LOSS, Sample

# A box or object with more than this fraction in ignored regions is neither object nor background.
IGNORED_FRACTION = 0.5
# So is background whose box has at least this IoU with that of a connected ignored region: the box of a thin object
# contains few of its pixels. Anchors with this IoU with a labelled object are not background either.
IGNORED_IOU = 0.3
# A cell of a small mask is foreground if at least this fraction of it belongs to the object.
MASK_THRESHOLD = 0.5
# Background whose box has a smaller IoU with its best object is far from all objects. Partial and duplicate boxes of an
# object have more, and remain background however many objects the labels miss.
FAR_IOU = 0.1
# Pixels of crops in memory at once; sides of crops are multiples of CROP_STEP, so that many are computed together.
PIXELS_PER_CHUNK = 2_000_000
CROP_STEP = 16


@dataclass(frozen=True)
class Targets:
    """N objects of one image.

    boxes: (N, 4). classes: (N,) int64. areas: (N,) float32, pixels. ids: (N,) int32, and layer_of: (N,) int64: where
    `layers` (L, H, W) int32 holds them. ignored: (N,) bool, objects that are mostly in an ignored region. ignore:
    (H, W) bool, or None. ignore_sums: (H + 1, W + 1) int64, sums of `ignore` above and left of each corner, or None.
    ignore_boxes: (R, 4) float32, of its connected regions, or None.
    weight, background_weight, weights (N, 3) float32 or None, certainty (H, W) uint8 or None: factors on the losses,
    see Sample.
    """

    boxes: Tensor
    classes: Tensor
    areas: Tensor
    ids: Tensor
    layer_of: Tensor
    layers: Tensor
    ignored: Tensor
    ignore: Tensor | None = None
    ignore_sums: Tensor | None = None
    ignore_boxes: Tensor | None = None
    weight: float = 1.0
    background_weight: float = 1.0
    weights: Tensor | None = None
    certainty: Tensor | None = None

    @classmethod
    def from_sample(cls, sample: Sample, num_classes: int, device: torch.device) -> Targets:
        """Create from the objects with pixels.

        Raises DataError for a sample without annotations or with a class out of range.
        """
        where = f"image {sample.file_name or sample.image_id}"
        if sample.layers is None:
            raise DataError(f"{where} has no annotations (layers is None); a model is trained on annotated images only")
        if len(sample.classes) and not 0 <= sample.classes.min() <= sample.classes.max() < num_classes:
            raise DataError(
                f"{where} has objects of classes {sample.classes.min()} to {sample.classes.max()}, but the model has "
                f"the classes 0 to {num_classes - 1}; set MODEL.ROI_HEADS.NUM_CLASSES to the number of categories"
            )
        areas = sample.layers.areas()
        kept = np.flatnonzero(areas > 0)
        ignored = np.zeros(len(kept), dtype=bool)
        ignore = ignore_sums = ignore_boxes = None

        def to_device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        if sample.ignore is not None and sample.ignore.any():
            ignored = _ignored_objects(sample)[kept]
            ignore, ignore_sums = to_device(sample.ignore), to_device(_corner_sums(sample.ignore))
            ignore_boxes = to_device(_boxes_of_regions(sample.ignore))
        return cls(
            boxes=to_device(sample.layers.boxes()[kept]),
            classes=to_device(sample.classes[kept]),
            areas=to_device(areas[kept].astype(np.float32)),
            ids=to_device((kept + 1).astype(np.int32)),
            layer_of=to_device(sample.layers.layer_index()[kept]),
            layers=to_device(sample.layers.layers),
            ignored=to_device(ignored),
            ignore=ignore,
            ignore_sums=ignore_sums,
            ignore_boxes=ignore_boxes,
            weight=sample.weight,
            background_weight=sample.background_weight,
            weights=None if sample.object_weights is None else to_device(sample.object_weights[kept]),
            certainty=None if sample.certainty is None else to_device(sample.certainty),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.layers.shape[-2], self.layers.shape[-1]

    def __getitem__(self, index: Tensor) -> Targets:
        """Return some of the objects, by indices or booleans."""
        names = ("boxes", "classes", "areas", "ids", "layer_of", "ignored")
        parts = {name: getattr(self, name)[index] for name in names}
        return replace(self, **parts, weights=None if self.weights is None else self.weights[index])

    @property
    def is_weighted(self) -> bool:
        """Whether any of its losses has a weight other than 1."""
        factors = (self.weights, self.certainty)
        return (self.weight, self.background_weight) != (1, 1) or any(one is not None for one in factors)

    def loss_weights(self, column: int, objects: Tensor) -> Tensor:
        """Return the factors (M,) float32 on one loss of predictions matched to objects (M,) int64.

        column: CLASS_LOSS, BOX_LOSS or MASK_LOSS of Sample.object_weights.
        """
        factors = torch.full((len(objects),), self.weight, dtype=torch.float32, device=self.boxes.device)
        if self.weights is None or not len(self.weights):
            return factors
        return factors * self.weights[objects, column]

    def class_weights(self, objects: Tensor, is_object: Tensor, boxes: Tensor) -> Tensor:
        """Return the factors (M,) float32 on the class loss of boxes (M, 4).

        is_object: (M,) bool, false for background. objects: (M,) int64, each box's best. Background far from all
        objects is weighted by `background_weight` (the idea: Wu et al. 2018, "Soft Sampling for Robust Object
        Detection").
        """
        factors = torch.full_like(boxes[:, 0], self.weight, dtype=torch.float32)
        if not len(self.boxes):
            return factors * self.background_weight
        if self.weights is not None:
            factors = torch.where(is_object, factors * self.weights[objects, CLASS_LOSS], factors)
        if self.background_weight != 1:
            is_far = pair_iou(boxes, self.boxes[objects]) < FAR_IOU
            factors = torch.where(is_far & ~is_object, factors * self.background_weight, factors)
        return factors

    def masks_in(self, boxes: Tensor, objects: Tensor, size: int) -> Tensor:
        """Return the masks (M, size, size) bool of objects (M,) int64 within boxes (M, 4)."""
        return sample_masks(self.layers, self.layer_of[objects], self.ids[objects], boxes, size)

    def counted_in(self, boxes: Tensor, size: int) -> Tensor:
        """Return the cells (M, size, size) bool of boxes (M, 4) that are not ignored and count in mask losses."""
        if self.ignore is None:
            return torch.ones((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
        zeros = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return ~sample_masks(self.ignore[None].int(), zeros, zeros.int() + 1, boxes, size)

    def mask_weights(self, boxes: Tensor, objects: Tensor, size: int) -> Tensor:
        """Return the factors (M, size, size) float32 on the mask loss in the cells of boxes (M, 4) of objects (M,)."""
        factors = self.loss_weights(MASK_LOSS, objects)[:, None, None].expand(-1, size, size)
        if self.certainty is None or not len(boxes):
            return factors
        regions = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), dim=1)
        cells = roi_align(self.certainty[None, None] / 255, regions, size, 1.0, 0)
        return factors * cells[:, 0]

    def leave_out_ignored(self, labels: Tensor, matches: Tensor, boxes: Tensor, background: int) -> Tensor:
        """Return labels (n,) with -1 for background in ignored regions and for matches of ignored objects.

        labels: (n,) integers, -1 or `background` or an object. matches: (n,) int64. boxes: (n, 4), clipped or not.
        """
        if self.ignore_sums is None:
            return labels
        is_background = labels == background
        fraction = self._ignored_fraction(boxes)
        out = is_background & (fraction > IGNORED_FRACTION)
        # Only boxes with ignored pixels are compared with the regions, so there are few pairs.
        near = torch.nonzero(is_background & (fraction > 0) & ~out).squeeze(1)
        for part in near.split(max(1, PAIRS_PER_CHUNK // len(self.ignore_boxes))):
            iou = pair_iou(boxes[part, None].float(), self.ignore_boxes[None])
            out[part] = (iou >= IGNORED_IOU).any(dim=1)
        if len(self.ignored):
            out |= ~is_background & self.ignored[matches]
        return torch.where(out, torch.full_like(labels, -1), labels)

    def _ignored_fraction(self, boxes: Tensor) -> Tensor:
        """Return the ignored fraction of each box inside the image, (n,) float32, with boxes in whole pixels."""
        sums = self.ignore_sums
        height, width = sums.shape[0] - 1, sums.shape[1] - 1
        x0, x1 = boxes[:, 0].round().long().clamp(0, width), boxes[:, 2].round().long().clamp(0, width)
        y0, y1 = boxes[:, 1].round().long().clamp(0, height), boxes[:, 3].round().long().clamp(0, height)
        pixels = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
        return pixels / ((x1 - x0) * (y1 - y0)).clamp(min=1)


def _ignored_objects(sample: Sample) -> np.ndarray:
    """Return (N,) bool: most of the object's pixels are ignored."""
    hidden = sample.layers.layers[:, sample.ignore]
    counts = np.bincount(hidden.ravel(), minlength=len(sample.layers) + 1)[1:]
    return counts > IGNORED_FRACTION * sample.layers.areas()


def _boxes_of_regions(mask: np.ndarray) -> np.ndarray:
    """Return the boxes (R, 4) float32 of the 8-connected regions of a mask (H, W) bool."""
    _, _, found, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    x, y, width, height = found[1:, :4].T
    return np.stack([x, y, x + width, y + height], axis=1).astype(np.float32)


def _corner_sums(mask: np.ndarray) -> np.ndarray:
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int64)
    mask.cumsum(0, dtype=np.int64).cumsum(1, out=sums[1:, 1:])
    return sums


@torch.no_grad()
def sample_masks(layers: Tensor, layer_of: Tensor, ids: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return (M, size, size) bool: in each cell, whether at least half of it belongs to the region's object.

    Equal to torchvision's roi_align (aligned, adaptive number of samples) of the full-size masks `layers == id`,
    thresholded at 0.5, without making any of them. layers: (L, H, W) int32. layer_of: (M,) int64 and ids: (M,) int32,
    the object of each region. boxes: (M, 4) regions.
    """
    masks = torch.zeros((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
    if len(boxes) == 0 or layers.numel() == 0:
        return masks
    _, height, width = layers.shape
    sides = torch.maximum(*(crop_side(boxes[:, axis], boxes[:, axis + 2], CROP_STEP) for axis in (0, 1)))
    with torch.autocast(boxes.device.type, enabled=False):
        for side in sorted(set(sides.tolist())):
            group = torch.nonzero(sides == side).squeeze(1)
            for part in group.split(max(1, PIXELS_PER_CHUNK // side**2)):
                x0, y0, x1, y1 = boxes[part].unbind(1)
                columns, x, in_x = axis_weights(x0, x1, length=width, size=size, side=side)
                rows, y, in_y = axis_weights(y0, y1, length=height, size=size, side=side)
                pixels = layers[layer_of[part][:, None, None], y.transpose(1, 2), x]
                sums = rows @ (pixels == ids[part][:, None, None]).float() @ columns.transpose(1, 2)
                masks[part] = sums / (in_x * in_y).clamp(min=1)[:, None, None] >= MASK_THRESHOLD
    return masks
