"""Label layers behind the interface of Detectron2's masks: targets are cut out without any full-size mask.

N: objects. A region of N may be one object many times: proposals matched to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detseg.models.rcnn.mask_targets import sample_masks


class LayerMasks:
    """The masks of N objects, as `gt_masks` of Detectron2's Instances.

    layers: (L, H, W) int32, shared by all selections. layer_of: (N,) int64 and ids: (N,) int32, where each object is.
    """

    def __init__(self, layers: Tensor, layer_of: Tensor, ids: Tensor) -> None:
        self.layers = layers
        self.layer_of = layer_of
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: Any) -> LayerMasks:
        """Select by an integer, a slice, or a tensor of indices or booleans."""
        if isinstance(item, int):
            item = [item]
        return LayerMasks(self.layers, self.layer_of[item], self.ids[item])

    def to(self, *args: Any, **kwargs: Any) -> LayerMasks:
        """Move to a device, as Tensor.to."""
        moved = (tensor.to(*args, **kwargs) for tensor in (self.layers, self.layer_of, self.ids))
        return LayerMasks(*moved)

    @property
    def device(self) -> torch.device:
        return self.layers.device

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.layers.shape[-2], self.layers.shape[-1]

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Return (N, mask_size, mask_size) bool: the mask of each object within its box, boxes (N, 4) XYXY pixels.

        Equal to BitMasks.crop_and_resize.
        """
        boxes = boxes.to(self.device)
        return sample_masks(self.layers, self.layer_of, self.ids, boxes, mask_size)

    def dense(self) -> Tensor:
        """Return all masks (N, H, W) bool at full size, for architectures that insist on them."""
        return self.layers[self.layer_of] == self.ids[:, None, None]
