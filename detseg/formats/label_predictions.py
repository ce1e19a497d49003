"""A folder of label images as predictions: segmentations by Cellpose, StarDist, SAM or by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from detseg.coco.pairing import PairedImage
from detseg.errors import DataError, some_of
from detseg.formats.cellpose import SEG_SUFFIX, decode_masks
from detseg.formats.file_sets import FolderFiles
from detseg.formats.label_images import LABEL_SUFFIXES
from detseg.formats.reader import path_name
from detseg.images.reading import SUFFIXES
from detseg.structures import Predictions
from detseg.structures.label_layers import LabelLayers

ENDINGS = ("", "_cp_masks", *LABEL_SUFFIXES, SEG_SUFFIX)


class LabelFolder:
    """Label images below a folder, found by the names of their images.

    For `plate1/a.png`, it is plate1/a.tif, or another image or `_seg.npy` with this name followed by one of `ENDINGS`;
    if the folder has no such subfolder, a.tif. All objects get the same score, since such files have none.
    """

    def __init__(self, folder: Path, class_index: int, score: float) -> None:
        """List the folder. Raises DataError if it has no label images."""
        if not 0 <= score <= 1:
            raise DataError(f"the score of the objects of {folder} is {score}, expected a number from 0 to 1")
        self.folder, self.class_index, self.score = folder, class_index, score
        self._listed = FolderFiles(folder)
        self._files: dict[str, list[str]] = {}
        for file in self._listed.names:
            suffix = PurePosixPath(file).suffix.lower()
            if suffix in SUFFIXES and (suffix != ".npy" or file.endswith(f"{SEG_SUFFIX}.npy")):
                self._files.setdefault(path_name(file), []).append(file)
        if not self._files:
            raise DataError(
                f"{folder}: there are no label images in this folder; expected files {', '.join(SUFFIXES)}, or "
                f"*{SEG_SUFFIX}.npy of Cellpose"
            )

    def find(self, file_name: str) -> str | None:
        """Return the label image of an image, or None. Raises DataError if several files match."""
        name = PurePosixPath(file_name.replace("\\", "/")).with_suffix("")
        for stem in (name.as_posix(), name.name):
            found = [file for ending in ENDINGS for file in self._files.get(stem + ending, [])]
            if len(found) > 1:
                raise DataError(
                    f"{self.folder}: both {found[0]} and {found[1]} could be the label image of {file_name}; keep one "
                    "of them"
                )
            if found:
                return found[0]
        return None

    def read(self, image: PairedImage) -> Predictions | None:
        """Return the objects of an image, or None if it has no label image.

        Raises DataError if the file cannot be read, or its size differs from the image's.
        """
        file = self.find(image.file_name)
        if file is None:
            return None
        labels = decode_masks(self._listed.read(file), self._listed.describe(file))
        if labels.shape != (image.height, image.width):
            raise DataError(
                f"{self.folder / file}: has {labels.shape[0]} x {labels.shape[1]} pixels (height x width), the image "
                f"{image.file_name} {image.height} x {image.width}; segment the image at its original size"
            )
        layers = LabelLayers.from_label_image(labels)
        return Predictions(
            image_id=image.image_id,
            file_name=image.file_name,
            height=image.height,
            width=image.width,
            boxes=layers.boxes(),
            scores=np.full(len(layers), self.score),
            classes=np.full(len(layers), self.class_index),
            rles=layers.to_rles(),
        )

    def missing(self, images: Sequence[PairedImage]) -> list[PairedImage]:
        """Return the images without a label image."""
        return [image for image in images if self.find(image.file_name) is None]

    def examples(self) -> str:
        """Return the names of some files, for messages."""
        return some_of([name for files in self._files.values() for name in files])
