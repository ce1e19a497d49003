"""Predictions as annotations: pseudo-labels image by image, with the decision on every object.

In their COCO file a sure object is an annotation like any other; an uncertain one is a region to be ignored (`iscrowd`
1), neither object nor background. Both have `score`, `quality` and `agreement` if known, `soft_mask` (as in a
Predictions file, and with `at`, the x and y of its upper left pixel), and the `decision` with `why`. Refused objects
are not annotations: they are listed in `dropped`, without their masks.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.json_files import annotations_of
from detseg.coco.predictions_file import read_predictions
from detseg.coco.predictions_parsing import decimals, pack_soft_mask
from detseg.coco.records import AnnotationTable, Category, ImageRecord
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import to_xywh
from detseg.structures.predictions import Predictions, soft_mask_windows

DROPPED, IGNORED, KEPT = 0, 1, 2
DECISIONS = ("dropped", "ignored", "kept")
# Image field of such a file, and its value: the origin of the annotations.
SOURCE_FIELD, PSEUDO = "label_source", "pseudo"


def label_rows(
    predictions: Predictions,
    decisions: np.ndarray,
    category_ids: Sequence[int],
    *,
    first_id: int,
    facts: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the annotations of one image, and the rows for dropped objects.

    decisions: (N,) of DROPPED, IGNORED, KEPT; masks without pixels are always dropped. category_ids: of the classes.
    facts: additional fields of the N objects; None and empty strings are left out.

    Raises DataError for predictions without masks.
    """
    if predictions.rles is None and len(predictions):
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} have no masks, which pseudo-labels "
            "need"
        )
    decisions = np.where(rle_codec.area(predictions.rles or []) > 0, decisions, DROPPED)
    quality = [None if np.isnan(value) else value for value in decimals(predictions.quality)]
    fields = {"score": decimals(predictions.scores), "quality": quality, **(facts or {})}
    ids = [int(category_ids[index]) for index in predictions.classes.tolist()]
    about = [
        {
            **{name: values[index] for name, values in fields.items() if values[index] not in (None, "")},
            "decision": DECISIONS[decision],
        }
        for index, decision in enumerate(decisions.tolist())
    ]
    labelled, refused = np.flatnonzero(decisions != DROPPED), np.flatnonzero(decisions == DROPPED)
    rows = annotations_of(
        [predictions.rles[index] for index in labelled],
        [ids[index] for index in labelled],
        image_id=predictions.image_id,
        first_id=first_id,
        crowd=decisions[labelled] == IGNORED,
    )
    annotations = [{**row, **about[index]} for row, index in zip(rows, labelled.tolist(), strict=True)]
    if predictions.soft_masks is not None:
        windows = soft_mask_windows(predictions.boxes, predictions.height, predictions.width).tolist()
        for row, index in zip(annotations, labelled.tolist(), strict=True):
            row["soft_mask"] = {**pack_soft_mask(predictions.soft_masks[index]), "at": windows[index][:2]}
    boxes = to_xywh(predictions.boxes).round(1).tolist()
    dropped = [
        {"image_id": predictions.image_id, "category_id": ids[index], "bbox": boxes[index], **about[index]}
        for index in refused.tolist()
    ]
    return annotations, dropped


def labels_of_file(
    path: str | os.PathLike[str],
    sure: float | Mapping[str, float],
    ignore_from: float | Mapping[str, float],
    image_root: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Return the fields of a CocoDataset; see `CocoDataset.from_predictions`."""
    file = read_predictions(path)
    categories = [
        Category(category["id"], str(category["name"]), position=number)
        for number, category in enumerate(file.categories)
    ]
    names = [category.name for category in categories]
    low, high = (_per_class(path, value, names) for value in (ignore_from, sure))
    if not (low <= high).all():
        raise DataError(f"{path}: ignore_from is {ignore_from}, above sure = {sure}; expected ignore_from <= sure")
    root = Path(path).parent / (image_root or "")
    images: list[ImageRecord] = []
    dropped: list[dict[str, Any]] = []

    def rows() -> Iterator[list[dict[str, Any]]]:
        first_id = 1
        for image in file:
            decisions = np.where(image.scores >= high[image.classes], KEPT, IGNORED)
            decisions[image.scores < low[image.classes]] = DROPPED
            annotations, refused = label_rows(
                image, decisions, [category.id for category in categories], first_id=first_id
            )
            first_id += len(annotations)
            dropped.extend(refused)
            if not image.file_name:
                raise DataError(f"{path}: image {image.image_id!r} has no file name, so its file cannot be found")
            record = ImageRecord(image.image_id, image.file_name, root / image.file_name, 0, 0, image.metadata)
            images.append(pseudo_image(record, image.height, image.width))
            yield annotations

    table = AnnotationTable.from_rows(rows(), {category.id: index for index, category in enumerate(categories)})
    about = {"predictions": str(path), "sure": sure, "ignore_from": ignore_from}
    return {
        "images": images,
        "categories": categories,
        "table": table,
        "name": str(path),
        "info": {"description": "pseudo-labels", "pseudo_labels": about},
        "further": {"dropped": dropped},
    }


def pseudo_image(record: ImageRecord, height: int, width: int) -> ImageRecord:
    """Return an image record marked as having pseudo-labels, with its size."""
    metadata = {**record.metadata, SOURCE_FIELD: PSEUDO}
    return dataclasses.replace(record, height=height, width=width, metadata=metadata)


def _per_class(path: str | os.PathLike[str], value: float | Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """Return one value per class (K,) float64."""
    values = [value.get(name) for name in names] if isinstance(value, Mapping) else [value] * len(names)
    unknown = [name for name in value if name not in names] if isinstance(value, Mapping) else []
    legal = all(isinstance(one, (int, float)) and 0 <= one <= 1 for one in values)
    if unknown or not legal:
        raise DataError(
            f"{path}: the limits are {value}; expected a score from 0 to 1, or one for each of {', '.join(names)}"
        )
    return np.array(values, dtype=np.float64)
