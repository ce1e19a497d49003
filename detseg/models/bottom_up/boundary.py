"""The three-class U-Net: background, inside and touching boundary; objects are grown from their insides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from skimage.measure import label as components
from torch import Tensor

from detseg.config.options import key
from detseg.data.pixel_classes import INSIDE, ClassMasks, compared_classes, grown, pixel_classes
from detseg.models.bottom_up.decoding import solidity
from detseg.models.bottom_up.losses import class_losses, pixel_ious
from detseg.models.bottom_up.unet import UNet, UNetOptions


@dataclass(frozen=True)
class BoundaryOptions(UNetOptions):
    """boundary_width: see `pixel_classes`."""

    boundary_width: int = key("BOUNDARY_WIDTH", at_least=1, at_most=32)

    pixel_classes = 3


class BoundaryUNet(UNet):
    """See the module."""

    system_heads: ClassVar = {"pixels": 3}
    system_maps = ("background", "inside", "boundary")

    def targets(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """See UNet.targets."""
        return {"pixels": pixel_classes(labels, self.options.boundary_width)}

    def system_losses(
        self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], share: Tensor
    ) -> dict[str, Tensor]:
        """See UNet.system_losses."""
        own, target, options = logits["pixels"], targets["pixels"], self.options.losses
        losses = class_losses("pixels", own, target, share, options.names, options.class_weights)
        return losses | pixel_ious(own, target, share, self.system_maps[1:])

    def system_maps_of(self, logits: Mapping[str, Tensor]) -> Tensor:
        """See UNet.system_maps_of."""
        return logits["pixels"].float().softmax(dim=1)

    def compared_pixels(self, maps: np.ndarray, labels: np.ndarray) -> ClassMasks:
        """See UNet.compared_pixels."""
        return compared_classes(maps[:3], labels, self.options.boundary_width)

    def foreground(self, maps: np.ndarray) -> np.ndarray:
        """See UNet.foreground."""
        return 1 - maps[0]

    def objects(self, maps: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See UNet.objects."""
        seeds = components((maps.argmax(axis=0) == INSIDE) & mask, connectivity=2)
        labels = grown(seeds, mask)
        return labels, solidity(labels)
