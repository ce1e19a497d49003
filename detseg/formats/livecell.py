"""LIVECell as it is published: COCO files of polygons, images in folders by cell type, official training, val and test.

Edlund et al., Nature Methods 18, 1038, 2021; https://sartorius-research.github.io/LIVECell. A file name says what an
image is: A172_Phase_C7_1_02d16h00m_2.tif is of the cell type A172 in well C7, at position 1, after 2 days and 16 hours,
the crop number 2 of a larger image.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.annotated_images import image_names
from detseg.formats.source import LabelledImage
from detseg.formats.source_files import SourceFiles, StoredImages, open_source
from detseg.images.reading import decode_image

logger = logging.getLogger(__name__)

CELL_TYPES = ("A172", "BT474", "BV2", "Huh7", "MCF7", "SHSY5Y", "SkBr3", "SKOV3")
SIZES = (2, 4, 5, 25, 50)
PARTS = ("train", "val", "test")
KIND = "cell_type"

_NAME = re.compile(r"(?P<kind>[^_]+)_Phase_(?P<well>[A-Z]\d+)_(?P<position>\d+)_(?P<time>\w+?)_(?P<crop>\d+)")


class LiveCell(StoredImages):
    """A `Source` of one class, cell; the official split is its `parts`, and splits are stratified by cell type."""

    class_names = ("cell",)
    default_column = KIND
    unlabelled: Sequence[str] = ()

    def __init__(
        self, path: Path, *, images: Path | None = None, cell_type: str | None = None, percent: int | None = None
    ) -> None:
        """Read the annotations below a folder.

        Args:
            path: folder with the COCO files, in subfolders or not.
            images: folder or zip archive of the images. None: `images` or images.zip in the folder.
            cell_type: take the files of the experiment with this cell type alone. None: those of all together.
            percent: take the training file of the experiment with so few (one of `SIZES`) of the training images.

        Raises:
            DataError: there is no such file, one is no COCO file, or there are no images.
        """
        self.problems: list[str] = []
        files = find_annotations(path, cell_type, percent)
        self.description = f"LIVECell, {path}" + (f", {cell_type}" if cell_type else "")
        self._images = _open_images(path, images)
        by_stem = {PurePosixPath(n).name: file for n, file in image_names(self._images.names, self.problems).items()}
        self._place_of: dict[str, tuple[CocoDataset, int]] = {}
        self._file_of: dict[str, str] = {}
        self.parts = {part: self._read_part(file, by_stem) for part, file in files.items()}
        self.names = sorted(self._file_of)
        if not self.names:
            raise DataError(f"{path}: none of the images that the COCO files list is in {self._images.describe('')}")
        self.columns = _columns(self.names)

    def _read_part(self, path: Path, by_stem: dict[str, str]) -> list[str]:
        dataset = CocoDataset.load(path, skipped=self.problems)
        names, missing = [], []
        for index, record in enumerate(dataset.images):
            name = PurePosixPath(record.file_name.replace("\\", "/")).stem
            if name in self._place_of:
                self.problems.append(f"{path}: image {record.file_name} is in another of the COCO files, too")
            elif name not in by_stem:
                missing.append(record.file_name)
            else:
                self._place_of[name], self._file_of[name] = (dataset, index), by_stem[name]
                names.append(name)
        if missing:
            some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            self.problems.append(f"{path}: {len(missing)} of its images are not in {self._images.describe('')}: {some}")
        return names

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        dataset, index = self._place_of[name]
        record, file_name = dataset.images[index], self._file_of[name]
        height, width = decode_image(self._images.read(file_name), self.describe(name)).shape[:2]
        if (height, width) != (record.height, record.width):
            raise DataError(
                f"{self.describe(name)}: has {height} x {width} pixels (height x width), {dataset.name} says "
                f"{record.height} x {record.width}"
            )
        rles, _, crowd = dataset.annotations(index)
        fields = {column: values[name] for column, values in self.columns.items() if values[name]}
        return LabelledImage(name, file_name, height, width, rles, fields=fields, crowd=crowd.tolist()), []


def find_annotations(path: Path, cell_type: str | None = None, percent: int | None = None) -> dict[str, Path]:
    """Find the COCO files of an experiment below a folder: part (train, val, test) -> file, of those that are there.

    They are named as in the bucket (LIVECell/livecell_coco_train.json, LIVECell_single_cells/a172/train.json,
    0_train2percent.json) or as in the copy that comes with the Sartorius competition (livecell_a172_train.json).

    Raises DataError where there is none, or one is there twice.
    """
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder; expected the COCO files of LIVECell and images.zip in it")
    if cell_type is not None and percent is not None:
        raise DataError("the experiments with one cell type and with a part of the training images are not combined")
    files = sorted(path.rglob("*.json"))
    found: dict[str, Path] = {}
    for part in PARTS:
        fitting = [file for file in files if _is_of(file, part, cell_type, percent if part == "train" else None)]
        if len(fitting) > 1:
            raise DataError(f"{path}: {fitting[0]} and {fitting[1]} are both the {part} file; keep one of them")
        if fitting:
            found[part] = fitting[0]
    what = f"of {cell_type} " if cell_type else ""
    if not found or (percent is not None and "train" not in found):
        expected = "LIVECell_single_cells/TYPE/train.json" if cell_type else "livecell_coco_train.json"
        expected = f"*_train{percent}percent.json" if percent else expected
        raise DataError(f"{path}: there are no COCO files {what}below it; expected {expected}, ...")
    if len(found) < len(PARTS):
        missing = ", ".join(part for part in PARTS if part not in found)
        logger.warning("%s: there is no COCO file %sfor %s", path, what, missing)
    return found


def _is_of(file: Path, part: str, cell_type: str | None, percent: int | None) -> bool:
    name = file.name.lower()
    if percent is not None:
        return name.endswith(f"_train{percent}percent.json")
    if cell_type is None:
        return name == f"livecell_coco_{part}.json"
    kind = cell_type.lower()
    return name == f"livecell_{kind}_{part}.json" or (name == f"{part}.json" and file.parent.name.lower() == kind)


def _open_images(path: Path, images: Path | None) -> SourceFiles:
    candidates = [images] if images is not None else [path / "images", path / "images.zip"]
    for candidate in candidates:
        if candidate.exists():
            return open_source(candidate)
    raise DataError(
        f"{' and '.join(map(str, candidates))}: not there; expected the images of LIVECell, a folder or the zip "
        "archive (--images)"
    )


def _columns(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return what the names of images say: cell type, well, time, and the larger image that they were cut from."""
    columns: dict[str, dict[str, str]] = {KIND: {}, "well": {}, "field": {}, "time": {}}
    for name in names:
        match = _NAME.fullmatch(name)
        columns[KIND][name] = name.split("_")[0]
        columns["well"][name] = f"{match['kind']}_{match['well']}" if match else ""
        columns["field"][name] = name.rpartition("_")[0] if match else name
        columns["time"][name] = match["time"] if match else ""
    return columns
