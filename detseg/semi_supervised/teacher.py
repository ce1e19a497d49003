"""Predictions of the teacher as candidates for labels, with the agreement of all members."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.pairing import ImageIndex
from detseg.coco.predictions_file import read_predictions
from detseg.coco.records import Category
from detseg.errors import DataError, list_problems
from detseg.fusion.image_class import image_class
from detseg.fusion.members import FileMember, refuse_missing
from detseg.fusion.postprocess import Postprocess
from detseg.fusion.splits import refuse_different_splits
from detseg.semi_supervised.agreement import agreement_with
from detseg.semi_supervised.gates import KEEP, MAJORITY, Candidates
from detseg.structures import Predictions


class Teacher:
    """Predictions files of one set of images: the first has the candidates, the others are members for the agreement.

    Args:
        paths: of the files. images: some of them may have no predictions. categories: the classes by index; they
            include those of the files, by name. postprocess: of the candidates. class_of: see `classes_by_field`.
        image_class: as in Gates.

    Raises:
        DataError: a file cannot be read, or has other classes or images.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        images: CocoDataset,
        categories: Sequence[Category],
        postprocess: Postprocess,
        image_class: str = KEEP,
        class_of: Mapping[str, int] | None = None,
    ) -> None:
        self.images = images
        self._files = [read_predictions(path) for path in paths]
        names = [category.name for category in categories]
        for file in self._files:
            unknown = [name for name in file.class_names if name not in names]
            if unknown:
                raise DataError(
                    f"{file.path}: predicts the class {unknown[0]!r}; expected classes among {', '.join(names)}"
                )
        refuse_different_splits({str(file.path): file for file in self._files})
        self._categories = [{"id": category.id, "name": category.name} for category in categories]
        self._postprocess = postprocess.for_classes(names).without_score_threshold()
        self._image_class, self._class_of = image_class, class_of or {}
        records = ImageIndex(images.images, images.name)
        self._index = {id(record): index for index, record in enumerate(images.images)}
        self._records = [records.find(entry) for entry in self._files[0].images]
        refuse_missing({str(file.path): self._member(file) for file in self._files[1:]}, self._files[0].images)

    @property
    def infos(self) -> dict[str, Mapping[str, Any]]:
        """The info of each file, by its path."""
        return {str(file.path): file.info for file in self._files}

    def unknown(self) -> list[str]:
        """The predicted images that are not in `images`."""
        pairs = zip(self._files[0].images, self._records, strict=True)
        return [str(entry.file_name or entry.image_id) for entry, record in pairs if record is None]

    def candidates(self) -> Iterator[tuple[int, Candidates]]:
        """Yield the index of every predicted image, in the order of the first file, and its candidates."""
        first, *others = [self._member(file) for file in self._files]
        for entry, record in zip(self._files[0].images, self._records, strict=True):
            found = [member.read(entry) for member in (first, *others)]
            if record is None:
                continue
            own = dataclasses.replace(
                found[0], image_id=record.image_id, file_name=record.file_name, metadata=dict(record.metadata)
            )
            own = self._postprocess.apply(self._in_class_of_image(own))
            members = [self._in_class_of_image(member, own) for member in found[1:]]
            yield self._index[id(record)], Candidates(own, agreement_with(members, own) if members else None)

    def _member(self, file: Any) -> FileMember:
        return FileMember(file, self._categories)

    def _in_class_of_image(self, predictions: Predictions, like: Predictions | None = None) -> Predictions:
        """Return the predictions with the class of their image, if it has one.

        like: determines the class; by default the predictions themselves.
        """
        like = predictions if like is None else like
        if self._image_class == KEEP or not len(like) or not len(predictions):
            return predictions
        if self._image_class == MAJORITY:
            chosen = image_class(like)
        else:
            value = like.metadata.get(self._image_class)
            if str(value) not in self._class_of:
                raise DataError(
                    f"image {like.file_name}: its field {self._image_class} is {value!r}, which determines no class: "
                    "it is not a class name, and the labelled images with this value do not have a single class; "
                    "known "
                    f"values are {list_problems(sorted(self._class_of), 20)}"
                )
            chosen = self._class_of[str(value)]
        return dataclasses.replace(predictions, classes=np.full(len(predictions), chosen, dtype=np.int64))


def classes_by_field(field: str, names: Sequence[str], labelled: CocoDataset | None) -> dict[str, int]:
    """Return value of an image field -> class index, for the class names themselves, and for values whose labelled
    images have objects of one class only.
    """
    found: dict[str, set[int]] = {}
    if labelled is not None:
        for record, counts in zip(labelled.images, labelled.objects_per_image(), strict=True):
            if (value := record.metadata.get(field)) not in (None, ""):
                found.setdefault(str(value), set()).update(np.flatnonzero(counts).tolist())
    alone = {value: classes.pop() for value, classes in found.items() if len(classes) == 1}
    return {**alone, **{name: index for index, name in enumerate(names)}}
