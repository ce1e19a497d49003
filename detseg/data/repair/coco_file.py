"""Repairing a COCO file: what no rule touches is written as it was, further fields included."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from detseg.data.coco_index import AnnotationTable, index_coco
from detseg.data.coco_writer import annotations_of, image_root_for, write_coco
from detseg.data.json_scan import read_json_text, scan_object
from detseg.data.masks import to_rle
from detseg.data.repair.changes import Change, check_free, write_changes
from detseg.data.repair.image import ImageMasks, RepairedMasks, repair_image
from detseg.data.repair.options import RepairRules
from detseg.data.repair.wrong_class import allowed_classes, one_class_hint
from detseg.errors import DataError

logger = logging.getLogger(__name__)

_WRITTEN_APART = ("info", "images", "categories", "annotations")


def repair_coco(
    source: Path,
    target: Path,
    rules: RepairRules,
    *,
    changes_csv: Path | None = None,
    skipped: list[str] | None = None,
    overwrite: bool = False,
) -> list[Change]:
    """Repair the masks of a COCO file; images are not read.

    Annotations that no rule touches, polygons too, and all further fields of the file, its images, categories and
    annotations stay as they are. Changed masks become compressed RLEs with new area and bbox. A piece that was split
    off has the fields of its annotation and a new id; merged masks have the fields of all, those of the larger first.
    Crowd regions are not looked at. Annotations come in the order of the images.

    Args:
        source, target: .json or .json.gz.
        changes_csv: the list of changes; None: TARGET without its suffix and `_repairs.csv`.
        skipped: where given, bad images and annotations (not those without a mask) are left out and added to it.

    Returns:
        the changes, in the order of the images.

    Raises:
        DataError: the file is no COCO data set; a file exists, unless `overwrite`, or cannot be written.
    """
    if target.resolve() == source.resolve():
        raise DataError(f"{target}: is the file that is repaired; name another output, so that it can be compared")
    changes_csv = changes_csv or default_changes_csv(target)
    for path in (target, changes_csv):
        check_free(path, overwrite)
    repair = _FileRepair(source, rules, skipped)
    changes: list[Change] = []
    write_coco(
        target,
        images=repair.image_rows,
        annotations=repair.annotations(changes),
        categories=repair.other["categories"],
        info={**repair.info, "image_root": image_root_for(repair.root, target.parent), "repair": rules.to_dict()},
        further={key: value for key, value in repair.other.items() if key not in _WRITTEN_APART},
        overwrite=overwrite,
    )
    write_changes(changes_csv, changes, overwrite=overwrite)
    return changes


def default_changes_csv(target: Path) -> Path:
    """Return where the changes of a repaired file are listed: clean.json -> clean_repairs.csv."""
    return target.with_name(target.name.removesuffix(".gz").removesuffix(".json") + "_repairs.csv")


class _FileRepair:
    """A COCO file as it is repaired, image by image."""

    def __init__(self, source: Path, rules: RepairRules, skipped: list[str] | None) -> None:
        self.rules = rules
        self.info, self.images, categories, self.table = index_coco(source, skipped, keep_empty=True)
        self.other = scan_object(read_json_text(source), "annotations", lambda *_: None, source)
        rows = {row["id"]: row for row in self.other["images"] if isinstance(row, dict) and "id" in row}
        self.image_rows = [rows[image.image_id] for image in self.images]
        self.category_ids = [category.id for category in categories]
        self.class_names = [category.name for category in categories]
        self.root = source.parent / str(self.info.get("image_root") or "")
        self.next_id = _highest_id(self.table) + 1
        self._hint()

    def annotations(self, changes: list[Change]) -> Iterator[dict[str, Any]]:
        """Yield the annotations after repair; what was done is added to `changes`."""
        for index in tqdm(range(len(self.images)), desc="repairing", unit="image"):
            rows = self.table.decode(index)
            crowd = self.table.crowd[self.table.rows(index)]
            objects = np.flatnonzero(~crowd)
            repaired = self._repair(index, rows, objects)
            changes += repaired.changes
            for number in np.flatnonzero(crowd):
                yield rows[number]
            yield from self._rewrite(index, [rows[number] for number in objects], repaired)

    def _repair(self, index: int, rows: list[dict[str, Any]], objects: np.ndarray) -> RepairedMasks:
        image = self.images[index]
        kind = image.metadata.get(self.rules.kind_field) if self.rules.kind_field else None
        masks = ImageMasks(
            file_name=image.file_name,
            rles=[to_rle(rows[number].get("segmentation"), image.height, image.width) for number in objects],
            classes=self.table.classes[self.table.rows(index)][objects].astype(np.int64),
            names=[rows[number].get("id", f"number {number + 1}") for number in objects],
            class_names=self.class_names,
            allowed=allowed_classes(kind, self.class_names, self.rules) if kind is not None else None,
        )
        return repair_image(masks, self.rules)

    def _rewrite(self, index: int, rows: list[dict[str, Any]], repaired: RepairedMasks) -> Iterator[dict[str, Any]]:
        category_ids = [self.category_ids[class_index] for class_index in repaired.classes]
        changed = np.flatnonzero(repaired.changed)
        image_id = self.images[index].image_id
        new_rows = annotations_of(
            [repaired.rles[number] for number in changed],
            [category_ids[number] for number in changed],
            image_id=image_id,
            first_id=0,
        )
        seen: set[int] = set()
        for number, origin in enumerate(repaired.origins.tolist()):
            row = dict(rows[origin])
            for absorbed in repaired.absorbed[number]:
                row.update({key: value for key, value in rows[absorbed].items() if key not in row})
            row["category_id"] = category_ids[number]
            if repaired.changed[number]:
                new = next(new_rows)
                row.update({key: new[key] for key in ("bbox", "area", "segmentation")})
            if origin in seen:
                row["id"], self.next_id = self.next_id, self.next_id + 1
            seen.add(origin)
            yield row

    def _hint(self) -> None:
        if self.rules.one_class_per_image or self.rules.kind_field or len(self.class_names) < 2:
            return
        counts = np.zeros((len(self.images), len(self.class_names)), dtype=np.int64)
        image = np.repeat(np.arange(len(self.images)), np.diff(self.table.offsets))
        objects = ~self.table.crowd[: len(image)]
        np.add.at(counts, (image[objects], self.table.classes[: len(image)][objects]), 1)
        hint = one_class_hint(counts)
        if hint:
            logger.info("%s", hint)


def _highest_id(table: AnnotationTable) -> int:
    """Return the highest id of an annotation that is a number, 0 where there is none."""
    highest = 0
    for index in range(len(table.offsets) - 1):
        ids = [row.get("id") for row in table.decode(index)]
        highest = max([highest, *(value for value in ids if type(value) is int)])
    return highest
