"""All objects of an image as a few label images, so that time and memory grow with the image, not with the objects.

`layers` has the axes (L, H, W), int32: 0 is background, 1..N are objects. Overlapping objects are in different layers;
most microscopy needs one to three. The arrays must not be modified in place once a LabelLayers holds them, because
values computed from them (boxes, areas) are cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import runs_of_crops
from detseg.structures.overlaps import Overlaps, shared_pixels
from detseg.structures.runs import Runs


class LabelLayers:
    """N objects of one image as (L, H, W) int32 label maps.

    Every id 1..N is in one layer only; an id may have no pixel at all (an object that a crop removed). Object n of a
    list (0-based) has the id n + 1.
    """

    def __init__(self, layers: np.ndarray, num_instances: int) -> None:
        layers = np.asarray(layers)
        if layers.ndim != 3:
            raise DataError(
                f"expected label layers with the axes (layer, height, width), not an array of the shape {layers.shape}"
            )
        if layers.dtype != np.int32:
            raise DataError(f"expected label layers of int32, not {layers.dtype}")
        self.layers = layers
        self.num_instances = int(num_instances)

    @classmethod
    def empty(cls, height: int, width: int) -> LabelLayers:
        """Return an image without objects: one layer of zeros."""
        return cls(np.zeros((1, height, width), dtype=np.int32), 0)

    @classmethod
    def from_label_image(cls, labels: np.ndarray) -> LabelLayers:
        """Create one layer from a label image (H, W) of integers >= 0; ids become 1..N in ascending order.

        An object with several components is one object. Raises DataError for negative or fractional labels.
        """
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.dtype.kind not in "iub":
            raise DataError(
                f"expected a label image of integers with the axes (height, width), not an array of the shape "
                f"{labels.shape} and {labels.dtype}"
            )
        if labels.size == 0:
            return cls(np.zeros((1, *labels.shape), dtype=np.int32), 0)
        if labels.dtype == bool:
            labels = labels.astype(np.uint8)  # labels are used as indices below, which bools cannot be
        if labels.min() < 0:
            raise DataError(f"expected a label image without negative labels, but the smallest is {labels.min()}")
        compact, count = _compact(labels)
        return cls(compact[None], count)

    @classmethod
    def from_masks(cls, masks: np.ndarray) -> LabelLayers:
        """Create layers from masks (N, H, W) bool."""
        masks = np.asarray(masks, dtype=bool)
        if masks.ndim != 3:
            raise DataError(
                f"expected masks with the axes (object, height, width), not an array of the shape {masks.shape}"
            )
        height, width = masks.shape[1:]
        return cls._from_runs(runs_of_crops([(mask, 0, 0) for mask in masks], height, width), height, width)

    @classmethod
    def from_crops(cls, crops: Sequence[tuple[np.ndarray, int, int]], height: int, width: int) -> LabelLayers:
        """Create layers from N masks (h, w) bool with the x0 and y0 of their upper left pixels.

        Raises DataError if one extends beyond the image.
        """
        return cls._from_runs(runs_of_crops(crops, height, width), height, width)

    @classmethod
    def from_rles(cls, rles: Sequence[Mapping[str, Any]], height: int, width: int) -> LabelLayers:
        """Create layers from N COCO RLEs of an image of height x width pixels; object n gets the id n + 1.

        Raises DataError if an RLE is broken or has another size.
        """
        runs = rle_codec.read_runs(rles)
        other = np.flatnonzero((runs.heights != height) | (runs.widths != width))
        if len(other):
            raise DataError(
                f"mask {other[0]} has the size {[int(runs.heights[other[0]]), int(runs.widths[other[0]])]} "
                f"(height, width), but the image has {[height, width]}"
            )
        return cls._from_runs(runs, height, width)

    @classmethod
    def _from_runs(cls, runs: Runs, height: int, width: int) -> LabelLayers:
        layer_of = _color(shared_pixels(runs), len(runs))
        layers = np.empty((int(layer_of.max(initial=0)) + 1, height, width), dtype=np.int32)
        labels = np.empty(height * width + 1, dtype=np.int32)
        for number, layer in enumerate(layers):
            inside = layer_of[runs.owners] == number
            ids = runs.owners[inside].astype(np.int32) + 1
            # Objects of a layer share no pixels, so no two runs start or end at the same place. No assignment in these
            # two lines overwrites another, and the cumulative sum is the label of every pixel.
            labels[:] = 0
            labels[runs.starts[inside]] += ids
            labels[runs.ends[inside]] -= ids
            layer[...] = np.cumsum(labels, out=labels)[:-1].reshape(width, height).T
        return cls(layers, len(runs))

    @property
    def num_layers(self) -> int:
        return self.layers.shape[0]

    @property
    def height(self) -> int:
        return self.layers.shape[1]

    @property
    def width(self) -> int:
        return self.layers.shape[2]

    def __len__(self) -> int:
        return self.num_instances

    def __repr__(self) -> str:
        return f"LabelLayers({self.num_instances} objects, {self.num_layers} layers of {self.height} x {self.width})"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle labels as 16 bits if they fit."""
        layers = self.layers.astype(np.uint16) if self.num_instances < 2**16 else self.layers
        return {**self.__dict__, "layers": layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, layers=state["layers"].astype(np.int32, copy=False))

    @cached_property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (N, 4) int64, areas (N,) int64 and layers (N,) int64 (-1 for none), from the runs along rows."""
        starts, ends, ids = _row_runs(self.layers)
        row, first = np.divmod(starts, max(self.width, 1))
        layer, row = np.divmod(row, max(self.height, 1))
        last = first + ends - starts
        count = self.num_instances
        boxes = np.zeros((count, 4), dtype=np.int64)
        boxes[:, :2] = np.iinfo(np.int64).max
        np.minimum.at(boxes[:, 0], ids, first)
        np.minimum.at(boxes[:, 1], ids, row)
        np.maximum.at(boxes[:, 2], ids, last)
        np.maximum.at(boxes[:, 3], ids, row + 1)
        boxes[boxes[:, 2] == 0] = 0
        areas = np.zeros(count, dtype=np.int64)
        np.add.at(areas, ids, ends - starts)
        layer_of = np.full(count, -1, dtype=np.int64)
        layer_of[ids] = layer
        return boxes, areas, layer_of

    def boxes(self) -> np.ndarray:
        """Return tight half-open boxes (N, 4) float32 XYXY; zeros for an object without pixels."""
        return self._statistics[0].astype(np.float32)

    def areas(self) -> np.ndarray:
        """Return the number of pixels (N,) int64 of every object."""
        return self._statistics[1].copy()

    def layer_index(self) -> np.ndarray:
        """Return the layer (N,) int64 of every object; -1 for an object without pixels."""
        return self._statistics[2].copy()

    def mask(self, index: int) -> np.ndarray:
        """Return the mask (H, W) bool of one object (0-based)."""
        if not 0 <= index < self.num_instances:
            raise IndexError(f"object {index} of {self.num_instances}")
        layer = self._statistics[2][index]
        if layer < 0:
            return np.zeros((self.height, self.width), dtype=bool)
        return self.layers[layer] == index + 1

    def masks(self) -> np.ndarray:
        """Return all masks (N, H, W) bool. Memory grows with objects x pixels; for small images and tests."""
        if self.num_instances == 0:
            return np.zeros((0, self.height, self.width), dtype=bool)
        return np.stack([self.mask(index) for index in range(self.num_instances)])

    def foreground(self) -> np.ndarray:
        """Return the union of all objects, (H, W) bool."""
        return (self.layers > 0).any(axis=0)

    def select(self, keep: np.ndarray) -> LabelLayers:
        """Return the objects of `keep`, a mask (N,) bool or indices in the requested order; ids become 1..len."""
        keep = np.asarray(keep)
        indices = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        if len(indices) == self.num_instances and np.array_equal(indices, np.arange(self.num_instances)):
            return self
        new_id = np.zeros(self.num_instances + 1, dtype=np.int32)
        new_id[indices + 1] = np.arange(1, len(indices) + 1, dtype=np.int32)
        boxes, areas, layer_of = (values[indices] for values in self._statistics)
        used = np.zeros(self.num_layers, dtype=bool)
        used[layer_of[layer_of >= 0]] = True
        used[0] |= not used.any()
        layers = self.layers if used.all() else self.layers[used]
        selected = LabelLayers(new_id.take(layers), len(indices))
        # Set the cached values too: they are nearly always needed next.
        new_layer = np.append(np.cumsum(used) - 1, -1)
        selected._statistics = boxes, areas, new_layer[layer_of]
        return selected

    def to_rles(self) -> list[dict[str, Any]]:
        """Encode every object as a COCO RLE, in the order of the ids, in one pass per layer."""
        rles: list[dict[str, Any]] = rle_codec.encode_labels(self.layers[0], self.num_instances)
        for number in range(1, self.num_layers):
            inside = np.flatnonzero(self._statistics[2] == number)
            in_layer = rle_codec.encode_labels(self.layers[number], self.num_instances)
            for index in inside:
                rles[index] = in_layer[index]
        return rles


def _color(pairs: Overlaps, count: int) -> np.ndarray:
    """Greedy colouring: return the layer (N,) int64 of each object, the first without an earlier overlapping one."""
    layer_of = np.zeros(count, dtype=np.int64)
    earlier: dict[int, list[int]] = {}
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        earlier.setdefault(second, []).append(first)
    for index in sorted(earlier):
        taken = {int(layer_of[other]) for other in earlier[index]}
        layer_of[index] = next(layer for layer in range(len(taken) + 1) if layer not in taken)
    return layer_of


def _compact(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Renumber the labels of an image of integers >= 0 to 1..N, in ascending order; return them as int32, and N."""
    highest = int(labels.max())
    if highest <= 4 * labels.size + 65536:
        present = np.zeros(highest + 1, dtype=bool)
        present[labels.ravel()] = True
        present[0] = False
        new_id = np.cumsum(present, dtype=np.int32)
        new_id[~present] = 0
        return new_id[labels.astype(np.int64, copy=False)], int(present.sum())
    values, inverse = np.unique(labels, return_inverse=True)
    inverse = inverse.reshape(labels.shape).astype(np.int32)
    has_background = values[0] == 0
    return (inverse, len(values) - 1) if has_background else (inverse + 1, len(values))


def _row_runs(layers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, end (flat positions) and 0-based object of every run of an id along the rows of (L, H, W)."""
    flat = np.ascontiguousarray(layers).reshape(-1)
    if flat.size == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    changes = flat[1:] != flat[:-1]
    # A run ends with its row, even if the next row starts with the same id.
    changes[layers.shape[2] - 1 :: layers.shape[2]] = True
    boundaries = np.flatnonzero(changes) + 1
    starts = np.concatenate([[0], boundaries])
    ends = np.concatenate([boundaries, [flat.size]])
    ids = flat[starts].astype(np.int64)
    inside = ids > 0
    return starts[inside], ends[inside], ids[inside] - 1
