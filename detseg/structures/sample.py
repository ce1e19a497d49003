"""One image with its objects, as used in training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers

# Columns of Sample.object_weights, by the loss that they multiply.
CLASS_LOSS, BOX_LOSS, MASK_LOSS = range(3)

# Pixel size in micrometres, (y, x), since pixels need not be square. In files (COCO images, Predictions files) it is
# the field `pixel_size`: one number, or [y, x].

PixelSize = tuple[float, float]

FIELD = "pixel_size"
# Edges that differ by less, from conversion of units, are those of a square.
_SQUARE_WITHIN = 1e-6


def parse_pixel_size(value: Any, source: str) -> PixelSize:
    """Return (y, x) in micrometres from a number, or a list [y, x].

    Raises:
        DataError: for anything else, or a size that is not above 0. source: the origin, for the message.
    """
    edges = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(edges) != 2 or not all(_is_length(edge) for edge in edges):
        raise DataError(
            f"{source}: the pixel size is {str(value)[:80]!r}; expected micrometres per pixel above 0, one number or "
            "[y, x]"
        )
    return float(edges[0]), float(edges[1])


def pixel_size_of(fields: Mapping[str, Any], source: str) -> PixelSize | None:
    """Return the pixel size from the fields of an image, as `parse_pixel_size`; None if they have none."""
    return None if fields.get(FIELD) is None else parse_pixel_size(fields[FIELD], source)


def parse_pixel_size_text(text: str, source: str) -> PixelSize:
    """Return (y, x) in micrometres from text by users or in tables: "0.5", or "0.5 0.4" (y, x; comma or space).

    Raises:
        DataError: as `parse_pixel_size`.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    return parse_pixel_size(numbers[0] if len(numbers) == 1 else numbers or text, source)


def pixel_size_field(size: PixelSize) -> float | list[float]:
    """Return the size in the form of files: one number if the pixel is square."""
    y, x = size
    return x if math.isclose(y, x, rel_tol=_SQUARE_WITHIN) else [y, x]


def _is_length(edge: Any) -> bool:
    return isinstance(edge, (int, float)) and not isinstance(edge, bool) and math.isfinite(edge) and edge > 0


IMAGE_TYPES = (np.uint8, np.uint16, np.float32)


@dataclass
class Sample:
    """An image and its annotations.

    image: (H, W, C) uint8, uint16 or float32; RGB if C = 3.
    layers: its N objects, or None for an image without annotations (prediction).
    classes: (N,) int64, 0-based; object n has id n + 1 in the layers.
    ignore: (H, W) bool, regions that are neither object nor background in any loss; None for none.
    image_id, file_name: from the COCO file. metadata: the image's other fields there.

    Weights in training, for images with less certain labels (pseudo-labels):
    weight: factor on all losses, including background. background_weight: factor on the class losses of background far
    from all objects, where labels may be missing. object_weights: (N, 3) float32, factors on the losses of predictions
    matched to each object, in the columns CLASS_LOSS, BOX_LOSS and MASK_LOSS; None for 1. certainty: (H, W) uint8,
    factor on the mask loss of each pixel, 255 for 1; None for 1.
    """

    image: np.ndarray
    layers: LabelLayers | None = None
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ignore: np.ndarray | None = None
    image_id: int | str = 0
    file_name: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    background_weight: float = 1.0
    object_weights: np.ndarray | None = None
    certainty: np.ndarray | None = None

    def __post_init__(self) -> None:
        where = f"image {self.file_name or self.image_id}"
        if self.image.ndim != 3 or self.image.dtype not in IMAGE_TYPES:
            raise DataError(
                f"{where}: expected (height, width, channels) of uint8, uint16 or float32, got {self.image.shape} of "
                f"{self.image.dtype}"
            )
        self.classes = np.asarray(self.classes, dtype=np.int64).reshape(-1)
        size = (self.height, self.width)
        if self.layers is not None:
            if (self.layers.height, self.layers.width) != size:
                raise DataError(f"{where}: the image has the size {size}, its masks {self.layers.layers.shape[1:]}")
            if len(self.classes) != len(self.layers):
                raise DataError(f"{where}: {len(self.layers)} objects, but {len(self.classes)} classes")
        if self.ignore is not None and (self.ignore.shape != size or self.ignore.dtype != bool):
            raise DataError(f"{where}: `ignore` is {self.ignore.shape} {self.ignore.dtype}, expected {size} bool")
        if self.object_weights is not None:
            self.object_weights = np.asarray(self.object_weights, dtype=np.float32)
            if self.object_weights.shape != (len(self.classes), 3):
                found = self.object_weights.shape
                raise DataError(f"{where}: {len(self.classes)} objects, but weights with the shape {found}")
        if self.certainty is not None and (self.certainty.shape != size or self.certainty.dtype != np.uint8):
            found = f"{self.certainty.shape} {self.certainty.dtype}"
            raise DataError(f"{where}: `certainty` is {found}, expected {size} uint8")

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @property
    def width(self) -> int:
        return self.image.shape[1]

    def with_objects(self, layers: LabelLayers, keep: np.ndarray, **others: Any) -> Sample:
        """Return a copy with the objects `keep`, (N,) bool, whose masks are `layers`; others: fields to replace."""
        weights = None if self.object_weights is None else self.object_weights[keep]
        return dataclasses.replace(self, layers=layers, classes=self.classes[keep], object_weights=weights, **others)

    def layers_or_empty(self) -> LabelLayers:
        """Return `layers`, without an object where they are None."""
        return LabelLayers.empty(self.height, self.width) if self.layers is None else self.layers

    def weights_or_ones(self) -> np.ndarray:
        """Return `object_weights`, or ones if they are None."""
        return np.ones((len(self.classes), 3), dtype=np.float32) if self.object_weights is None else self.object_weights
