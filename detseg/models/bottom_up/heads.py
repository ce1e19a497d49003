"""What a network can tell of every pixel besides foreground: each head has its targets, its loss and its maps.

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
_FLOW_SCALE = 5.0  # of what the network says of a vector of length 1, as Cellpose has it
_LONGEST = 7.0  # a network that has not learnt yet says no more than exp(7), about 1,000 pixels


class Head(ABC):
    """channels: of the network, and so many maps."""

    channels = 1

    @abstractmethod
    def target(self, labels: np.ndarray) -> np.ndarray:
        """Return what the head shall say, (H, W) or (C, H, W), of a label image (H, W) int32."""

    @abstractmethod
    def losses(self, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
        """Return losses of logits (B, C, H, W); target: a batch of `target`; share: (B, H, W), see losses.py."""

    def maps(self, logits: Tensor) -> Tensor:
        """Return the maps (B, C, H, W) of float32 logits."""
        return logits.sigmoid()

    def turned(self, maps: np.ndarray, symmetry: Symmetry) -> np.ndarray:
        """Return maps (C, H, W), whose pixels are moved already, with their directions as a symmetry turns them."""
        return maps

    def scaled(self, maps: np.ndarray, y: float, x: float) -> np.ndarray:
        """See UNet.scaled."""
        return maps


class DistanceHead(Head):
    """How far a pixel is from the edge of its object, 1 in the middle."""

    def target(self, labels: np.ndarray) -> np.ndarray:
        return edge_distances(labels)

    def losses(self, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
        # A distance between 0 and 1 is learnt as a probability is, which StarDist found to work.
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
    """Where the centre of its object is from a pixel: y and x of a vector of length 1."""

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
    """How many pixels the edge of its object is away along rays. The network says the logarithm of it."""

    def __init__(self, rays: int) -> None:
        self.channels = rays

    def target(self, labels: np.ndarray) -> np.ndarray:
        return star_distances(labels, self.channels)

    def losses(self, logits: Tensor, target: Tensor, share: Tensor) -> dict[str, Tensor]:
        wrong = (logits.float() - target.clamp(min=0.5).log()).abs().mean(dim=1)
        # shapes are taken in the middle of objects, where the shortest ray is longest
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
