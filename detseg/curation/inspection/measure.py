"""Measurements of every object, and of the intensities of every image.

N objects; lengths in pixels of the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from detseg.curation.repair.masks import label_holes, label_pieces
from detseg.data.pixel_classes import flat_labels, objects_of_classes, pixel_classes
from detseg.data.preprocess import luma_of, percentiles_of
from detseg.formats.measurements import ellipse_of
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import box_area
from detseg.structures.label_layers import LabelLayers
from detseg.structures.overlaps import meeting_boxes, shared_pixels

OBJECT = np.dtype(
    [
        ("image", np.int64),  # index of the image
        ("number", np.int64),  # index of the object among the annotations of the image
        ("class_index", np.int64),
        ("area", np.int64),
        ("box", np.float32, (4,)),  # XYXY, half-open
        ("elongation", np.float64),  # ratio of the axes of the ellipse of the same second moments, 1 or more
        ("holes", np.int64),
        ("hole_pixels", np.int64),
        ("pieces", np.int64),  # 8-connected components
        ("lesser_pixels", np.int64),  # pixels outside the largest component
        ("overlapping", np.int64),  # number of other objects that share pixels
        ("touching", np.int64),  # number of 8-connected neighbours that share no pixels
        ("near", np.int64),  # number of others at most two pixels away that do not touch
        ("shared", np.float64),  # fraction of the outline that others overlap or touch
        ("at_border", np.bool_),  # of the image
        ("box_iou", np.float64),  # largest IoU with the box of another object of its class
    ]
)
"""A row of the table of objects, a record array: `objects.area` is a column, `objects[rows]` selects rows."""

# Objects with at most two pixels between them are near: a network with stride 4 can hardly separate them.
NEAR = 3


def measure_objects(
    rles: Sequence[Mapping[str, Any]], classes: np.ndarray, numbers: np.ndarray, image: int, height: int, width: int
) -> np.recarray:
    """Measure the N objects of one image.

    rles: their masks, none empty. classes, numbers: (N,) int64, see `OBJECT`. image: its index. height, width: of the
    image.
    """
    objects = np.recarray(len(rles), dtype=OBJECT)
    objects.image, objects.number, objects.class_index = image, numbers, classes
    objects.area, objects.box = rle_codec.area(rles), rle_codec.bounding_boxes(rles).reshape(-1, 4)
    objects.at_border = (objects.box == [0, 0, width, height]).any(axis=1)
    objects.box_iou = largest_box_iou(objects.box, objects.class_index)
    pairs, distances, objects.shared = find_contacts(LabelLayers.from_rles(rles, height, width))
    for name, chosen in (("overlapping", distances == 0), ("touching", distances == 1), ("near", distances > 1)):
        objects[name] = np.bincount(pairs[chosen].ravel(), minlength=len(rles))
    for row, (mask, _, _) in zip(objects, rle_codec.decode_crops(rles), strict=True):
        holes, row.holes = label_holes(mask)
        _, pieces = label_pieces(mask)
        row.hole_pixels, row.pieces = np.count_nonzero(holes), len(pieces)
        row.lesser_pixels = pieces.sum() - pieces.max()
        major, minor, _ = ellipse_of(*np.nonzero(mask))
        row.elongation = major / minor
    return objects


def largest_box_iou(boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return for each of N boxes (N, 4) XYXY the largest IoU with another of its class (N,), 0 if there is none."""
    best = np.zeros(len(boxes), dtype=np.float64)
    areas = box_area(boxes)
    for pairs in meeting_boxes(boxes, classes):
        first, second = pairs.first, pairs.second
        lengths = np.minimum(boxes[first, 2:], boxes[second, 2:]) - np.maximum(boxes[first, :2], boxes[second, :2])
        shared = lengths.prod(axis=1)
        iou = shared / (areas[first] + areas[second] - shared)
        np.maximum.at(best, first, iou)
        np.maximum.at(best, second, iou)
    return best


def find_contacts(layers: LabelLayers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find which of N objects overlap, touch, or nearly do. Time grows with the total length of outlines.

    Distances are chessboard distances: 0 for common pixels, 1 for 8-connected neighbours, d for d - 1 pixels between.

    Returns:
        the pairs (P, 2) int64 of objects within `NEAR` of each other, indices, first < second, sorted; their distances
        (P,) int64; and the fraction of each object's outline that another one overlaps or touches, (N,) float64.
    """
    count = len(layers)
    padded = np.pad(layers.layers, ((0, 0), (NEAR, NEAR), (NEAR, NEAR)))
    outlines = [_outline(layer) for layer in layers.layers]
    y, x = (np.concatenate([points[axis] for points in outlines]) for axis in (0, 1))
    own = np.concatenate([layer[points] for layer, points in zip(layers.layers, outlines, strict=True)]).astype(
        np.int64
    )
    in_contact = np.zeros(len(own), dtype=bool)
    keys, distances = [], []
    steps = range(-NEAR, NEAR + 1)
    for dy, dx in sorted(itertools.product(steps, steps), key=lambda offset: max(map(abs, offset))):
        distance = max(abs(dy), abs(dx))
        for layer in padded:
            other = layer[y + (NEAR + dy), x + (NEAR + dx)].astype(np.int64)
            met = (other > 0) & (other != own)
            if distance <= 1:
                in_contact |= met
            a, b = own[met], other[met]
            keys.append(np.unique(np.minimum(a, b) * (count + 1) + np.maximum(a, b)))
            distances.append(np.full(len(keys[-1]), distance))
    # Offsets are sorted, so the first occurrence of a pair has its distance.
    found, first = np.unique(np.concatenate(keys), return_index=True)
    pairs = np.stack(np.divmod(found, count + 1), axis=1) - 1
    length = np.bincount(own, minlength=count + 1)[1:]
    shared = np.bincount(own[in_contact], minlength=count + 1)[1:] / np.maximum(length, 1)
    return pairs, np.concatenate(distances)[first], shared


def _outline(layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return y, x of the object pixels of a layer (H, W) with another value at one of their four sides."""
    edge = np.zeros(layer.shape, dtype=bool)
    below, beside = layer[1:] != layer[:-1], layer[:, 1:] != layer[:, :-1]
    edge[1:] |= below
    edge[:-1] |= below
    edge[:, 1:] |= beside
    edge[:, :-1] |= beside
    return np.nonzero(edge & (layer > 0))


# Widths of the touching boundary of BoundaryUNet, in pixels of the image.
BOUNDARY_WIDTHS = (1, 2, 3, 4)
_THRESHOLDS = np.arange(10, 20) / 20


def class_fidelity(layers: LabelLayers, width: int) -> float:
    """Return the mean F1, over IoU > 0.50, 0.55 ... 0.95, of an image's objects after conversion to background, inside
    and a touching boundary of this width and back: an upper bound for models of these three classes.
    """
    labels = objects_of_classes(pixel_classes(flat_labels(layers), width))
    found = LabelLayers.from_label_image(labels)
    pairs = shared_pixels(*(rle_codec.read_runs(one.to_rles()) for one in (found, layers)))
    sides = pairs.first, pairs.second
    hits = [min(len(np.unique(side[pairs.iou > limit])) for side in sides) for limit in _THRESHOLDS]
    return 2 * float(np.mean(hits)) / (len(found) + len(layers))


# Percentiles that represent the darkest and the brightest intensity of an image.
LOW, HIGH = 0.5, 99.5
# Difference between channels, as a fraction of the range, above which an image is in colour.
COLOURED = 0.02


@dataclass(frozen=True)
class IntensityStatistics:
    """Intensities of one image in the units of the file; of luma for RGB, of the mean over other channels.

    dtype: uint8, uint16 or float32. low, median, high: percentiles 0.5, 50, 99.5. mean, std. saturated: fraction of
    pixels at the largest value of the dtype (floats: of the image). objects, background: mean intensity inside and
    outside all masks, NaN if there are no such pixels. noise: standard deviation of the background. focus: variance of
    the Laplacian (Pech-Pacheco et al. 2000) after scaling low and high (or objects, if higher) to 0 and 255, so that it
    does not depend on exposure; noise and detail raise it. colour: mean distance of the channels from each other, as a
    fraction of high - low; 0 unless RGB. purple: how much red and blue exceed green, the tint of hematoxylin and eosin,
    in the same unit.
    """

    dtype: str
    channels: int
    low: float
    median: float
    high: float
    mean: float
    std: float
    saturated: float
    objects: float
    background: float
    noise: float
    focus: float
    colour: float
    purple: float

    @property
    def contrast(self) -> float:
        """Objects minus background relative to high - low: from -1 to 1, positive if objects are brighter."""
        difference = self.objects - self.background
        # In a dark image with few objects, these can exceed its percentiles.
        return difference / max(self.high - self.low, abs(difference), 1e-12)

    @property
    def position(self) -> float:
        """Position of the median between low (0) and high (1)."""
        return (self.median - self.low) / max(self.high - self.low, 1e-12)

    @property
    def is_bright(self) -> bool:
        """Whether the background is bright, by the rule of INPUT.INVERT auto."""
        return self.median > (self.low + self.high) / 2

    @property
    def is_coloured(self) -> bool:
        return self.colour > COLOURED


def measure_intensities(image: np.ndarray, layers: LabelLayers) -> IntensityStatistics:
    """Measure an image (H, W, C) as read; layers: its objects, of the same size."""
    gray = to_gray(image)
    low, median, high = percentiles_of(gray, (LOW, 50.0, HIGH))
    span = max(high - low, 1e-12)
    colour = purple = 0.0
    if image.shape[2] == 3:
        values = image.astype(np.float32)
        colour = float((values.max(axis=2) - values.min(axis=2)).mean() / span)
        purple = float((np.minimum(values[:, :, 0], values[:, :, 2]) - values[:, :, 1]).mean() / span)
    covered = (layers.layers > 0).any(axis=0)
    inside, outside = gray[covered], gray[~covered]
    objects = float(inside.mean(dtype=np.float64)) if inside.size else float("nan")
    # In an image with few objects, only these can be sharp, not the noise around them.
    top = max(high, objects) if inside.size else high
    scaled = np.clip((gray.astype(np.float32) - low) * np.float32(255 / max(top - low, 1e-12)), 0, 255)
    largest = np.iinfo(image.dtype).max if image.dtype.kind == "u" else image.max()
    return IntensityStatistics(
        dtype=str(image.dtype),
        channels=image.shape[2],
        low=low,
        median=median,
        high=high,
        mean=float(gray.mean(dtype=np.float64)),
        std=float(gray.std(dtype=np.float64)),
        saturated=float((image == largest).mean()),
        objects=objects,
        background=float(outside.mean(dtype=np.float64)) if outside.size else float("nan"),
        noise=float(outside.std(dtype=np.float64)) if outside.size else float("nan"),
        focus=float(cv2.Laplacian(scaled, cv2.CV_32F).var(dtype=np.float64)),
        colour=colour,
        purple=purple,
    )


def to_gray(image: np.ndarray) -> np.ndarray:
    """Return the luma of RGB, the mean of other channels, (H, W) of the image's dtype."""
    if image.shape[2] == 1:
        return image[:, :, 0]
    if image.shape[2] == 3:
        return luma_of(image)
    gray = image.mean(axis=2, dtype=np.float32)
    return (np.rint(gray) if image.dtype.kind == "u" else gray).astype(image.dtype)
