"""Masks whose numbers are classes, not objects: every connected region of a class is one object.

So come the labels of the Stranger Sections challenge: image/NAME.JPG, label/NAME_gt.npy (H, W), 0 background,
1 inertinite, 2 vitrinite, 3 liptinite; images in folders without any label are its unlabelled ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from detseg.coco.masks import Crop
from detseg.errors import DataError
from detseg.formats.annotated_images import (
    AnnotatedImages,
    Objects,
    check_mask_size,
    image_names,
    match_by_name,
    objects_of_crops,
)
from detseg.formats.source_files import open_source
from detseg.images.reading import SUFFIXES, decode_label_image

MACERALS = ("inertinite", "vitrinite", "liptinite")
LABEL_SUFFIX = "_gt"


def regions_of(mask: np.ndarray) -> list[Crop]:
    """Return the 8-connected regions of a mask (H, W) bool, the uppermost first, as crops (h, w) bool, x0, y0."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    crops = []
    for number in range(1, count):
        x0, y0, width, height = (int(value) for value in boxes[number, :4])
        crops.append((labels[y0 : y0 + height, x0 : x0 + width] == number, x0, y0))
    return crops


class ClassMasks:
    """Reads a mask of classes. ignore: number of pixels that are neither object nor background, None for none."""

    def __init__(self, class_names: Sequence[str], ignore: int | None = None) -> None:
        self._class_names = list(class_names)
        self._ignore = ignore

    def __call__(self, data: bytes, where: str, height: int, width: int) -> Objects:
        """Return the objects, called by the names of their classes. Raises DataError for a number without a class."""
        mask = decode_label_image(data, where)
        check_mask_size(mask, where, height, width)
        numbers = [int(number) for number in np.unique(mask) if number not in (0, self._ignore)]
        unknown = [number for number in numbers if number > len(self._class_names)]
        if unknown:
            raise DataError(
                f"{where}: has the numbers {', '.join(map(str, unknown[:5]))}; expected 0 for background and 1 to "
                f"{len(self._class_names)} for {', '.join(self._class_names)} (--classes, --ignore-value)"
            )
        crops = {number: regions_of(mask == number) for number in numbers}
        classes = [number - 1 for number in numbers for _ in crops[number]]
        labels = [self._class_names[index] for index in classes]
        ignored = [(mask == self._ignore, 0, 0)] if self._ignore is not None and (mask == self._ignore).any() else []
        objects = [crop for number in numbers for crop in crops[number]]
        found = objects_of_crops([*objects, *ignored], [*labels, *("" for _ in ignored)], height, width)
        crowd = [False] * len(objects) + [True] * len(ignored)
        return Objects(found.rles, found.labels, crowd, classes=[*classes, *(0 for _ in ignored)])


def read_class_masks(
    source: Path,
    annotations: Path | None = None,
    *,
    class_names: Sequence[str] = MACERALS,
    label_suffix: str = LABEL_SUFFIX,
    ignore: int | None = None,
) -> AnnotatedImages:
    """Find images and their masks NAME + label_suffix (.npy, .png or .tif) in a folder or zip archive.

    Raises DataError where there are no images or no masks.
    """
    images = open_source(source)
    files = images if annotations is None else open_source(annotations)
    problems: list[str] = []
    masks: dict[str, str] = {}
    for file in files.names:
        path = PurePosixPath(file)
        if path.suffix.lower() in SUFFIXES and path.stem.endswith(label_suffix):
            name = path.with_suffix("").as_posix().removesuffix(label_suffix)
            if masks.setdefault(name, file) != file:
                problems.append(f"{files.describe(file)}: is a second mask, beside {masks[name]}; keep one of them")
    used = set(masks.values()) if files is images else set()
    file_of = image_names([file for file in images.names if file not in used], problems)
    if not file_of or not masks:
        missing = "images" if not file_of else f"masks NAME{label_suffix}.npy"
        raise DataError(f"{source}: there are no {missing}; expected NAME.jpg and NAME{label_suffix}.npy")
    matched, alone, unused = match_by_name(file_of, masks)
    labelled_folders = {PurePosixPath(name).parent for name in matched}
    unlabelled = [name for name in alone if PurePosixPath(name).parent not in labelled_folders]
    problems += [
        f"{images.describe(file_of[name])}: has no mask {PurePosixPath(name).name}{label_suffix}.npy, as the images "
        "beside it have"
        for name in alone
        if name not in unlabelled
    ]
    problems += [f"{files.describe(masks[name])}: has no image of this name" for name in unused]
    return AnnotatedImages(
        images,
        files,
        file_of=file_of,
        annotation_of=matched,
        read_objects=ClassMasks(class_names, ignore),
        class_names=class_names,
        description=f"masks of classes of {source}",
        problems=problems,
        unlabelled=unlabelled,
    )
