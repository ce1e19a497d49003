"""Predictions files brought to the images of a ground truth, as members to fuse or as parts of one set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detseg.errors import DataError, list_problems
from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.fusion.members import Member
from detseg.structures import Predictions
from detseg.structures.predictions_parsing import ImageEntry

FOLD = "fold"
# Fewer folds than this cannot be left out.
FEWEST = 2


def read_parts(
    members: Mapping[str, Member], images: Sequence[ImageEntry], missing: str = "refuse"
) -> list[Predictions | None]:
    """Return the predictions of all images from files that share them out, such as those of folds.

    None for an image that no file has, where missing is "leave-out"; "empty": nothing was found in it. Raises DataError
    for images of several files, and for missing ones where that is refused.
    """
    result: list[Predictions | None] = []
    absent, doubled = [], []
    for image in images:
        answers = {name: answer for name, member in members.items() if (answer := member.read(image)) is not None}
        if len(answers) > 1:
            doubled.append(f"{_name(image)}: is in {' and '.join(answers)}")
        if not answers:
            absent.append(_name(image))
        nothing = None if missing == "leave-out" else _empty(image)
        result.append(next(iter(answers.values()), nothing))
    if doubled:
        raise DataError(
            f"images are in several files:\n{list_problems(doubled)}\ngive --fusion FILE to fuse them, or one file"
        )
    if absent and missing == "refuse":
        raise DataError(_absent(absent))
    return result


def read_members(
    members: Mapping[str, Member], images: Sequence[ImageEntry], missing: str = "refuse"
) -> list[list[Predictions | None]]:
    """Return, for every member, the predictions of all images; `missing` as in `read_parts`, for an image of any."""
    absent = [f"{name}: lacks {_name(image)}" for name, member in members.items() for image in member.missing(images)]
    if absent and missing == "refuse":
        raise DataError(_absent(absent))
    answers = [[member.read(image) for member in members.values()] for image in images]
    if missing == "leave-out":
        answers = [[None] * len(row) if None in row else row for row in answers]
    filled = [
        [_empty(image) if answer is None and missing != "leave-out" else answer for answer in row]
        for image, row in zip(images, answers, strict=True)
    ]
    return [list(column) for column in zip(*filled, strict=True)]


def _absent(names: Sequence[str]) -> str:
    return (
        f"images of the ground truth are not in the predictions:\n{list_problems(list(names))}\ngive --missing "
        "leave-out to tune on the others, or --missing empty where nothing was found in them"
    )


def _name(image: ImageEntry) -> str:
    return f"image {image.file_name or image.image_id}"


def _empty(image: ImageEntry) -> Predictions:
    return Predictions.empty(image.image_id, image.file_name, image.height, image.width)


def folds_of(images: Sequence[ImageTruth], predictions: Sequence[Predictions], field: str | None) -> list[Any] | None:
    """Return the fold of every image, or None where they are not known.

    field: an image-level field of the ground truth whose values are the folds; None looks for the fold that the
    predictions come from, then for the field `fold`. Raises DataError where images lack the field.
    """
    if field is None:
        for values in (
            [image.provenance.get(FOLD) for image in predictions],
            [image.metadata.get(FOLD) for image in images],
        ):
            if None not in values and len(set(map(str, values))) >= FEWEST:
                return values
        return None
    lacking = [image.file_name for image in images if image.metadata.get(field) is None]
    if lacking:
        raise DataError(f"ground truth: {len(lacking)} images lack the field {field!r}, such as {lacking[0]}")
    return [image.metadata[field] for image in images]


def classes_to_tune(truth: GroundTruth, predictions: Sequence[Predictions]) -> tuple[list[str], list[str]]:
    """Return the names of the classes that have objects and predictions, and of those that lack one of both."""
    number = len(truth.class_names)
    objects, found = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
    for image in truth.images:
        objects += np.bincount(image.classes[~image.crowd], minlength=number)
    for image in predictions:
        found += np.bincount(image.classes, minlength=number)
    good = (objects > 0) & (found > 0)
    names = np.array(truth.class_names, dtype=object)
    return names[good].tolist(), names[~good].tolist()
