"""Inputs of tuning: a ground truth, Predictions files matched to its images and classes, and folds of the images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import is_plain_list, read_predictions, with_classes_of
from detseg.coco.predictions_parsing import ImageEntry
from detseg.errors import DataError, list_problems
from detseg.evaluation.evaluate import align
from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.fusion.members import FileMember, common_categories, refuse_missing
from detseg.fusion.splits import FOLD, refuse_different_splits
from detseg.structures import Predictions
from detseg.structures.predictions import IN_TRAINING

logger = logging.getLogger(__name__)

# At least two folds are needed to leave one out.
FEWEST = 2


@dataclass(frozen=True)
class TuningInputs:
    """The truth of I images, the predictions of every member for them, and the file and info of every member.

    Without fusion, files that share out the images among them, such as one per fold, are a single member.
    """

    truth: GroundTruth
    members: list[list[Predictions]]
    files: list[dict[str, Any]]


def read_inputs(paths: Sequence[str], ground_truth: str, *, fused: bool, missing: str = "refuse") -> TuningInputs:
    """Read Predictions files and the COCO file of their ground truth.

    fused: every file is a member of a fusion and has all images; otherwise each image is in one of the files.
    missing: meaning of an image without predictions: "refuse", "empty" (nothing was found) or "leave-out".

    Raises:
        DataError: images are missing or in several files, classes do not fit, or there is no object at all.
    """
    dataset = CocoDataset.load(ground_truth)
    for path in dict.fromkeys(paths):
        dataset = with_classes_of(path, dataset)
    opened = {path: read_predictions(path, dataset if is_plain_list(path) else None) for path in dict.fromkeys(paths)}
    first = [{"id": item.id, "name": item.name} for item in dataset.categories]
    categories = common_categories(list(opened.values()), first, {})
    members = {path: FileMember(file, categories) for path, file in opened.items()}
    if fused:
        refuse_different_splits(opened)
    refuse_missing(members, [ImageEntry.of(image) for image in dataset.images], some=True)

    # Images with one name in two folders may share an id across files: an exact name match decides.
    names = {path: {entry.file_name for entry in file.images} for path, file in opened.items()}
    absent, doubled, used = [], [], []
    columns: list[list[Predictions]] = [[] for _ in (members if fused else "1")]
    for index, record in enumerate(dataset.images):
        image = ImageEntry.of(record)
        name = f"image {image.file_name or image.image_id}"
        named = [path for path in members if image.file_name and image.file_name in names[path]]
        asked = members if fused or not named else named
        found = {path: members[path].read(image) for path in asked}
        having = [path for path, predictions in found.items() if predictions is not None]
        if fused:
            row = list(found.values())
            absent += [f"{path}: lacks {name}" for path in found if path not in having]
        else:
            row = [found[having[0]] if having else None]
            if len(having) > 1:
                doubled.append(f"{name}: in {' and '.join(having)}")
            if not having:
                absent.append(name)
        if None in row and missing == "leave-out":
            continue
        empty = Predictions.empty(image.image_id, image.file_name, image.height, image.width)
        for column, predictions in zip(columns, row, strict=True):
            column.append(empty if predictions is None else predictions)
        used.append(index)
    if doubled:
        raise DataError(
            f"images are in several files:\n{list_problems(doubled)}\ngive --fusion FILE to fuse them, or one file"
        )
    if absent and missing == "refuse":
        having = [str(image.file_name or image.image_id) for file in opened.values() for image in file.images][:3]
        raise DataError(
            f"images of the ground truth are not in the predictions (these have {', '.join(having)}, ...):\n"
            f"{list_problems(absent)}\ngive --missing leave-out to tune on the others, or --missing empty if nothing "
            "was found in them"
        )
    whole = GroundTruth.from_coco(dataset)
    truth = GroundTruth(whole.class_names, [whole.images[index] for index in used])
    if not any(image.num_objects for image in truth.images):
        raise DataError(f"{ground_truth}: has no objects in {len(used)} images with predictions; nothing can be tuned")
    aligned = [align(truth, column) for column in columns]
    for column in columns:
        seen = [image.file_name for image in column if image.provenance.get(IN_TRAINING)]
        if seen:
            logger.warning(
                "%d of %d images were predicted by models that were trained with them (%s, ...): the chosen settings "
                "will not suit other images; tune on images that the models did not see, or on out-of-fold predictions",
                len(seen),
                len(column),
                seen[0],
            )
    return TuningInputs(truth, aligned, [{"file": path, "info": file.info} for path, file in opened.items()])


def folds_of(images: Sequence[ImageTruth], predictions: Sequence[Predictions], field: str | None) -> list[Any] | None:
    """Return the fold of every image, or None if they are not known.

    field: image-level field of the ground truth, or else of the predictions, with the folds. None: the fold in the
    provenance of the predictions, or else the field `fold`.

    Raises DataError if images lack the field.
    """
    fields = [{**own.metadata, **image.metadata} for own, image in zip(predictions, images, strict=True)]
    if field is None:
        for values in (
            [image.provenance.get(FOLD) for image in predictions],
            [of_image.get(FOLD) for of_image in fields],
        ):
            if None not in values and len(set(map(str, values))) >= FEWEST:
                return values
        return None
    lacking = [image.file_name for image, of_image in zip(images, fields, strict=True) if of_image.get(field) is None]
    if lacking:
        raise DataError(
            f"{len(lacking)} images lack the field {field!r} in the ground truth and the predictions, such as "
            f"{lacking[0]}"
        )
    return [of_image[field] for of_image in fields]


def classes_to_tune(truth: GroundTruth, predictions: Sequence[Predictions]) -> tuple[list[str], list[str]]:
    """Return the names of the classes with both objects and predictions, and of the others."""
    number = len(truth.class_names)
    objects, found = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
    for image in truth.images:
        objects += np.bincount(image.classes[~image.crowd], minlength=number)
    for image in predictions:
        found += np.bincount(image.classes, minlength=number)
    good = (objects > 0) & (found > 0)
    names = np.array(truth.class_names, dtype=object)
    return names[good].tolist(), names[~good].tolist()
