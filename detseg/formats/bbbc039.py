"""BBBC039 of the Broad Institute: nuclei of U2OS cells, 200 images of 16 bits, masks in colours, published lists.

Nuclei that touch have different colours, and each connected region of a colour is one nucleus: 5,720 of them in the 50
test images (Caicedo et al., Cytometry A 95, 952, 2019; https://bbbc.broadinstitute.org/BBBC039).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from detseg.errors import DataError
from detseg.formats.annotated_images import Objects, check_mask_size, image_names, objects_of_crops
from detseg.formats.class_masks import regions_of
from detseg.formats.source import LabelledImage
from detseg.formats.source_files import SourceFiles, StoredImages, open_source
from detseg.images.reading import SUFFIXES, decode_image

# The published lists, and the number of nuclei in the images of the last.
LISTS = {"training": "train", "validation": "val", "test": "test"}
PUBLISHED_TEST_NUCLEI = 5720


class Bbbc039(StoredImages):
    """A `Source` of one class: images, masks and metadata as folders or as the zip archives that are downloaded.

    The lists of metadata (training.txt, validation.txt, test.txt) are its `parts`.
    """

    unlabelled: Sequence[str] = ()
    default_column = None

    def __init__(self, path: Path, *, class_name: str = "nucleus") -> None:
        """List the images and masks. Raises DataError where images, masks or lists are missing."""
        self._images = _open_part(path, "images")
        self._masks = _open_part(path, "masks")
        self.description = f"BBBC039, {path}"
        self.class_names = [class_name]
        self.columns: dict[str, dict[str, str]] = {}
        self.problems: list[str] = []
        self._file_of = _by_stem(image_names(self._images.names, self.problems))
        self._mask_of = _by_stem(image_names(self._masks.names, self.problems))
        self.names = sorted(set(self._file_of) & set(self._mask_of))
        if not self.names:
            raise DataError(f"{path}: no mask has the name of an image; expected images/NAME.tif and masks/NAME.png")
        self.problems += [
            f"{self._images.describe(self._file_of[name])}: has no mask"
            for name in sorted(set(self._file_of) - set(self._mask_of))
        ]
        self.parts = self._read_lists(_open_part(path, "metadata"))
        self._counts: dict[str, int] = {}

    def _read_lists(self, files: SourceFiles) -> dict[str, list[str]]:
        parts: dict[str, list[str]] = {}
        for file in files.names:
            part = LISTS.get(PurePosixPath(file).stem.lower())
            if part is None or PurePosixPath(file).suffix.lower() != ".txt":
                continue
            lines = files.read(file).decode("utf-8", errors="replace").split()
            listed = [line.removesuffix(PurePosixPath(line).suffix) for line in lines]
            missing = [name for name in listed if name not in self._mask_of or name not in self._file_of]
            self.problems += [f"{files.describe(file)}: there is no image or no mask {name}" for name in missing]
            parts[part] = [name for name in listed if name not in missing]
        if set(parts) != set(LISTS.values()):
            raise DataError(
                f"{files.describe('')}: expected the lists {', '.join(f'{name}.txt' for name in LISTS)}; found "
                f"{', '.join(sorted(parts)) or 'none'}"
            )
        return {part: parts[part] for part in LISTS.values()}

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        file_name = self._file_of[name]
        height, width = decode_image(self._images.read(file_name), self.describe(name)).shape[:2]
        where = self._masks.describe(self._mask_of[name])
        found = read_coloured_mask(self._masks.read(self._mask_of[name]), where, height, width)
        self._counts[name] = len(found.rles)
        return LabelledImage(name, file_name, height, width, found.rles, labels=found.labels), []

    def check_count(self) -> str:
        """Say how many nuclei were read of the published test images, and whether they are as many as published."""
        listed = self.parts["test"]
        count = sum(self._counts.get(name, 0) for name in listed)
        said = f"the {len(listed)} published test images have {count} nuclei"
        if count == PUBLISHED_TEST_NUCLEI:
            return f"{said}, as published"
        return (
            f"{said}; published are {PUBLISHED_TEST_NUCLEI}: these are not the files of BBBC039v1, or not all of them"
        )


def _open_part(path: Path, part: str) -> SourceFiles:
    for candidate in (path / part, path / f"{part}.zip"):
        if candidate.exists():
            return open_source(candidate)
    raise DataError(f"{path}: there is no folder {part} and no {part}.zip; `detseg download bbbc039` gets them")


def _by_stem(names: dict[str, str]) -> dict[str, str]:
    return {PurePosixPath(name).name: file for name, file in names.items()}


def read_coloured_mask(data: bytes, where: str, height: int, width: int) -> Objects:
    """Return the 8-connected regions of every colour but black; alpha does not matter.

    Raises DataError where the mask cannot be read or has another size.
    """
    if PurePosixPath(where).suffix.lower() not in SUFFIXES:
        raise DataError(f"{where}: is no image")
    pixels = decode_image(data, where)
    check_mask_size(pixels[:, :, 0], where, height, width)
    colours = np.zeros((height, width), dtype=np.int64)
    for channel in range(pixels.shape[2]):
        colours = (colours << 16) + pixels[:, :, channel].astype(np.int64)
    crops = [crop for colour in np.unique(colours) if colour for crop in regions_of(colours == colour)]
    return objects_of_crops(crops, [str(number) for number in range(1, len(crops) + 1)], height, width)
