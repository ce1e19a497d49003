"""Which objects of an image overlap, touch, or nearly do, found from their outlines.

Distances are those of a king on a chessboard: 0 pixels in common, 1 neighbours by side or corner, d with d - 1 pixels
between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detseg.structures.label_layers import LabelLayers

# Objects with at most two pixels between them are near each other: less than a network with stride 4 can tell apart.
NEAR = 3


@dataclass(frozen=True)
class Contacts:
    """The pairs of N objects that lie within `NEAR` of each other.

    pairs: (P, 2) int64 indices, first < second, sorted. distance: (P,) int64, 0 to `NEAR`. shared: (N,) float64, the
    part of each object's outline that another one overlaps or touches.
    """

    pairs: np.ndarray
    distance: np.ndarray
    shared: np.ndarray

    def neighbours(self, count: int, farthest: int, nearest: int = 0) -> np.ndarray:
        """Return how many of the others each of `count` objects has at these distances, (N,) int64."""
        chosen = self.pairs[(self.distance <= farthest) & (self.distance >= nearest)]
        return np.bincount(chosen.ravel(), minlength=count)


def find_contacts(layers: LabelLayers) -> Contacts:
    """Find the objects near each other. Time grows with the pixels of all outlines."""
    count = len(layers)
    padded = np.pad(layers.layers, ((0, 0), (NEAR, NEAR), (NEAR, NEAR)))
    outline = [_outline(layer) for layer in layers.layers]
    y, x = (np.concatenate([points[axis] for points in outline]) for axis in (0, 1))
    own = np.concatenate([layer[points] for layer, points in zip(layers.layers, outline, strict=True)]).astype(np.int64)
    in_contact = np.zeros(len(own), dtype=bool)
    nearest: dict[int, int] = {}
    for distance in range(NEAR + 1):
        keys = []
        for dy, dx in _ring(distance):
            for layer in padded:
                other = layer[y + (NEAR + dy), x + (NEAR + dx)].astype(np.int64)
                met = (other > 0) & (other != own)
                if distance <= 1:
                    in_contact |= met
                a, b = own[met], other[met]
                keys.append(np.unique(np.minimum(a, b) * (count + 1) + np.maximum(a, b)))
        for key in np.unique(np.concatenate(keys)).tolist():
            nearest.setdefault(key, distance)
    found = np.array(sorted(nearest.items()), dtype=np.int64).reshape(-1, 2)
    pairs = np.stack([found[:, 0] // (count + 1), found[:, 0] % (count + 1)], axis=1) - 1
    length = np.bincount(own, minlength=count + 1)[1:]
    shared = np.bincount(own[in_contact], minlength=count + 1)[1:] / np.maximum(length, 1)
    return Contacts(pairs, found[:, 1], shared)


def _outline(layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return y, x of the object pixels of a layer (H, W) that have something else at one of their four sides."""
    inside = np.pad(layer, 1, mode="edge")
    differs = np.zeros(layer.shape, dtype=bool)
    for rows, columns in ((slice(0, -2), slice(1, -1)), (slice(2, None), slice(1, -1))):
        differs |= inside[rows, columns] != layer
        differs |= inside[columns, rows] != layer
    return np.nonzero(differs & (layer > 0))


def _ring(distance: int) -> list[tuple[int, int]]:
    reach = range(-distance, distance + 1)
    return [(dy, dx) for dy in reach for dx in reach if max(abs(dy), abs(dx)) == distance]
