"""LIVECell as published: COCO files with polygons, images in folders by cell type, official training, val and test.

Edlund et al., Nature Methods 18, 1038, 2021; https://sartorius-research.github.io/LIVECell. File names describe the
images: A172_Phase_C7_1_02d16h00m_2.tif is of the cell type A172 in well C7, at position 1, after 2 days and 16 hours,
crop number 2 of a larger image.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError, some_of
from detseg.formats.coco_file import objects_of_record
from detseg.formats.reader import FoundObjects, Reader, image_names

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
KIND = "cell_type"

_NAME = re.compile(r"(?P<kind>[^_]+)_Phase_(?P<well>[A-Z]\d+)_(?P<position>\d+)_(?P<time>\w+?)_(?P<crop>\d+)")


class LiveCell(Reader):
    """One class, cell; the official split is its `parts`, and splits are stratified by cell type."""

    class_names = ("cell",)
    stratify_by = KIND
    has_metadata = False

    def __init__(
        self, source: Path, *, images: Path | None = None, cell_type: str | None = None, percent: int | None = None
    ) -> None:
        """Read the annotations below a folder, see `find_annotations`.

        images: folder or zip archive of the images; None: `images` or images.zip in the folder.

        Raises DataError if there are no annotations, one is not a COCO file, or there are no images.
        """
        annotations = find_annotations(source, cell_type, percent)
        places = [images] if images is not None else [source / "images", source / "images.zip"]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise DataError(
                f"{' and '.join(map(str, places))}: not found; expected the images of LIVECell, a folder or the zip "
                "archive (--images)"
            )
        super().__init__(place)
        self.description = f"LIVECell, {source}" + (f", {cell_type}" if cell_type else "")
        by_stem = image_names(self.files.names, self.problems, lambda file: PurePosixPath(file).stem)
        self.file_of: dict[str, str] = {}
        self._record_of: dict[str, tuple[CocoDataset, int]] = {}
        self.parts = {part: self._read_part(file, by_stem) for part, file in annotations.items()}
        if not self.file_of:
            raise DataError(f"{source}: none of the images in the COCO files is in {self.files.describe('')}")
        self.columns = {KIND: {}, "well": {}, "field": {}, "time": {}}
        for name in self.names:
            match = _NAME.fullmatch(name)
            # The field is the larger image from which the images were cropped.
            self.columns[KIND][name] = name.split("_")[0]
            self.columns["well"][name] = f"{match['kind']}_{match['well']}" if match else ""
            self.columns["field"][name] = name.rpartition("_")[0] if match else name
            self.columns["time"][name] = match["time"] if match else ""

    def _read_part(self, path: Path, by_stem: Mapping[str, str]) -> list[str]:
        dataset = CocoDataset.load(path, skipped=self.problems)
        names, missing = [], []
        for index, record in enumerate(dataset.images):
            name = PurePosixPath(record.file_name.replace("\\", "/")).stem
            if name in self._record_of:
                self.problems.append(f"{path}: image {record.file_name} is also in another of the COCO files")
            elif name not in by_stem:
                missing.append(record.file_name)
            else:
                self._record_of[name], self.file_of[name] = (dataset, index), by_stem[name]
                names.append(name)
        if missing:
            where = self.files.describe("")
            self.problems.append(f"{path}: {len(missing)} of its images are not in {where}: {some_of(missing)}")
        return names

    def fields(self, name: str) -> Mapping[str, str]:
        return {column: values[name] for column, values in self.columns.items() if values[name]}

    def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
        found = objects_of_record(*self._record_of[name], self.describe(name), height, width)
        return FoundObjects(found.rles, crowd=found.crowd)


def find_annotations(path: Path, cell_type: str | None = None, percent: int | None = None) -> dict[str, Path]:
    """Find the COCO files of an experiment below a folder: part (train, val, test) -> file, for those that exist.

    cell_type: of the experiment with this cell type; None: of that with all. percent: of that with this percentage of
    the training images. They are named as in the bucket (LIVECell/livecell_coco_train.json, 0_train2percent.json,
    LIVECell_single_cells/a172/train.json) or as in the copy that comes with the Sartorius competition
    (livecell_a172_train.json).

    Raises DataError if there is none, or one exists twice.
    """
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder; expected the COCO files of LIVECell and images.zip in it")
    if cell_type is not None and percent is not None:
        raise DataError("there is no experiment with both a single cell type and a fraction of the training images")
    kind = (cell_type or "").lower()

    def is_of(file: Path, part: str) -> bool:
        name = file.name.lower()
        if percent is not None and part == "train":
            return name.endswith(f"_train{percent}percent.json")
        if not kind:
            return name == f"livecell_coco_{part}.json"
        return name == f"livecell_{kind}_{part}.json" or (name == f"{part}.json" and file.parent.name.lower() == kind)

    files = sorted(path.rglob("*.json"))
    found: dict[str, Path] = {}
    for part in PARTS:
        fitting = [file for file in files if is_of(file, part)]
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
