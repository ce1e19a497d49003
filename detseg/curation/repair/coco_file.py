"""Repair a COCO file: whatever no rule changes is written as it was, including additional fields."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of
from detseg.coco.masks import to_rle
from detseg.curation.repair.image import ImageMasks, repair_image
from detseg.curation.repair.rules import Change, RepairRules, one_class_hint, write_changes
from detseg.errors import DataError
from detseg.files.atomic import check_free
from detseg.files.names import json_stem
from detseg.progress import ProgressBar

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

    Annotations that no rule changes (polygons too) and all additional fields of the file, its images, categories and
    annotations are kept. Changed masks become compressed RLEs with new area and bbox. A piece that is split off gets
    the fields of its annotation and a new id; merged masks get the fields of all, those of the larger take precedence.
    Crowd regions are not repaired. Annotations are written in the order of the images.

    Args:
        source, target: .json or .json.gz.
        changes_csv: path for the list of changes; None: TARGET without suffix, plus `_repairs.csv`.
        skipped: if given, bad images and annotations (except those without a mask) are skipped and listed in it.

    Returns:
        the changes, in the order of the images.

    Raises:
        DataError: the file is not a COCO data set; a file exists, unless `overwrite`, or cannot be written.
    """
    if target.resolve() == source.resolve():
        raise DataError(f"{target}: is the input file; give another output, so that the two can be compared")
    changes_csv = changes_csv or default_changes_csv(target)
    check_free(target, changes_csv, overwrite=overwrite)
    dataset = CocoDataset.load(source, skipped=skipped, keep_empty=True)
    rules.check_kinds(image.metadata.get(rules.kind_field) for image in dataset.images)
    if not rules.one_class_per_image and not rules.kind_field and len(dataset.categories) > 1:
        hint = one_class_hint(dataset.objects_per_image())
        if hint:
            logger.info("%s", hint)
    changes: list[Change] = []
    annotations = _repaired_annotations(dataset, rules, changes)
    dataset.save(target, annotations=annotations, info={"repair": rules.to_dict()}, overwrite=overwrite)
    write_changes(changes_csv, changes)
    return changes


def default_changes_csv(target: Path) -> Path:
    """Return the path for the changes of a repaired file: clean.json -> clean_repairs.csv."""
    return target.with_name(f"{json_stem(target.name)}_repairs.csv")


def _repaired_annotations(dataset: CocoDataset, rules: RepairRules, changes: list[Change]) -> Iterator[dict[str, Any]]:
    """Yield the annotations after repair, image by image; append the changes to `changes`."""
    # New ids start after the largest numeric annotation id.
    ids = (row.get("id") for row in dataset.raw_annotations())
    new_ids = itertools.count(max((value for value in ids if type(value) is int), default=0) + 1)
    table = dataset.table
    for index, image in enumerate(ProgressBar(dataset.images, desc="repairing", unit="image")):
        rows, crowd = table.decode(index), table.crowd[table.rows(index)]
        yield from itertools.compress(rows, crowd)
        objects = list(itertools.compress(rows, ~crowd))
        kind = image.metadata.get(rules.kind_field)
        repaired = repair_image(
            ImageMasks(
                file_name=image.file_name,
                rles=[to_rle(row.get("segmentation"), image.height, image.width) for row in objects],
                classes=table.classes[table.rows(index)][~crowd].astype(np.int64),
                names=[row.get("id", f"number {number + 1}") for number, row in enumerate(rows) if not crowd[number]],
                class_names=dataset.class_names,
                allowed=rules.allowed_classes(kind, dataset.class_names),
            ),
            rules,
        )
        changes += repaired.changes
        category_ids = [dataset.categories[class_index].id for class_index in repaired.classes]
        masks = annotations_of(repaired.rles, category_ids, image_id=image.image_id, first_id=0)
        seen: set[int] = set()
        for number, (origin, mask) in enumerate(zip(repaired.origins.tolist(), masks, strict=True)):
            row = dict(objects[origin])
            for absorbed in repaired.absorbed[number]:
                row |= {key: value for key, value in objects[absorbed].items() if key not in row}
            row["category_id"] = category_ids[number]
            if repaired.changed[number]:
                row |= {key: mask[key] for key in ("bbox", "area", "segmentation")}
            if origin in seen:
                row["id"] = next(new_ids)
            seen.add(origin)
            yield row
