"""The size of an image's objects, by which INPUT.OBJECT_SIZE rescales images.

The diameter of an object is the square root of the area of its box, sqrt(width x height): for a round object its
diameter, known for labels as well as for predicted boxes. That of an image is the median over its objects, shrunk
towards the typical one of the training data if they are few (`image_diameter`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.structures.boxes import box_area
from detseg.structures.rle import bounding_boxes

# Fields of an image: the diameter of its objects in pixels of its file, and the origin of that value.
DIAMETER, DIAMETER_FROM = "object_diameter", "object_diameter_from"
# Maximum enlargement of images: objects of a few pixels gain nothing by more.
MOST_ENLARGED = 8.0
# Weight of the typical diameter, in objects: the ratio of the variance of sizes within images to that between images,
# in octaves (0.45 and 0.8 in the Data Science Bowl 2018).
TYPICAL_WEIGHT = 0.3
# Maximum number of images of a data set, evenly spread, whose objects are measured.
_MEASURED = 500
_GROUP = "group"


def image_diameter(boxes: np.ndarray, typical: float) -> float:
    """Return the diameter of an image's objects, pixels.

    Args:
        boxes: (N, 4) XYXY of its objects; N = 0 gives `typical`.
        typical: that of images of this kind, pixels. It counts as TYPICAL_WEIGHT objects, so that a single cell, or
            debris, does not decide alone.
    """
    own = np.sqrt(box_area(boxes))
    own = own[own > 0]
    if not len(own):
        return typical
    weight = TYPICAL_WEIGHT / (len(own) + TYPICAL_WEIGHT)
    return math.exp((1 - weight) * math.log(np.median(own)) + weight * math.log(typical))


def check_diameter(value: Any, source: str) -> float:
    """Validate a given diameter. Raises DataError with the source if it is invalid."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.5 <= value <= 100_000:
        raise DataError(
            f"{source}: the diameter of objects is {str(value)[:80]!r}; expected pixels of the image, at least 0.5"
        )
    return float(value)


def object_scale(object_size: float, diameter: float) -> float:
    """Return the scale of an image whose objects have this diameter, at most `MOST_ENLARGED`."""
    return min(object_size / diameter, MOST_ENLARGED)


@dataclass(frozen=True)
class TypicalDiameters:
    """Diameters of a data set's images, in pixels of the files.

    median: of all images with objects. groups: for every value of the field `group`.
    """

    median: float
    groups: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_dataset(cls, dataset: CocoDataset) -> TypicalDiameters | None:
        """Measure images spread over a data set; None if they have no objects."""
        counts = dataset.objects_per_image().sum(axis=1)
        chosen = np.flatnonzero(counts)
        if len(chosen) > _MEASURED:
            chosen = chosen[np.linspace(0, len(chosen) - 1, _MEASURED).round().astype(int)]
        found: list[float] = []
        groups: dict[str, list[float]] = {}
        for index in chosen.tolist():
            rles, _, crowd = dataset.annotations(index)
            sides = np.sqrt(box_area(bounding_boxes(rles)))[~crowd]
            if not (sides > 0).any():
                continue
            found.append(float(np.median(sides[sides > 0])))
            if (name := dataset.images[index].metadata.get(_GROUP)) is not None:
                groups.setdefault(str(name), []).append(found[-1])
        if not found:
            return None
        return cls(float(np.median(found)), {name: float(np.median(own)) for name, own in groups.items()})

    def of(self, facts: Mapping[str, Any]) -> float:
        """Return the typical diameter for an image with these facts: that of its group, else of all."""
        return self.groups.get(str(facts.get(_GROUP)), self.median)
