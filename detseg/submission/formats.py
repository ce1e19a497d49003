"""The CSV formats of competitions.

All have one row per object with "start length" pairs in ascending order, pixels counted from 1, and no pixel in two
objects of an image; an image without objects has one row with an empty second column.

sartorius: Sartorius Cell Instance Segmentation (2021), pixels counted in row-major order. dsb2018: Data Science Bowl
2018, in column-major order. Both score the mean over images of TP / (TP + FP + FN), averaged over the IoU thresholds
0.50, 0.55, ..., 0.95; a hit has an IoU greater than the threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.pairing import PairedImage
from detseg.errors import DataError, list_problems
from detseg.formats.run_lengths import competition_name, to_rles, to_texts
from detseg.images.reading import SUFFIXES


@dataclass(frozen=True)
class CsvFormat:
    """key, runs: the columns with image names and run-lengths. by_rows: pixels are counted in row-major order. empty:
    run-lengths in the row of an image without objects.
    """

    name: str
    key: str
    runs: str
    by_rows: bool
    empty: str = ""

    def texts(self, rles: Sequence[dict[str, Any]], height: int, width: int) -> list[str]:
        """Return N COCO RLEs as run-length strings of the CSV."""
        return to_texts(rles, height, width, by_rows=self.by_rows)

    def rles(self, runs: Sequence[tuple[np.ndarray, np.ndarray]], height: int, width: int) -> list[dict[str, Any]]:
        """Return N masks, given by the starts and ends of their runs (0-based), as COCO RLEs."""
        return to_rles(runs, height, width, by_rows=self.by_rows)


FORMATS = {
    "sartorius": CsvFormat("sartorius", "id", "predicted", by_rows=True),
    "dsb2018": CsvFormat("dsb2018", "ImageId", "EncodedPixels", by_rows=False),
}


def format_of(columns: Sequence[str], path: object) -> CsvFormat:
    """Return the format with these columns. Raises DataError if there is none."""
    for layout in FORMATS.values():
        if layout.key in columns and layout.runs in columns:
            return layout
    known = "; ".join(f"{layout.name}: {layout.key},{layout.runs}" for layout in FORMATS.values())
    raise DataError(f"{path}: line 1: has the columns {','.join(columns)}; expected one of {known}")


# The images that a submission must contain.


@dataclass(frozen=True)
class SubmissionImage:
    """name: in the submission, the file name without folder and suffix. Sizes are None if unknown."""

    name: str
    height: int | None = None
    width: int | None = None


def image_files(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted, without hidden files and the masks (masks/*.png) of the DSB 2018."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.parent.name != "masks" and not path.name.startswith(".")
    )


def by_name(images: Iterable[SubmissionImage]) -> dict[str, SubmissionImage]:
    """Return the images by name. Raises DataError if a name occurs twice or there are no images."""
    found: dict[str, SubmissionImage] = {}
    doubled = []
    for image in images:
        if image.name in found:
            doubled.append(f"two images would be called {image.name!r} in the submission; rename one of them")
        found[image.name] = image
    if doubled:
        raise DataError(list_problems(doubled))
    if not found:
        raise DataError("there are no images for a submission")
    return found


def images_of(images: Iterable[PairedImage]) -> dict[str, SubmissionImage]:
    """Return the images of a file by their names in a submission."""
    return by_name(
        SubmissionImage(competition_name(image.file_name or str(image.image_id)), image.height, image.width)
        for image in images
    )
