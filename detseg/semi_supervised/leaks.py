"""What keeps pseudo-labels from telling a model about the images that it is validated on.

- The models that predicted must never have seen a validation image. A Predictions file of detseg says which images its
  models were trained with (`info.trained_images`), a fused one says it of all that went into it, and a checkpoint says
  it of all trainings before and of the teachers whose pseudo-labels it learned from. So it is checked, whatever folds,
  models and rounds are called.
- Unlabelled images that are nearly the same as a validation image, or come from the same well or plate, are left out.
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

_ALIKE = "nearly the same as a validation image"


@dataclass(frozen=True)
class LeakRules:
    """similar: correlation from which on two images are nearly the same, 0: images are not compared. apart: fields of
    the images (plate, well) whose values together must not be those of a validation image; None: those that the folds
    of the labelled images were grouped by.
    """

    similar: float = SIMILAR
    apart: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.similar <= 1:
            raise DataError(f"similar is {self.similar}; expected a correlation from 0 to 1")


class Reason(NamedTuple):
    """Why an image is left out: in general, and of this one."""

    kind: str
    text: str


def seen_by(info: Mapping[str, Any], source: str) -> TrainedImages | None:
    """Return the images that the models behind a Predictions file were trained with; None where one does not say.

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
    """Return all images that the models behind Predictions files, name -> info, have seen.

    Raises DataError where one has seen an image of `validation`, or does not say what it has seen.
    """
    keys = {content_key(record): record.file_name for record in validation.images}
    seen = None
    for name, info in infos.items():
        own = seen_by(info, name)
        if own is None:
            raise DataError(
                f"{name} does not say which images its models were trained with, so that they may have seen those that "
                f"are validated on ({validation.name}); predict again with runs of detseg (predict, fuse), which say it"
            )
        leaking = [keys[key] for key in own.keys.tolist() if key in keys]
        if leaking:
            fold = f" (fold {info['fold']})" if "fold" in info else ""
            raise DataError(
                f"{name}{fold}: its models were trained with {len(leaking)} of the {len(validation)} images that are "
                f"validated on; their pseudo-labels would make the score too good. Predict with the model of the fold "
                f"that these images are in (predict --run FOLDS/foldK):\n{list_problems(leaking)}"
            )
        seen = own | seen
    return seen


def leaking_images(images: CocoDataset, validation: CocoDataset, rules: LeakRules) -> dict[int, Reason]:
    """Return index -> why, of the images that show what is validated on.

    Raises DataError where an image cannot be read, or no image has the fields that tell them apart.
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
                turned = ", turned or mirrored" if pair.turned else ""
                text = f"nearly the same as {name}, which is validated on ({pair.similarity:.3f}{turned})"
                found.setdefault(rest[pair.second - len(validation)], Reason(_ALIKE, text))
    return found


def _same_group(images: Sequence[ImageRecord], validation: CocoDataset, fields: tuple[str, ...]) -> dict[int, Reason]:
    """Return index -> why, of images whose fields are those of a validation image, or are not known."""

    def value(record: ImageRecord) -> tuple[str, ...] | None:
        values = [record.metadata.get(field) for field in fields]
        return None if any(one in (None, "") for one in values) else tuple(map(str, values))

    words = " and ".join(fields)
    taken = {value(record) for record in validation.images}
    if None in taken or all(value(record) is None for record in images):
        where = validation.name if None in taken else "the unlabelled images"
        raise DataError(
            f"{where}: images have no {words}, by which those of one {words} are kept apart; give it as a field of the "
            "images, name other fields, or none"
        )
    found = {}
    for index, record in enumerate(images):
        own = value(record)
        if own is None:
            text = f"its {words} is not known, and may be that of images that are validated on"
            found[index] = Reason(f"{words} not known", text)
        elif own in taken:
            text = f"of {words} {' '.join(own)}, as images that are validated on"
            found[index] = Reason(f"of one {words} with a validation image", text)
    return found
