"""The ground truth of a data set for scoring: RLEs and classes of every image, in plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.errors import DataError

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset


@dataclass
class ImageTruth:
    """N annotated objects of one image; N = 0 is legal.

    rles: N COCO RLEs of size [height, width]. classes: (N,) int64, 0-based. crowd: (N,) bool, True for a region that is
    neither object nor background: detections inside it are ignored. metadata: the image's other fields in the COCO
    file.
    """

    image_id: int | str
    file_name: str
    height: int
    width: int
    rles: list[dict[str, Any]]
    classes: np.ndarray
    crowd: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.classes = np.asarray(self.classes, dtype=np.int64).reshape(-1)
        if self.crowd is None:
            self.crowd = np.zeros(len(self.rles), dtype=bool)
        self.crowd = np.asarray(self.crowd, dtype=bool).reshape(-1)
        if not len(self.rles) == len(self.classes) == len(self.crowd):
            raise DataError(
                f"ground truth of image {self.file_name or self.image_id}: {len(self.rles)} masks, {len(self.classes)} "
                f"classes and {len(self.crowd)} crowd flags; expected the same number of each"
            )
        for index, rle in enumerate(self.rles):
            if list(rle["size"]) != [self.height, self.width]:
                raise DataError(
                    f"ground truth of image {self.file_name or self.image_id}: mask {index} has the size "
                    f"{rle['size']}, the image {[self.height, self.width]} (height, width)"
                )

    @property
    def num_objects(self) -> int:
        """The number of objects, without crowd regions."""
        return int((~self.crowd).sum())


@dataclass
class GroundTruth:
    """The truth of a data set: class names in the order of their 0-based indices, and one ImageTruth per image."""

    class_names: list[str]
    images: list[ImageTruth]

    def __post_init__(self) -> None:
        seen: set[int | str] = set()
        for image in self.images:
            if image.image_id in seen:
                raise DataError(f"ground truth: the image id {image.image_id!r} occurs twice; ids must be unique")
            seen.add(image.image_id)
            if len(image.classes) and not 0 <= image.classes.min() <= image.classes.max() < len(self.class_names):
                raise DataError(
                    f"ground truth of image {image.file_name or image.image_id}: class {image.classes.max()} is not "
                    f"one of the {len(self.class_names)} classes ({', '.join(self.class_names)})"
                )

    @classmethod
    def from_coco(cls, dataset: CocoDataset) -> GroundTruth:
        """Read all annotations of a CocoDataset."""
        images = []
        for index, record in enumerate(dataset.images):
            rles, classes, crowd = dataset.annotations(index)
            place = record.image_id, record.file_name, record.height, record.width
            images.append(ImageTruth(*place, list(rles), classes, crowd, dict(record.metadata or {})))
        return cls([category.name for category in dataset.categories], images)


def as_ground_truth(ground_truth: GroundTruth | CocoDataset) -> GroundTruth:
    """Return a GroundTruth as it is, or convert a CocoDataset."""
    return ground_truth if isinstance(ground_truth, GroundTruth) else GroundTruth.from_coco(ground_truth)
