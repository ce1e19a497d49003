"""What is measured of every object, as columns.

N objects; lengths in pixels of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from detseg.curation.repair.masks import label_holes, label_pieces
from detseg.data.preprocess import percentiles_of
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import box_area, box_iou
from detseg.structures.label_layers import LabelLayers


@dataclass(frozen=True)
class ObjectTable:
    """Columns (N,), or (N, 4) of `boxes`.

    image, number: index of the image and of the object among the annotations of the image. classes: 0-based. areas.
    boxes: float32 XYXY half-open. elongation: ratio of the axes of the ellipse of the same second moments, 1 or more.
    holes, hole_pixels; pieces: 8-connected parts; lesser_pixels: those outside of the largest piece. overlapping,
    touching, near: how many others share pixels, are neighbours without, lie at most two pixels away without. shared:
    part of the outline that others overlap or touch. at_border: at the image's border. box_iou: largest IoU with the
    box of another object of its class.
    """

    image: np.ndarray
    number: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    elongation: np.ndarray
    holes: np.ndarray
    hole_pixels: np.ndarray
    pieces: np.ndarray
    lesser_pixels: np.ndarray
    overlapping: np.ndarray
    touching: np.ndarray
    near: np.ndarray
    shared: np.ndarray
    at_border: np.ndarray
    box_iou: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    @property
    def widths(self) -> np.ndarray:
        return self.boxes[:, 2] - self.boxes[:, 0]

    @property
    def heights(self) -> np.ndarray:
        return self.boxes[:, 3] - self.boxes[:, 1]

    @property
    def sides(self) -> np.ndarray:
        """The side of the square with the area of the box, by which a feature pyramid assigns levels."""
        return np.sqrt(self.widths * self.heights)

    def select(self, rows: np.ndarray) -> ObjectTable:
        """Return the table of these rows, (N,) bool or indices."""
        return ObjectTable(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})

    @classmethod
    def concatenate(cls, tables: Sequence[ObjectTable]) -> ObjectTable:
        """Join tables; none gives an empty one."""
        tables = [*tables, measure_objects([], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 0, 1, 1)]
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


def measure_objects(
    rles: Sequence[Mapping[str, Any]], classes: np.ndarray, numbers: np.ndarray, image: int, height: int, width: int
) -> ObjectTable:
    """Measure the N objects of one image.

    rles: their masks, none empty. classes, numbers: (N,) int64, see `ObjectTable`. image: its index. height, width: of
    the image.
    """
    count = len(rles)
    layers = LabelLayers.from_rles(rles, height, width)
    contacts = find_contacts(layers)
    shapes = np.array([_shape(crop) for crop, _, _ in rle_codec.decode_crops(rles)], dtype=np.float64).reshape(-1, 5)
    boxes = rle_codec.bounding_boxes(rles).reshape(-1, 4)
    limits = np.array([0, 0, width, height], dtype=np.float32)
    return ObjectTable(
        image=np.full(count, image, dtype=np.int64),
        number=np.asarray(numbers, dtype=np.int64),
        classes=np.asarray(classes, dtype=np.int64),
        areas=rle_codec.area(rles),
        boxes=boxes,
        elongation=shapes[:, 0],
        holes=shapes[:, 1].astype(np.int64),
        hole_pixels=shapes[:, 2].astype(np.int64),
        pieces=shapes[:, 3].astype(np.int64),
        lesser_pixels=shapes[:, 4].astype(np.int64),
        overlapping=contacts.neighbours(count, 0),
        touching=contacts.neighbours(count, 1, 1),
        near=contacts.neighbours(count, NEAR, 2),
        shared=contacts.shared,
        at_border=((boxes == limits) & (limits >= 0)).any(axis=1),
        box_iou=largest_box_iou(boxes, np.asarray(classes)),
    )


def _shape(mask: np.ndarray) -> tuple[float, float, float, float, float]:
    """Return elongation, holes and their pixels, pieces, and pixels outside of the largest piece, of a crop."""
    mask = np.ascontiguousarray(mask)
    holes, hole_count = label_holes(mask)
    _, pieces = label_pieces(mask)
    return elongation(mask), hole_count, np.count_nonzero(holes), len(pieces), pieces.sum() - pieces.max()


def elongation(mask: np.ndarray) -> float:
    """Return major by minor axis of the ellipse with the second moments of a mask (h, w) bool, pixels being squares."""
    y, x = np.nonzero(mask)
    # A pixel's own extent adds 1/12 to its variance, which also keeps lines of one pixel finite.
    xx, yy = x.var() + 1 / 12, y.var() + 1 / 12
    xy = ((x - x.mean()) * (y - y.mean())).mean()
    half, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    return float(np.sqrt((half + spread) / (half - spread)))


def largest_box_iou(boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return for each of N boxes (N, 4) XYXY the largest IoU with another one of its class (N,), 0 where there is none.

    Boxes are compared with those that begin before they end alone, so that no N x N matrix is made.
    """
    best = np.zeros(len(boxes), dtype=np.float64)
    order = np.argsort(boxes[:, 0], kind="stable")
    ends = np.searchsorted(boxes[order, 0], boxes[order, 2])
    filled = box_area(boxes) > 0
    for position, index in enumerate(order):
        others = order[position + 1 : ends[position]]
        others = others[(classes[others] == classes[index]) & filled[others]]
        if len(others) and filled[index]:
            values = box_iou(boxes[index : index + 1], boxes[others])[0]
            best[index] = max(best[index], values.max())
            best[others] = np.maximum(best[others], values)
    return best


# What is measured of every image: intensities, contrast of its objects, focus, colour.

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Percentiles that stand for the darkest and the brightest of an image.
LOW, HIGH = 0.5, 99.5
# Share of the range by which the channels of a picture differ from which on it is called coloured.
COLOURED = 0.02


@dataclass(frozen=True)
class Intensities:
    """One image. Intensities are in the numbers of the file, of colour its luma, of other channels their mean.

    dtype: uint8, uint16 or float32. low, median, high: percentiles 0.5, 50, 99.5. mean, std. saturated: share of
    pixels at the largest number of the dtype (floats: of the image). objects, background: mean intensity in and
    outside of all masks, NaN where there is none. noise: standard deviation of the background. focus: variance of the
    Laplacian (Pech-Pacheco et al. 2000) after low and high (or objects, where higher) became 0 and 255, so that
    exposure does not count; noise and detail raise it. colour: mean distance of the channels from each other, as a
    share of high - low; 0 of other than RGB. purple: by how much red and blue pass green, the tint of hematoxylin and
    eosin, in the same unit.
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
        """Objects minus background by high - low: from -1 to 1, positive where objects are brighter."""
        difference = self.objects - self.background
        # Few objects in a dark picture can lie beyond its percentiles.
        return difference / max(self.high - self.low, abs(difference), 1e-12)

    @property
    def position(self) -> float:
        """Where the median lies between low, 0, and high, 1."""
        return (self.median - self.low) / max(self.high - self.low, 1e-12)

    @property
    def is_bright(self) -> bool:
        """Whether the background is bright: the rule of INPUT.INVERT auto."""
        return self.median > (self.low + self.high) / 2

    @property
    def is_coloured(self) -> bool:
        return self.colour > COLOURED


def measure_image(image: np.ndarray, layers: LabelLayers) -> Intensities:
    """Measure an image (H, W, C) as it was read; layers: its objects, of the same size."""
    gray = to_gray(image)
    low, median, high = percentiles_of(gray, (LOW, 50.0, HIGH))
    covered = (layers.layers > 0).any(axis=0)
    inside, outside = gray[covered], gray[~covered]
    colour, purple = colours(image, low, high)
    objects = float(inside.mean(dtype=np.float64)) if inside.size else float("nan")
    # In a picture with few objects, these and not the noise around them are what may be sharp.
    top = max(high, objects) if inside.size else high
    largest = np.iinfo(image.dtype).max if image.dtype.kind == "u" else image.max()
    return Intensities(
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
        focus=focus(gray, low, top),
        colour=colour,
        purple=purple,
    )


def to_gray(image: np.ndarray) -> np.ndarray:
    """Return the luma of RGB, the mean of other channels, (H, W) of the image's dtype."""
    if image.shape[2] == 1:
        return image[:, :, 0]
    values = image.astype(np.float32)
    gray = values @ _LUMA if image.shape[2] == 3 else values.mean(axis=2)
    return (np.rint(gray) if image.dtype.kind == "u" else gray).astype(image.dtype)


def focus(gray: np.ndarray, low: float, high: float) -> float:
    """Return the variance of the Laplacian of a gray image (H, W) whose range low..high is brought to 0..255."""
    scaled = np.clip((gray.astype(np.float32) - low) * np.float32(255 / max(high - low, 1e-12)), 0, 255)
    return float(cv2.Laplacian(scaled, cv2.CV_32F).var(dtype=np.float64))


def colours(image: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return `colour` and `purple` of an image (H, W, C), see `Intensities`; 0 of other than RGB."""
    if image.shape[2] != 3:
        return 0.0, 0.0
    values = image.astype(np.float32)
    spread = (values.max(axis=2) - values.min(axis=2)).mean()
    purple = (np.minimum(values[:, :, 0], values[:, :, 2]) - values[:, :, 1]).mean()
    span = max(high - low, 1e-12)
    return float(spread / span), float(purple / span)


# Which objects of an image overlap, touch, or nearly do, found from their outlines.
#
# Distances are those of a king on a chessboard: 0 pixels in common, 1 neighbours by side or corner, d with d - 1 pixels
# between.

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
