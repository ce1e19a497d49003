"""The binary U-Net: foreground or background, and objects by connected components or a watershed on distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage
from skimage.measure import label as components
from torch import Tensor

from detseg.config.options import key
from detseg.models.bottom_up.decoding import solidity
from detseg.models.bottom_up.losses import as_classes, class_losses, pixel_ious
from detseg.models.bottom_up.seeds import watershed_from_peaks
from detseg.models.bottom_up.unet import UNet, UNetOptions

COMPONENTS, WATERSHED = "components", "watershed"
# Peaks of the distance transform are two objects if the lower one is at least this much above the saddle between them;
# pixels.
_PEAK = 0.75


@dataclass(frozen=True)
class BinaryOptions(UNetOptions):
    """objects: how objects are formed from pixels."""

    objects: str = key("OBJECTS", choices=(COMPONENTS, WATERSHED))


class BinaryUNet(UNet):
    """See the module."""

    system_heads: ClassVar = {"foreground": 1}
    system_maps = ("foreground",)

    def targets(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """See UNet.targets."""
        return {"foreground": labels > 0}

    def system_losses(
        self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], share: Tensor
    ) -> dict[str, Tensor]:
        """See UNet.system_losses."""
        return foreground_losses(self.options, logits["foreground"], targets["foreground"], share)

    def system_maps_of(self, logits: Mapping[str, Tensor]) -> Tensor:
        """See UNet.system_maps_of."""
        return logits["foreground"].float().sigmoid()

    def objects(self, maps: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See UNet.objects."""
        if self.options.objects == COMPONENTS:
            labels = components(mask, connectivity=1).astype(np.int32)
        else:
            distance = ndimage.distance_transform_edt(mask).astype(np.float32)
            labels = watershed_from_peaks(distance, mask, _PEAK)
        return labels, solidity(labels)


def foreground_losses(options: UNetOptions, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
    """The losses of a foreground head: logits (B, 1, H, W), target (B, H, W) bool."""
    both, target = as_classes(logits), target.long()
    losses = class_losses("foreground", both, target, share, options.losses.names, options.losses.class_weights)
    return losses | pixel_ious(both, target, share, ("foreground",))
