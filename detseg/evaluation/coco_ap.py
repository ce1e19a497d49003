"""COCO box and mask AP by faster-coco-eval (or, slower, pycocotools), without a limit on detections.

COCO's own evaluation keeps 100 detections per image, which is wrong for images with hundreds of cells: here all count,
unless a limit is given. The numbers are those of pycocotools at the same limit. Boxes of the truth are the tight boxes
of its masks.

Symbols: K classes, T = 10 IoU thresholds 0.50:0.05:0.95, R = 101 recalls 0:0.01:1, A area ranges.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

from detseg.evaluation.ground_truth import ImageTruth
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import to_xywh

ALL = 0
logger = logging.getLogger(__name__)

# In pixels, bounds inclusive, as COCO defines them. These ranges are meant for photographs of 640 x 480; most cells are
# small or medium in them.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
# The scores that `coco_ap` returns for boxes and for masks, without their prefix.
SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def coco_annotations(
    truths: Sequence[ImageTruth], predictions: Sequence[Predictions], num_classes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return truth and predictions as two COCO dictionaries with integer ids from 1.

    truths and predictions: the same images in the same order. COCO's tools compare ids as numbers and treat 0 as none,
    so images, classes and annotations are renumbered. A box without mask gets no segmentation. The area of an object of
    the truth is that of its mask, that of a prediction is of its box.
    """
    images = [
        {"id": number, "height": truth.height, "width": truth.width, "file_name": truth.file_name}
        for number, truth in enumerate(truths, start=1)
    ]
    categories = [{"id": number + 1, "name": str(number)} for number in range(num_classes)]
    true_rows: list[dict[str, Any]] = []
    found_rows: list[dict[str, Any]] = []
    for number, (truth, found) in enumerate(zip(truths, predictions, strict=True), start=1):
        crowd = truth.crowd.astype(int).tolist()
        boxes = rle_codec.bounding_boxes(truth.rles)
        first = len(true_rows)
        _add_rows(true_rows, number, boxes, truth.classes, truth.rles, "iscrowd", crowd)
        for row, area in zip(true_rows[first:], rle_codec.area(truth.rles).tolist(), strict=True):
            row["area"] = area
        _add_rows(found_rows, number, found.boxes, found.classes, found.rles, "score", found.scores.tolist())
    shared = {"images": images, "categories": categories}
    return {**shared, "annotations": true_rows}, {**shared, "annotations": found_rows}


def _add_rows(
    rows: list[dict[str, Any]],
    image: int,
    boxes: np.ndarray,
    classes: np.ndarray,
    rles: Sequence[dict[str, Any]] | None,
    key: str,
    values: Sequence[float],
) -> None:
    """Append one COCO annotation per object, with `values` under `key`, in which truth and predictions differ."""
    for index, (box, category, value) in enumerate(
        zip(to_xywh(boxes).tolist(), (classes + 1).tolist(), values, strict=True)
    ):
        row = {"id": len(rows) + 1, "image_id": image, "category_id": category, "bbox": box, key: value}
        row["area"] = box[2] * box[3]
        if rles is not None:
            row["segmentation"] = rles[index]
        rows.append(row)


def coco_precision(
    truth: dict[str, Any], predictions: dict[str, Any], kind: str, max_detections: int = ALL
) -> np.ndarray:
    """Return COCO's precision (T, R, K, A) float64, A as AREAS; -1 for a class without objects in the area range.

    truth, predictions: from `coco_annotations`. kind: "bbox" or "segm"; the areas of predictions are those of their
    boxes or masks. max_detections: per image and class, by descending score; ALL is no limit.
    """
    precision = np.full((10, 101, len(truth["categories"]), len(AREAS)), -1.0)
    areas = np.array([row["area"] for row in truth["annotations"] if not row["iscrowd"]])
    # Skip ranges without objects, for which there is no score: each range takes time.
    occur = [bool(((low <= areas) & (areas <= high)).any()) for low, high in AREAS.values()]
    if not any(occur):
        return precision
    if kind == "segm":
        rows = predictions["annotations"]
        areas = rle_codec.area([row["segmentation"] for row in rows]).tolist()
        rows = [{**row, "area": area} for row, area in zip(rows, areas, strict=True)]
        predictions = {**predictions, "annotations": rows}
    with redirect_stdout(StringIO()):  # pycocotools prints every step
        evaluation = _evaluation(truth, predictions, kind)
        evaluation.params.maxDets = [int(max_detections) or max(len(predictions["annotations"]), 1)]
        evaluation.params.areaRng = [list(limits) for limits in itertools.compress(AREAS.values(), occur)]
        evaluation.params.areaRngLbl = list(itertools.compress(AREAS, occur))
        evaluation.evaluate()
        evaluation.accumulate()
    found = np.asarray(evaluation.eval["precision"], dtype=np.float64)
    precision[..., occur] = found.reshape(*precision.shape[:3], sum(occur))
    return precision


def _evaluation(truth: dict[str, Any], predictions: dict[str, Any], kind: str) -> Any:
    """Return COCO's evaluation object, before it is run."""
    options: dict[str, Any] = {}
    try:
        from faster_coco_eval.core.coco import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster as Evaluation

        options["print_function"] = logger.debug  # it logs every step
    except ImportError:  # slower, with the same numbers
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    sides = []
    for dataset in (truth, predictions):
        side = COCO()
        side.dataset = dataset
        side.createIndex()
        sides.append(side)
    return Evaluation(*sides, iouType=kind, **options)


def average_precision(precision: np.ndarray) -> dict[str, float | None]:
    """Return SCORES of a precision array (T, R, K, A); None if no class has an object in the area range."""
    every, *by_area = np.moveaxis(precision, -1, 0)
    return {
        name: float(values[values > -1].mean()) if (values > -1).any() else None
        for name, values in zip(SCORES, (every, every[0], every[5], *by_area), strict=True)
    }


def coco_ap(
    truths: Sequence[ImageTruth],
    predictions: Sequence[Predictions],
    num_classes: int,
    max_detections: int = ALL,
) -> list[dict[str, float | None]]:
    """Return COCO AP as 1 + K entries: the mean over classes, then each class.

    Keys: SCORES with the prefixes coco_bbox_ and coco_segm_. Mask scores are None if predictions have no masks; a class
    without an object in the truth has only None.
    """
    truth, found = coco_annotations(truths, predictions, num_classes)
    most = max((int(np.bincount(image.classes).max()) for image in predictions if len(image)), default=0)
    if 0 < max_detections < most:
        logger.warning(
            "COCO AP counts only the best %d detections per image and class (max_detections); "
            "an image has %d of one class",
            max_detections,
            most,
        )
    results: list[dict[str, float | None]] = [{} for _ in range(1 + num_classes)]
    for kind in ("bbox", "segm"):
        has_masks = all(image.rles is not None for image in predictions)
        if kind == "bbox" or has_masks:
            precision = coco_precision(truth, found, kind, max_detections)
        else:
            precision = np.full((10, 101, num_classes, len(AREAS)), -1.0)
        for row, result in enumerate(results):
            values = precision if row == 0 else precision[:, :, row - 1 : row, :]
            result.update({f"coco_{kind}_{name}": value for name, value in average_precision(values).items()})
    return results
