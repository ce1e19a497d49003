"""Samples and images as the dictionaries that Detectron2's models take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from detseg.detectron2.masks import LayerMasks
from detseg.errors import DataError
from detseg.models.rcnn.mask_targets import sample_masks
from detseg.models.rcnn.targets import Targets
from detseg.structures.sample import Sample


class IgnoredRegion:
    """Where an image counts for nothing, as the field `gt_ignored` of its N objects.

    Detectron2 hands fields that begin with gt_ from objects to the proposals that they are matched to.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets.boxes)

    def __getitem__(self, item: Any) -> IgnoredRegion:
        parts = {name: getattr(self.targets, name)[item] for name in ("boxes", "classes", "ids", "layer_of", "ignored")}
        return IgnoredRegion(replace(self.targets, **parts))

    def counted(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Return (M, mask_size, mask_size) bool: the cells of boxes (M, 4) that are not ignored."""
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return ~sample_masks(self.targets.ignore[None].int(), nothing, nothing.int() + 1, boxes, mask_size)


@dataclass(frozen=True)
class InputMaker:
    """Makes the inputs of one model.

    channels: of its images. bgr: images of three channels come as RGB and are turned around. num_classes: of the
    objects. masks: "layers", "bitmasks" (N full-size masks, for architectures that insist on them) or "" for none.
    """

    channels: int
    bgr: bool
    num_classes: int
    masks: str

    def image(self, image: np.ndarray) -> Tensor:
        """Return an image (H, W, C) as a tensor (C, H, W), uint8 or float32, on the CPU.

        Raises:
            DataError: another number of channels than the model's.
        """
        if image.ndim != 3 or image.shape[2] != self.channels or 0 in image.shape:
            raise DataError(
                f"the model takes images (height, width, {self.channels}) with pixels, but got {image.shape}; "
                "MODEL.PIXEL_MEAN has one value per channel, INPUT.CHANNELS says which of a file's are taken"
            )
        if image.dtype not in (np.uint8, np.float32):
            image = image.astype(np.float32)
        if self.bgr and self.channels == 3:
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def from_image(self, image: np.ndarray, output_size: tuple[int, int]) -> dict[str, Any]:
        """Return the input of one image to predict; `output_size` (height, width) is that of the answer."""
        return {"image": self.image(image), "height": output_size[0], "width": output_size[1]}

    def from_sample(self, sample: Sample, device: torch.device) -> dict[str, Any]:
        """Return the input of one sample to train with, its objects as Instances on `device`.

        Raises:
            DataError: no annotations, or a class that the model does not know.
        """
        targets = Targets.from_sample(sample, self.num_classes, device)
        objects = Instances(targets.size)
        objects.gt_boxes = Boxes(targets.boxes)
        objects.gt_classes = targets.classes
        if self.masks:
            masks = LayerMasks(targets.layers, targets.layer_of, targets.ids)
            objects.gt_masks = BitMasks(masks.dense()) if self.masks == "bitmasks" else masks
        if targets.ignore is not None:
            objects.gt_ignored = IgnoredRegion(targets)
        return {
            "image": self.image(sample.image),
            "instances": objects,
            "height": sample.height,
            "width": sample.width,
            "file_name": sample.file_name,
            "image_id": sample.image_id,
        }
