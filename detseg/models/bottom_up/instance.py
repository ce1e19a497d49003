"""The U-Net with configurable heads: foreground and any of distance, boundary, flows and stars; objects come from one.

MODEL.UNET.HEADS are the heads, MODEL.UNET.OBJECTS_FROM is the one from which objects are formed:

    distance   a watershed from the peaks of the edge distances; peaks are also separated by a boundary head, if any
    flows      pixels whose flows lead to the same place
    stars      the best of overlapping star-convex shapes around the peaks of the distances, so both heads are needed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from detseg.config.options import Problems, key
from detseg.data.pixel_classes import ClassMasks
from detseg.models.bottom_up.binary import foreground_losses
from detseg.models.bottom_up.decoding import solidity
from detseg.models.bottom_up.flows import flow_agreement, objects_of_flows
from detseg.models.bottom_up.heads import (
    BOUNDARY,
    DISTANCE,
    FLOWS,
    STARS,
    BoundaryHead,
    DistanceHead,
    FlowHead,
    Head,
    StarHead,
)
from detseg.models.bottom_up.seeds import edge_distances, watershed_from_peaks
from detseg.models.bottom_up.stars import objects_of_stars
from detseg.models.bottom_up.unet import UNet, UNetOptions
from detseg.structures.symmetries import Symmetry

FOREGROUND = "foreground"


@dataclass(frozen=True)
class InstanceOptions(UNetOptions):
    """heads, objects_from: see the module. seed_depth: see `watershed_from_peaks`; distances are 1 in the middle of an
    object. boundary_width: see `pixel_classes`.
    """

    heads: tuple[str, ...] = key("HEADS", choices=(DISTANCE, BOUNDARY, FLOWS, STARS), not_empty=True)
    objects_from: str = key("OBJECTS_FROM", choices=(DISTANCE, FLOWS, STARS))
    seed_depth: float = key("SEED_DEPTH", above=0, below=1)
    boundary_width: int = key("BOUNDARY_WIDTH", at_least=1, at_most=32)
    rays: int = key("RAYS", at_least=4, at_most=128)

    def check(self, problems: Problems) -> None:
        super().check(problems)
        if len(set(self.heads)) < len(self.heads):
            problems.add("MODEL.UNET.HEADS", "expected every head once")
        needed = {self.objects_from} | ({DISTANCE} if self.objects_from == STARS else set())
        missing = sorted(needed - set(self.heads))
        if missing:
            expected = f"it needs {' and '.join(missing)} in MODEL.UNET.HEADS, which has {', '.join(self.heads)}"
            problems.add("MODEL.UNET.OBJECTS_FROM", expected)
        if self.rays % 4:
            problems.add(
                "MODEL.UNET.RAYS", "expected a multiple of 4, so that rotations by 90 degrees map rays to rays"
            )


class InstanceUNet(UNet):
    """See the module."""

    def __init__(self, options: InstanceOptions) -> None:
        every = {
            DISTANCE: DistanceHead(),
            BOUNDARY: BoundaryHead(options.boundary_width),
            FLOWS: FlowHead(),
            STARS: StarHead(options.rays),
        }
        self.kinds: dict[str, Head] = {name: every[name] for name in options.heads}
        self.system_heads = {FOREGROUND: 1} | {name: head.channels for name, head in self.kinds.items()}
        self.places: dict[str, slice] = {}  # slice of every head's maps
        names = [FOREGROUND]
        for name, head in self.kinds.items():
            self.places[name] = slice(len(names), len(names) + head.channels)
            names += [name] if head.channels == 1 else [f"{name} {number}" for number in range(head.channels)]
        self.system_maps = tuple(names)
        super().__init__(options)

    def targets(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """See UNet.targets."""
        return {FOREGROUND: labels > 0} | {name: head.target(labels) for name, head in self.kinds.items()}

    def system_losses(
        self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], share: Tensor
    ) -> dict[str, Tensor]:
        """See UNet.system_losses."""
        losses = foreground_losses(self.options, logits[FOREGROUND], targets[FOREGROUND], share)
        for name, head in self.kinds.items():
            losses |= head.losses(logits[name], targets[name], share)
        return losses

    def system_maps_of(self, logits: Mapping[str, Tensor]) -> Tensor:
        """See UNet.system_maps_of."""
        maps = [head.maps(logits[name].float()) for name, head in self.kinds.items()]
        return torch.cat([logits[FOREGROUND].float().sigmoid(), *maps], dim=1)

    def compared_pixels(self, maps: np.ndarray, labels: np.ndarray) -> ClassMasks:
        """See UNet.compared_pixels."""
        if BOUNDARY not in self.kinds:
            return {}
        return {BOUNDARY: (maps[self.places[BOUNDARY]][0] > 0.5, self.kinds[BOUNDARY].target(labels))}

    def turned(self, maps: np.ndarray, symmetry: Symmetry) -> np.ndarray:
        """See MapSegmenter.turned."""
        maps = super().turned(maps, symmetry).copy()
        for name, head in self.kinds.items():
            maps[self.places[name]] = head.turned(maps[self.places[name]], symmetry)
        return maps

    def scaled(self, maps: np.ndarray, y: float, x: float) -> np.ndarray:
        """See UNet.scaled."""
        for name, head in self.kinds.items():
            maps[self.places[name]] = head.scaled(maps[self.places[name]], y, x)
        return maps

    def objects(self, maps: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See UNet.objects."""
        own = {name: maps[place] for name, place in self.places.items()}
        if self.options.objects_from == FLOWS:
            labels = objects_of_flows(own[FLOWS], mask)
            return labels, flow_agreement(labels, own[FLOWS])
        distance = own[DISTANCE][0]
        if self.options.objects_from == STARS:
            labels = objects_of_stars(own[STARS], distance, mask)
            return labels, distance_agreement(labels, distance)
        height = distance - own[BOUNDARY][0] if BOUNDARY in own else distance
        labels = watershed_from_peaks(height, mask, self.options.seed_depth)
        return labels, solidity(labels)


DistanceUNet = InstanceUNet  # former name, stored in runs and weight files


def distance_agreement(labels: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Return the agreement (N,) in [0, 1] of every object's own distances with the predicted ones (H, W): the sum over
    its pixels of the smaller value, divided by the sum of the larger.
    """
    numbers = np.arange(1, int(labels.max()) + 1)
    if not len(numbers):
        return np.zeros(0)
    own = edge_distances(labels)
    smaller, larger = (ndimage.sum(pick(own, distance), labels, numbers) for pick in (np.minimum, np.maximum))
    return smaller / np.maximum(larger, 1e-6)
