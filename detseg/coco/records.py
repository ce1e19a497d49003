"""The parts of a COCO data set: its images, its classes, and the table of its annotations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.masks import box_to_rle, is_empty, to_rle
from detseg.structures import rle as rle_codec


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set. height, width: pixels. metadata: its other fields in the COCO file."""

    image_id: int | str
    file_name: str
    path: Path
    height: int
    width: int
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Category:
    """A class of a COCO file: its id, name, other fields, and position in the file's list."""

    id: int
    name: str
    metadata: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    position: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True)
class AnnotationTable:
    """All annotations, grouped by image; they stay text until their image is requested.

    text: (bytes,) uint8, the ASCII text of the file. starts, ends: (A,) int64, position of each annotation's JSON in
    it. classes: (A,) int32, 0-based. crowd: (A,) bool. pixels: (A,) uint8, number of pixels of the mask: 0, 1, or 2 for
    two and more. offsets: (images + 1,) int64; image i has rows offsets[i]:offsets[i + 1]. boxes: whether boxes replace
    missing masks.
    """

    text: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    pixels: np.ndarray
    offsets: np.ndarray
    boxes: bool = False

    @classmethod
    def from_rows(cls, images: Iterable[Sequence[Mapping[str, Any]]], class_of: Mapping[int, int]) -> AnnotationTable:
        """Create the table from annotations in the form of a COCO file, grouped by image.

        Each has `category_id`, `iscrowd` and `area`. class_of: category id -> class index.
        """
        text, lengths, counts, columns = bytearray(), [], [], []
        for rows in images:
            for row in rows:
                part = json.dumps(row, separators=(",", ":")).encode("ascii")
                text += part
                lengths.append(len(part))
                columns.append((class_of[row["category_id"]], row["iscrowd"], min(row["area"], 2)))
            counts.append(len(rows))
        ends = np.cumsum(lengths, dtype=np.int64)
        classes, crowd, pixels = np.array(columns, dtype=np.int32).reshape(-1, 3).T
        return cls(
            text=np.frombuffer(bytes(text), dtype=np.uint8),
            starts=ends - np.array(lengths, dtype=np.int64),
            ends=ends,
            classes=classes.copy(),
            crowd=crowd.astype(bool),
            pixels=pixels.astype(np.uint8),
            offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
        )

    @property
    def is_object(self) -> np.ndarray:
        """(A,) bool, annotations that are objects: with pixels and not crowd regions."""
        return ~self.crowd & (self.pixels > 0)

    def rows(self, image: int) -> slice:
        """Return the rows of image `image`."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def decode(self, image: int) -> list[dict[str, Any]]:
        """Return the annotations of an image as in the file."""
        rows = self.rows(image)
        parts = [self.text[start:end].tobytes() for start, end in zip(self.starts[rows], self.ends[rows], strict=True)]
        return json.loads(b"[" + b",".join(parts) + b"]")

    def rles(self, image: int, height: int, width: int) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Return the masks of an image as compressed RLEs, and (N,) bool, which of them are polygons without pixels."""
        annotations = self.decode(image)
        masks = [annotation.get("segmentation") for annotation in annotations]
        is_boxed = [self.boxes and is_empty(mask) for mask in masks]
        rles = [
            box_to_rle(annotation["bbox"], height, width) if boxed else to_rle(mask, height, width)
            for annotation, mask, boxed in zip(annotations, masks, is_boxed, strict=True)
        ]
        empty = np.zeros(len(rles), dtype=bool)
        polygons = [n for n, mask in enumerate(masks) if isinstance(mask, list) or is_boxed[n]]
        if polygons:
            empty[polygons] = rle_codec.area([rles[number] for number in polygons]) == 0
        return rles, empty

    def select(self, images: np.ndarray) -> AnnotationTable:
        """Return the table for these images, in this order; the text is shared."""
        counts = np.diff(self.offsets)[images]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[images] - offsets[:-1], counts)
        return self._of_rows(rows, offsets)

    def keep(self, rows: np.ndarray) -> AnnotationTable:
        """Return the table with only the annotations `rows`, (A,) bool; the text is shared."""
        return self._of_rows(rows, np.concatenate([[0], np.cumsum(rows)])[self.offsets].astype(np.int64))

    def _of_rows(self, rows: np.ndarray, offsets: np.ndarray) -> AnnotationTable:
        columns = {name: getattr(self, name)[rows] for name in ("starts", "ends", "classes", "crowd", "pixels")}
        return dataclasses.replace(self, offsets=offsets, **columns)

    @staticmethod
    def concatenate(tables: Sequence[AnnotationTable]) -> AnnotationTable:
        """Join tables with the same classes."""
        shifts = np.cumsum([0, *(len(table.text) for table in tables[:-1])])
        first_rows = np.cumsum([0, *(len(table.starts) for table in tables)])
        return AnnotationTable(
            text=np.concatenate([table.text for table in tables]),
            starts=np.concatenate([table.starts + shift for table, shift in zip(tables, shifts, strict=True)]),
            ends=np.concatenate([table.ends + shift for table, shift in zip(tables, shifts, strict=True)]),
            classes=np.concatenate([table.classes for table in tables]),
            crowd=np.concatenate([table.crowd for table in tables]),
            pixels=np.concatenate([table.pixels for table in tables]),
            offsets=np.concatenate(
                [table.offsets[:-1] + row for table, row in zip(tables, first_rows[:-1], strict=True)]
                + [first_rows[-1:]],
                dtype=np.int64,
            ),
            boxes=any(table.boxes for table in tables),
        )
