"""The distance U-Net: foreground, and how far every pixel is from the edge of its object; watershed from the peaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from detseg.config.options import key
from detseg.models.bottom_up.binary import foreground_losses
from detseg.models.bottom_up.losses import mean_loss
from detseg.models.bottom_up.seeds import edge_distances, watershed_from_peaks
from detseg.models.bottom_up.unet import UNet, UNetOptions


@dataclass(frozen=True)
class DistanceOptions(UNetOptions):
    """seed_depth: see `watershed_from_peaks`; distances are 1 in the middle of every object."""

    seed_depth: float = key("SEED_DEPTH", above=0, below=1)


class DistanceUNet(UNet):
    """See the module."""

    system_heads: ClassVar = {"foreground": 1, "distance": 1}
    system_maps = ("foreground", "distance")

    def targets(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """See UNet.targets."""
        return {"foreground": labels > 0, "distance": edge_distances(labels)}

    def system_losses(
        self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], share: Tensor
    ) -> dict[str, Tensor]:
        """See UNet.system_losses."""
        losses = foreground_losses(self.options, logits["foreground"], targets["foreground"], share)
        # A distance between 0 and 1 is learnt as a probability is, which StarDist found to work.
        entropy = F.binary_cross_entropy_with_logits(
            logits["distance"][:, 0].float(), targets["distance"], reduction="none"
        )
        return losses | {"loss_distance": mean_loss(entropy, share)}

    def system_maps_of(self, logits: Mapping[str, Tensor]) -> Tensor:
        """See UNet.system_maps_of."""
        return torch.cat([logits[name] for name in self.system_maps], dim=1).float().sigmoid()

    def objects(self, maps: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See UNet.objects."""
        distance = maps[1]
        labels = watershed_from_peaks(distance, mask, self.options.seed_depth)
        return labels, agreement(labels, distance)


def agreement(labels: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Return how far the distances of every object (N,) in [0, 1] are those that were predicted (H, W): the sum over
    its pixels of the smaller by the sum of the larger.
    """
    numbers = np.arange(1, int(labels.max()) + 1)
    if not len(numbers):
        return np.zeros(0)
    own = edge_distances(labels)
    smaller, larger = (ndimage.sum(pick(own, distance), labels, numbers) for pick in (np.minimum, np.maximum))
    return smaller / np.maximum(larger, 1e-6)
