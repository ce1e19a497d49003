"""Label layers of an image from all its run-lengths at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers


def layers_from_rles(rles: Sequence[Mapping[str, Any]], height: int, width: int) -> LabelLayers:
    """Return what `LabelLayers.from_rles` does, several times faster where most objects overlap no other.

    Those are painted together, by one cumulated sum over the image; only the others are placed one by one.
    """
    if not rles:
        return LabelLayers.empty(height, width)
    runs = rle_codec.read_runs(rles)
    if (runs.heights != height).any() or (runs.widths != width).any():
        return LabelLayers.from_rles(rles, height, width)  # which says what is wrong
    crowded = _overlapping(runs.starts, runs.ends, runs.owners, len(rles))
    free = ~crowded[runs.owners]
    steps = np.zeros(height * width + 1, dtype=np.int32)
    ids = runs.owners[free].astype(np.int32) + 1
    # Runs that share no pixel have no start and no end in common, so that nothing is lost in these two lines.
    steps[runs.starts[free]] += ids
    steps[runs.ends[free]] -= ids
    layers = [np.cumsum(steps[:-1], dtype=np.int32).reshape(width, height).T]
    indices = np.flatnonzero(crowded)
    crops = rle_codec.decode_crops([rles[index] for index in indices])
    for index, (crop, x0, y0) in zip(indices, crops, strict=True):
        window = (slice(y0, y0 + crop.shape[0]), slice(x0, x0 + crop.shape[1]))
        for layer in layers:
            if not layer[window][crop].any():
                break
        else:
            layer = np.zeros((height, width), dtype=np.int32)
            layers.append(layer)
        layer[window][crop] = index + 1
    return LabelLayers(np.stack(layers), len(rles))


def _overlapping(starts: np.ndarray, ends: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """Return which of `count` objects (N,) bool share a pixel with another, from all runs of pixels (R,)."""
    crowded = np.zeros(count, dtype=bool)
    order = np.argsort(starts, kind="stable")
    starts, ends, owners = starts[order], ends[order], owners[order]
    reached = np.maximum.accumulate(ends)
    crowded[owners[1:][starts[1:] < reached[:-1]]] = True
    crowded[owners[:-1][starts[1:] < ends[:-1]]] = True
    return crowded
