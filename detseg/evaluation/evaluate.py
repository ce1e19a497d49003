"""Scores of predictions, for training, the command line and Python callers.

`evaluate` scores predictions as they are. Object AP has no ranking by score, so it needs predictions above a score
threshold and without overlaps; `detseg.tuning.thresholds` chooses the threshold first.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.coco.pairing import ImageIndex
from detseg.errors import DataError
from detseg.evaluation.coco_ap import ALL, SCORES, coco_ap
from detseg.evaluation.ground_truth import GroundTruth, as_ground_truth
from detseg.evaluation.object_ap import ObjectCounts, count_objects, summarize_objects
from detseg.files.table import write_csv
from detseg.structures import Predictions

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset

OBJECT_SCORES = ("object_ap", "object_ap50", "object_ap75", "mean_f1", "precision", "recall")


def evaluate(
    ground_truth: GroundTruth | CocoDataset,
    predictions: Iterable[Predictions],
    *,
    max_detections: int = ALL,
    group_by: str | None = None,
    coco: bool = True,
) -> dict[str, Any]:
    """Score predictions against the truth of a data set.

    predictions: at most one Predictions per image, in any order; images without one count as predicted empty.
    max_detections: per image and class, only for COCO AP; ALL is no limit. group_by: an image-level field of the COCO
    file, or, if that lacks it, of the predictions; adds `per_group`, the object scores of the images with each of its
    values. coco: False skips COCO AP (its keys are None).

    Returns values for JSON (None if a score is undefined): object_ap, object_ap50, object_ap75, mean_f1, precision,
    recall, coco_bbox_ap, coco_segm_ap (and the other SCORES of coco_ap), per_class (by name, the same keys and
    true_positives, false_positives, false_negatives at IoU > 0.5), foreground_iou, count_error, relative_count_error,
    images, objects, predictions. Object scores, foreground_iou and count errors are None if predictions have no masks.

    Raises DataError for predictions of an unknown image, of another size or class count, and for duplicate images.
    """
    truth = as_ground_truth(ground_truth)
    aligned = align(truth, predictions)
    counts = count_all(truth, aligned)
    return metrics_of(truth, aligned, counts, max_detections=max_detections, group_by=group_by, coco=coco)


def align(ground_truth: GroundTruth, predictions: Iterable[Predictions]) -> list[Predictions]:
    """Return one Predictions for every image of the truth, in its order, with its id and name; empty if there is none.

    Images are matched by `detseg.coco.pairing`: by name, or by id if there are no names.

    Raises DataError if the predictions do not belong to these images and classes.
    """
    predictions = list(predictions)
    paired = ImageIndex(ground_truth.images, "the ground truth").pair(predictions, "the predictions")
    found: dict[int | str, Predictions] = {}
    for image, truth in zip(predictions, paired, strict=True):
        if len(image) and not 0 <= image.classes.min() <= image.classes.max() < len(ground_truth.class_names):
            raise DataError(
                f"predictions of image {image.file_name or image.image_id!r}: class {int(image.classes.max())} "
                f"(counted from 0), but the ground truth has {len(ground_truth.class_names)} classes "
                f"({', '.join(ground_truth.class_names)})"
            )
        found[truth.image_id] = dataclasses.replace(image, image_id=truth.image_id, file_name=truth.file_name)
    masks = all(image.rles is not None or len(image) == 0 for image in predictions)
    aligned = []
    for image in ground_truth.images:
        result = found.get(image.image_id)
        if result is None or len(result) == 0:
            metadata = {} if result is None else result.metadata
            result = Predictions.empty(image.image_id, image.file_name, image.height, image.width, masks=masks)
            result.metadata = metadata
        aligned.append(result)
    return aligned


def count_all(ground_truth: GroundTruth, aligned: Sequence[Predictions]) -> list[ObjectCounts] | None:
    """Return the hits and misses of every image, or None if any predictions have no masks."""
    if any(image.rles is None for image in aligned):
        return None
    number = len(ground_truth.class_names)
    return [count_objects(truth, image, number) for truth, image in zip(ground_truth.images, aligned, strict=True)]


def metrics_of(
    ground_truth: GroundTruth,
    aligned: Sequence[Predictions],
    counts: Sequence[ObjectCounts] | None,
    *,
    max_detections: int = ALL,
    group_by: str | None = None,
    coco: bool = True,
) -> dict[str, Any]:
    """Return the metrics of `evaluate` from the results of `align` and `count_all`."""
    names = ground_truth.class_names
    if coco:
        coco_rows = coco_ap(ground_truth.images, aligned, len(names), max_detections)
    else:
        keys = [f"coco_{kind}_{name}" for kind in ("bbox", "segm") for name in SCORES]
        coco_rows = [dict.fromkeys(keys) for _ in range(1 + len(names))]
    rows = []
    for row in range(1 + len(names)):
        if counts is None:
            objects = _counts_without_masks(ground_truth, aligned, row)
        else:
            objects = summarize_objects(counts, row)
        scores = {key: objects[key] for key in OBJECT_SCORES}
        rows.append({**scores, **coco_rows[row], **{key: objects[key] for key in objects if key not in scores}})
    metrics: dict[str, Any] = {**rows[0], "per_class": dict(zip(names, rows[1:], strict=True))}
    metrics["coco_max_detections"] = int(max_detections)
    if group_by:
        metrics["per_group"] = _per_group(ground_truth, aligned, counts, group_by)
    return metrics


def _counts_without_masks(ground_truth: GroundTruth, aligned: Sequence[Predictions], row: int) -> dict[str, Any]:
    """Return the keys of `summarize_objects` for predictions without masks: counts, but no object scores."""
    summary: dict[str, Any] = summarize_objects([], row)
    summary.update(true_positives=None, false_positives=None, false_negatives=None)
    objects = [image.classes[~image.crowd] for image in ground_truth.images]
    classes = [image.classes for image in aligned]
    if row > 0:
        objects = [values[values == row - 1] for values in objects]
        classes = [values[values == row - 1] for values in classes]
    summary["images"] = sum(row == 0 or len(a) + len(b) > 0 for a, b in zip(objects, classes, strict=True))
    summary["objects"] = sum(len(values) for values in objects)
    summary["predictions"] = sum(len(values) for values in classes)
    return summary


def _per_group(
    ground_truth: GroundTruth, aligned: Sequence[Predictions], counts: Sequence[ObjectCounts] | None, field: str
) -> dict[str, Any]:
    """Return the object scores of the images with each value of an image-level field."""
    fields = _image_fields(ground_truth, aligned)
    known = sorted({name for of_image in fields for name in of_image})
    if field not in known:
        raise DataError(
            f"no image of the ground truth or of the predictions has the field {field!r}; "
            + (f"their fields are {', '.join(known)}" if known else "they have no further fields")
        )
    groups: dict[str, list[ObjectCounts]] = {}
    for of_image, image_counts in zip(fields, counts or [], strict=bool(counts)):
        groups.setdefault(str(of_image.get(field)), []).append(image_counts)
    return {name: summarize_objects(groups[name]) for name in sorted(groups)}


def _image_fields(ground_truth: GroundTruth, aligned: Sequence[Predictions]) -> list[dict[str, Any]]:
    """Return the image-level fields of every image; those of the ground truth take precedence over the predictions'."""
    return [{**image.metadata, **truth.metadata} for image, truth in zip(aligned, ground_truth.images, strict=True)]


def image_table(
    ground_truth: GroundTruth, aligned: Sequence[Predictions], counts: Sequence[ObjectCounts]
) -> list[dict[str, Any]]:
    """Return one row of scores per image. aligned: from `align`. counts: from `count_all`."""
    rows = []
    fields = _image_fields(ground_truth, aligned)
    for image, of_image, image_counts in zip(ground_truth.images, fields, counts, strict=True):
        scores = summarize_objects([image_counts])
        del scores["images"]
        row = {"image_id": image.image_id, "file_name": image.file_name, **scores}
        row.update({key: value for key, value in of_image.items() if np.isscalar(value) and key not in row})
        rows.append(row)
    return rows


def write_image_table(path: str | os.PathLike[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of `image_table` as CSV (UTF-8, comma, a header; undefined scores are empty)."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = ([row.get(column, "") for column in columns] for row in rows)
    write_csv(Path(path), [columns, *cells], "the table of images")
