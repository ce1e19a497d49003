"""BBBC039 of the Broad Institute: nuclei of U2OS cells, 200 images of 16 bits, masks in colours, published split.

Touching nuclei have different colours, and each connected component of a colour is one nucleus: 5,720 of them in the 50
test images (Caicedo et al., Cytometry A 95, 952, 2019; https://bbbc.broadinstitute.org/BBBC039).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from detseg.errors import DataError
from detseg.formats.annotated_images import AnnotatedImages
from detseg.formats.class_masks import regions_of
from detseg.formats.file_sets import open_files
from detseg.formats.reader import FoundObjects, check_mask_size, objects_of_crops
from detseg.images.reading import SUFFIXES, decode_image

# The published lists, and the number of nuclei in the images of the last one.
LISTS = {"training": "train", "validation": "val", "test": "test"}
PUBLISHED_TEST_NUCLEI = 5720


class Bbbc039(AnnotatedImages):
    """One class; images, masks and metadata are folders or the downloaded zip archives.

    The lists in metadata (training.txt, validation.txt, test.txt) are its `parts`.
    """

    annotation = "mask"
    expected = "masks/NAME.png"
    has_metadata = False

    def __init__(self, source: Path, *, class_name: str = "nucleus", allow_empty: bool = False) -> None:
        """List the images and masks. Raises DataError if images, masks or lists are missing."""
        images, masks = _part_of(source, "images"), _part_of(source, "masks")
        super().__init__(images, masks, class_name=class_name, allow_empty=allow_empty)
        self.description = f"BBBC039, {source}"
        self.parts = self._read_lists(_part_of(source, "metadata"))
        self._counts: dict[str, int] = {}

    def image_name(self, file: str) -> str:
        return PurePosixPath(file).stem

    def image_of(self, file: str) -> str | None:
        return PurePosixPath(file).stem if PurePosixPath(file).suffix.lower() in SUFFIXES else None

    def _read_lists(self, path: Path) -> dict[str, list[str]]:
        files = open_files(path)
        parts: dict[str, list[str]] = {}
        known = set(self.names)
        for file in files.names:
            part = LISTS.get(PurePosixPath(file).stem.lower())
            if part is None or PurePosixPath(file).suffix.lower() != ".txt":
                continue
            lines = files.read(file).decode("utf-8", errors="replace").split()
            listed = [line.removesuffix(PurePosixPath(line).suffix) for line in lines]
            self.problems += [
                f"{files.describe(file)}: there is no image or no mask {name}" for name in listed if name not in known
            ]
            parts[part] = [name for name in listed if name in known]
        if set(parts) != set(LISTS.values()):
            raise DataError(
                f"{files.describe('')}: expected the lists {', '.join(f'{name}.txt' for name in LISTS)}; found "
                f"{', '.join(sorted(parts)) or 'none'}"
            )
        return {part: parts[part] for part in LISTS.values()}

    def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
        found = super().find_objects(name, height, width)
        self._counts[name] = len(found.rles)
        return found

    def read_annotation(self, data: bytes, where: str, height: int, width: int) -> FoundObjects:
        """Return the 8-connected components of every colour except black; alpha is ignored."""
        pixels = decode_image(data, where)
        check_mask_size(pixels[:, :, 0], where, height, width)
        colours = np.zeros((height, width), dtype=np.int64)
        for channel in range(pixels.shape[2]):
            colours = (colours << 16) + pixels[:, :, channel].astype(np.int64)
        crops = [crop for colour in np.unique(colours) if colour for crop in regions_of(colours == colour)]
        return objects_of_crops(crops, height, width, labels=[str(number + 1) for number in range(len(crops))])

    def closing_note(self) -> str:
        """Return a sentence on whether the published test images have the published number of nuclei."""
        listed = self.parts["test"]
        count = sum(self._counts.get(name, 0) for name in listed)
        said = f"the {len(listed)} published test images have {count} nuclei"
        if count == PUBLISHED_TEST_NUCLEI:
            return f"{said}, as published"
        return (
            f"{said} instead of the published {PUBLISHED_TEST_NUCLEI}: the files differ from BBBC039v1 or are "
            "incomplete"
        )


def _part_of(path: Path, part: str) -> Path:
    for candidate in (path / part, path / f"{part}.zip"):
        if candidate.exists():
            return candidate
    raise DataError(f"{path}: there is no folder {part} and no {part}.zip; run `detseg download bbbc039`")
