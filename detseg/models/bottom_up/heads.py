"""Heads for pixel-wise predictions besides foreground, each with its target, its loss and its maps.

Symbols: B images of H x W pixels, C channels of a head, R rays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from detseg.data.pixel_classes import BOUNDARY as TOUCHING
from detseg.data.pixel_classes import pixel_classes
from detseg.models.bottom_up.flows import centre_flows
from detseg.models.bottom_up.losses import CROSS_ENTROPY, DICE, as_classes, class_losses, mean_loss, pixel_ious
from detseg.models.bottom_up.seeds import edge_distances
from detseg.models.bottom_up.stars import ray_directions, star_distances
from detseg.structures.symmetries import Symmetry

DISTANCE, BOUNDARY, FLOWS, STARS = "distance", "boundary", "flows", "stars"
_FLOW_SCALE = 5.0  # the network predicts unit vectors scaled by this, as Cellpose does
_LONGEST = 7.0  # upper limit on logarithms of distances: about 1,000 pixels


class Head(ABC):
    """channels: number of network outputs, and of maps."""

    channels = 1

    @abstractmethod
    def target(self, labels: np.ndarray) -> np.ndarray:
        """Return the target (H, W) or (C, H, W) of a label image (H, W) int32."""

    @abstractmethod
    def losses(self, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
        """Return losses of logits (B, C, H, W); target: a batch of `target`; share: (B, H, W), see losses.py."""

    def maps(self, logits: Tensor) -> Tensor:
        """Return the maps (B, C, H, W) of float32 logits."""
        return logits.sigmoid()

    def turned(self, maps: np.ndarray, symmetry: Symmetry) -> np.ndarray:
        """Return maps (C, H, W), whose pixels have been moved, with their directions transformed by a symmetry."""
        return maps

    def scaled(self, maps: np.ndarray, y: float, x: float) -> np.ndarray:
        """See UNet.scaled."""
        return maps


class DistanceHead(Head):
    """Distance of a pixel to the edge of its object, divided by the largest in that object."""

    def target(self, labels: np.ndarray) -> np.ndarray:
        return edge_distances(labels)

    def losses(self, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
        # Binary cross-entropy for a distance in [0, 1], which StarDist found to work.
        entropy = F.binary_cross_entropy_with_logits(logits[:, 0].float(), target, reduction="none")
        return {"loss_distance": mean_loss(entropy, share)}


class BoundaryHead(Head):
    """Whether a pixel is on a boundary of `width` between two objects that touch; see `pixel_classes`."""

    def __init__(self, width: int) -> None:
        self.width = width

    def target(self, labels: np.ndarray) -> np.ndarray:
        return pixel_classes(labels, self.width) == TOUCHING

    def losses(self, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
        both, target = as_classes(logits), target.long()
        losses = class_losses(BOUNDARY, both, target, share, (CROSS_ENTROPY, DICE))
        return losses | pixel_ious(both, target, share, (BOUNDARY,))


class FlowHead(Head):
    """Direction from a pixel to the centre of its object: (y, x) of a unit vector."""

    channels = 2

    def target(self, labels: np.ndarray) -> np.ndarray:
        return centre_flows(labels)

    def losses(self, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
        squares = (logits.float() - _FLOW_SCALE * target).square().mean(dim=1)
        return {"loss_flows": mean_loss(squares, share * target.square().sum(dim=1).round())}

    def maps(self, logits: Tensor) -> Tensor:
        return logits / _FLOW_SCALE

    def turned(self, maps: np.ndarray, symmetry: Symmetry) -> np.ndarray:
        return np.stack(symmetry.vectors(*maps))


class StarHead(Head):
    """Distances from a pixel to the edge of its object along rays, in pixels; the network predicts logarithms."""

    def __init__(self, rays: int) -> None:
        self.channels = rays

    def target(self, labels: np.ndarray) -> np.ndarray:
        return star_distances(labels, self.channels)

    def losses(self, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
        wrong = (logits.float() - target.clamp(min=0.5).log()).abs().mean(dim=1)
        # shapes come from the middle of objects, where the shortest ray is longest
        nearest, mean = target.amin(dim=1), target.mean(dim=1)
        return {"loss_stars": mean_loss(wrong, share * nearest / mean.clamp(min=0.5))}

    def maps(self, logits: Tensor) -> Tensor:
        return logits.clamp(max=_LONGEST).exp()

    def turned(self, maps: np.ndarray, symmetry: Symmetry) -> np.ndarray:
        y, x = symmetry.vectors(*ray_directions(self.channels).T)
        becomes = np.rint(np.arctan2(y, x) / (2 * np.pi) * self.channels).astype(np.intp) % self.channels
        result = np.empty_like(maps)
        result[becomes] = maps
        return result

    def scaled(self, maps: np.ndarray, y: float, x: float) -> np.ndarray:
        lengths = np.hypot(*(ray_directions(self.channels) * [y, x]).T)
        return maps * lengths.astype(np.float32)[:, None, None]
