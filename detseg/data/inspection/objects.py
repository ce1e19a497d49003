"""What is measured of every object, as columns.

N objects; lengths in pixels of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.data.inspection.contacts import NEAR, find_contacts
from detseg.data.repair.fragments import label_pieces
from detseg.data.repair.holes import label_holes
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
