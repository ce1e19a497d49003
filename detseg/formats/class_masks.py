"""Masks whose values are classes, not objects: every connected component of a class is one object.

The labels of the Stranger Sections challenge have this form: image/NAME.JPG, label/NAME_gt.npy (H, W), 0 background,
1 inertinite, 2 vitrinite, 3 liptinite; images in folders without any label are its unlabelled ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.formats.annotated_images import AnnotatedImages
from detseg.formats.label_images import LAYERS, REFUSE, TOP, to_label_image
from detseg.formats.objects import ImageObjects
from detseg.formats.reader import FoundObjects, check_mask_size, objects_of_crops, path_name
from detseg.images.reading import SUFFIXES, decode_label_image
from detseg.structures.mask_crop import MaskCrop


class ClassMasks(AnnotatedImages):
    """Images and their masks NAME + label_suffix (.npy, .png or .tif)."""

    kind = "class masks"
    annotation = "mask"
    unlabelled_folders = True

    def __init__(
        self,
        source: Path,
        annotations: Path | None = None,
        *,
        class_names: Sequence[str],
        label_suffix: str = "_gt",
        ignore_value: int | None = None,
        allow_empty: bool = False,
    ) -> None:
        """class_names: of the values 1, 2, ... ignore_value: of pixels that are neither object nor background."""
        self.expected = f"NAME{label_suffix}.npy"
        self._label_suffix, self._ignore = label_suffix, ignore_value
        super().__init__(source, annotations, allow_empty=allow_empty)
        self.class_names = list(class_names)

    def image_of(self, file: str) -> str | None:
        path = PurePosixPath(file)
        if path.suffix.lower() not in SUFFIXES or not path.stem.endswith(self._label_suffix):
            return None
        return path_name(file).removesuffix(self._label_suffix)

    def read_annotation(self, data: bytes, where: str, height: int, width: int) -> FoundObjects:
        """Return the objects, labelled with their class names. Raises DataError for a value without a class."""
        mask = decode_label_image(data, where, self.plane)
        check_mask_size(mask, where, height, width)
        numbers = [int(number) for number in np.unique(mask) if number not in (0, self._ignore)]
        unknown = [number for number in numbers if number > len(self.class_names)]
        if unknown:
            raise DataError(
                f"{where}: has the values {', '.join(map(str, unknown[:5]))}; expected 0 for background and 1 to "
                f"{len(self.class_names)} for {', '.join(self.class_names)} (--classes, --ignore-value)"
            )
        found = [(crop, number - 1) for number in numbers for crop in regions_of(mask == number)]
        crops, classes = [crop for crop, _ in found], [index for _, index in found]
        labels, crowd = [self.class_names[index] for index in classes], [False] * len(found)
        if self._ignore is not None and (mask == self._ignore).any():
            crops, classes = [*crops, MaskCrop(mask == self._ignore, 0, 0)], [*classes, 0]
            labels, crowd = [*labels, ""], [*crowd, True]
        return objects_of_crops(crops, height, width, classes=classes, labels=labels, crowd=crowd)


def write_class_masks(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write a NumPy array (H, W) uint8 of classes: 0 background, 1, 2, ...; an existing file is replaced.

    overlaps: as in `to_label_image`, except that with layers too, the topmost object is written.
    """
    labels = to_label_image(objects, TOP if overlaps == LAYERS else overlaps)
    mask = np.append(0, objects.classes + 1).astype(np.uint8)[labels]
    with written_whole(path, "the class mask") as temporary, open(temporary, "wb") as file:
        np.save(file, mask)


def regions_of(mask: np.ndarray) -> list[MaskCrop]:
    """Return the 8-connected components of a mask (H, W) bool, the uppermost first."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    crops = []
    for number in range(1, count):
        x0, y0, width, height = (int(value) for value in boxes[number, :4])
        crops.append(MaskCrop(labels[y0 : y0 + height, x0 : x0 + width] == number, x0, y0))
    return crops
