"""One image with its objects, as models are trained on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers

IMAGE_TYPES = (np.uint8, np.uint16, np.float32)


@dataclass
class Sample:
    """An image and what is known about it.

    image: (H, W, C) uint8, uint16 or float32, RGB where C = 3.
    layers: its N objects, or None for an image without annotations (prediction).
    classes: (N,) int64, 0-based; object n is id n + 1 of the layers.
    ignore: (H, W) bool, regions that are neither object nor background in any loss; None for none.
    image_id, file_name: as in the data set's COCO file. metadata: its other fields of the image.
    """

    image: np.ndarray
    layers: LabelLayers | None = None
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ignore: np.ndarray | None = None
    image_id: int | str = 0
    file_name: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

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
                raise DataError(f"{where}: the image has {size} pixels, its masks {self.layers.layers.shape[1:]}")
            if len(self.classes) != len(self.layers):
                raise DataError(f"{where}: {len(self.layers)} objects, but {len(self.classes)} classes")
        if self.ignore is not None and (self.ignore.shape != size or self.ignore.dtype != bool):
            raise DataError(f"{where}: the ignored region is {self.ignore.shape} {self.ignore.dtype}, not {size} bool")

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @property
    def width(self) -> int:
        return self.image.shape[1]
