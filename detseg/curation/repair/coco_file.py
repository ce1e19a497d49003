"""Repairing a COCO file: what no rule touches is written as it was, further fields included."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from detseg.coco.dataset import CocoDataset
from detseg.coco.masks import to_rle
from detseg.coco.writing import annotations_of
from detseg.curation.repair.image import ImageMasks, RepairedMasks, repair_image
from detseg.curation.repair.masks import allowed_classes, check_kinds, one_class_hint
from detseg.curation.repair.rules import Change, RepairRules, write_changes
from detseg.errors import DataError
from detseg.files.atomic import check_free

logger = logging.getLogger(__name__)


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
    repair = _FileRepair(CocoDataset.load(source, skipped=skipped, keep_empty=True), rules)
    changes: list[Change] = []
    repair.dataset.save(
        target, annotations=repair.annotations(changes), info={"repair": rules.to_dict()}, overwrite=overwrite
    )
    write_changes(changes_csv, changes, overwrite=overwrite)
    return changes


def default_changes_csv(target: Path) -> Path:
    """Return where the changes of a repaired file are listed: clean.json -> clean_repairs.csv."""
    return target.with_name(target.name.removesuffix(".gz").removesuffix(".json") + "_repairs.csv")


class _FileRepair:
    """A COCO file as it is repaired, image by image."""

    def __init__(self, dataset: CocoDataset, rules: RepairRules) -> None:
        self.rules = rules
        self.dataset = dataset
        self.category_ids = [category.id for category in dataset.categories]
        # The highest id of an annotation that is a number.
        ids = (row.get("id") for row in dataset.raw_annotations())
        self.next_id = max((value for value in ids if type(value) is int), default=0) + 1
        check_kinds([image.metadata.get(rules.kind_field) for image in dataset.images], rules)
        if not rules.one_class_per_image and not rules.kind_field and len(self.category_ids) > 1:
            hint = one_class_hint(dataset.objects_per_image())
            if hint:
                logger.info("%s", hint)

    def annotations(self, changes: list[Change]) -> Iterator[dict[str, Any]]:
        """Yield the annotations after repair; what was done is added to `changes`."""
        for index in tqdm(range(len(self.dataset)), desc="repairing", unit="image"):
            rows = self.dataset.table.decode(index)
            crowd = self.dataset.table.crowd[self.dataset.table.rows(index)]
            objects = np.flatnonzero(~crowd)
            repaired = self._repair(index, rows, objects)
            changes += repaired.changes
            for number in np.flatnonzero(crowd):
                yield rows[number]
            yield from self._rewrite(index, [rows[number] for number in objects], repaired)

    def _repair(self, index: int, rows: list[dict[str, Any]], objects: np.ndarray) -> RepairedMasks:
        image = self.dataset.images[index]
        kind = image.metadata.get(self.rules.kind_field) if self.rules.kind_field else None
        masks = ImageMasks(
            file_name=image.file_name,
            rles=[to_rle(rows[number].get("segmentation"), image.height, image.width) for number in objects],
            classes=self.dataset.table.classes[self.dataset.table.rows(index)][objects].astype(np.int64),
            names=[rows[number].get("id", f"number {number + 1}") for number in objects],
            class_names=self.dataset.class_names,
            allowed=allowed_classes(kind, self.dataset.class_names, self.rules) if kind is not None else None,
        )
        return repair_image(masks, self.rules)

    def _rewrite(self, index: int, rows: list[dict[str, Any]], repaired: RepairedMasks) -> Iterator[dict[str, Any]]:
        category_ids = [self.category_ids[class_index] for class_index in repaired.classes]
        changed = np.flatnonzero(repaired.changed)
        image_id = self.dataset.images[index].image_id
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
