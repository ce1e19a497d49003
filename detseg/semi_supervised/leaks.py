"""Prevent leaks from validation images into pseudo-labels.

- The models that predict must never have seen a validation image. A Predictions file of detseg records the training
  images of its models (`info.trained_images`), a fused one those of all its inputs, and a checkpoint those of all
  earlier trainings and of the teachers whose pseudo-labels it was trained with. So the check does not depend on the
  names of folds, models and rounds.
- Unlabelled images that are near-duplicates of a validation image, or come from the same well or plate, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.coco.pairing import content_key
from detseg.curation.leaks import SIMILAR, find_similar, thumbnails_of
from detseg.data.trained_images import FIELD, TrainedImages
from detseg.errors import DataError, list_problems

_ALIKE = "near-duplicate of a validation image"


@dataclass(frozen=True)
class LeakRules:
    """similar: correlation above which two images are near-duplicates, 0: images are not compared. apart: image fields
    (plate, well) whose combination must differ from that of all validation images; None: those that the folds of the
    labelled images were grouped by.
    """

    similar: float = SIMILAR
    apart: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.similar <= 1:
            raise DataError(f"similar is {self.similar}; expected a correlation from 0 to 1")


class Reason(NamedTuple):
    """Why an image is left out: the kind of reason, and the details."""

    kind: str
    text: str


def seen_by(info: Mapping[str, Any], source: str) -> TrainedImages | None:
    """Return the training images of the models behind a Predictions file; None if one has no record of them.

    info: of the file. source: its name, for messages.
    """
    inputs = info.get("fused", {}).get("inputs") if isinstance(info.get("fused"), dict) else None
    if not inputs:
        return TrainedImages.from_plain(info.get(FIELD))
    seen = None
    for one in inputs:
        found = seen_by(one.get("info", {}), source) if isinstance(one, dict) else None
        if found is None:
            return None
        seen = found | seen
    return seen


def refuse_leaking_models(infos: Mapping[str, Mapping[str, Any]], validation: CocoDataset) -> TrainedImages:
    """Return all training images of the models behind Predictions files, given as name -> info.

    Raises DataError if one has seen an image of `validation`, or has no record of its training images.
    """
    keys = {content_key(record): record.file_name for record in validation.images}
    seen = None
    for name, info in infos.items():
        own = seen_by(info, name)
        if own is None:
            raise DataError(
                f"{name} does not record the training images of its models, which may include validation images "
                f"({validation.name}); predict again with runs of detseg (predict, fuse), which record them"
            )
        leaking = [keys[key] for key in own.keys.tolist() if key in keys]
        if leaking:
            fold = f" (fold {info['fold']})" if "fold" in info else ""
            raise DataError(
                f"{name}{fold}: its models were trained with {len(leaking)} of the {len(validation)} validation "
                "images; their pseudo-labels would make the score too high. Predict with the model of the fold of "
                f"these images (predict --run FOLDS/foldK):\n{list_problems(leaking)}"
            )
        seen = own | seen
    return seen


def leaking_images(images: CocoDataset, validation: CocoDataset, rules: LeakRules) -> dict[int, Reason]:
    """Return index -> reason for images that show the same as a validation image.

    Raises DataError if an image cannot be read, or no image has the fields of `rules.apart`.
    """
    apart = rules.apart
    if apart is None:
        split = validation.info.get("split")
        apart = split.get("group_by", []) if isinstance(split, dict) else []
    found = _same_group(images.images, validation, tuple(apart)) if apart else {}
    if rules.similar:
        rest = [index for index in range(len(images)) if index not in found]
        reads = [partial(validation.read_image, index) for index in range(len(validation))]
        reads += [partial(images.read_image, index) for index in rest]
        for pair in find_similar(thumbnails_of(reads), rules.similar):
            if pair.first < len(validation) <= pair.second:
                name = validation.images[pair.first].file_name
                turned = ", rotated or mirrored" if pair.turned else ""
                text = f"near-duplicate of the validation image {name} ({pair.similarity:.3f}{turned})"
                found.setdefault(rest[pair.second - len(validation)], Reason(_ALIKE, text))
    return found


def _same_group(images: Sequence[ImageRecord], validation: CocoDataset, fields: tuple[str, ...]) -> dict[int, Reason]:
    """Return index -> reason for images whose fields equal those of a validation image, or are unknown."""

    def value(record: ImageRecord) -> tuple[str, ...] | None:
        values = [record.metadata.get(field) for field in fields]
        return None if any(one in (None, "") for one in values) else tuple(map(str, values))

    words = " and ".join(fields)
    taken = {value(record) for record in validation.images}
    if None in taken or all(value(record) is None for record in images):
        where = validation.name if None in taken else "the unlabelled images"
        raise DataError(
            f"{where}: images have no {words}, by which validation images are kept apart; add it as an image field, or "
            "give other fields, or none"
        )
    found = {}
    for index, record in enumerate(images):
        own = value(record)
        if own is None:
            text = f"its {words} is unknown, and may be that of validation images"
            found[index] = Reason(f"{words} not known", text)
        elif own in taken:
            text = f"from the {words} {' '.join(own)}, like validation images"
            found[index] = Reason(f"same {words} as a validation image", text)
    return found
