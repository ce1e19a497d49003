"""The predictions of several members (files, folders of label images) for common images and classes, fused by image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from detseg.coco.pairing import ImageIndex, names_of
from detseg.coco.predictions_file import PredictionsFile, is_plain_list, read_predictions, with_classes_of
from detseg.coco.predictions_parsing import ImageEntry
from detseg.errors import ConfigError, DataError, list_problems
from detseg.files.hashing import hash_file
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.fusion.splits import refuse_different_splits
from detseg.structures import Predictions


class Member(Protocol):
    """The predictions of one member: a Predictions file or a folder of label images."""

    def read(self, image: ImageEntry) -> Predictions | None:
        """Return the predictions for an image, in the common classes; None if the member lacks the image."""

    def missing(self, images: Sequence[ImageEntry]) -> list[ImageEntry]:
        """Return the images that the member lacks."""

    def examples(self) -> str:
        """Return some file names of the member, for messages."""


def common_categories(
    files: Sequence[PredictionsFile], first: Sequence[Mapping[str, Any]] | None, rename: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the union of the categories of all files, matched by name after `rename`, those of the first file first.

    first: categories that precede those of the files, such as those of the ground truth. Raises DataError if two files
    have no class in common.
    """
    categories = [dict(category) for category in first or ()]
    known = {str(category["name"]) for category in categories}
    for file in files:
        names = [rename.get(name, name) for name in file.class_names]
        if known and names and not known & set(names):
            raise DataError(
                f"{file.path}: has the classes {', '.join(names)}, the others {', '.join(sorted(known))}; if two names "
                "mean the same class, rename one (fuse: --rename OLD=NEW)"
            )
        for name, category in zip(names, file.categories, strict=True):
            if name in known:
                continue
            used = {category["id"] for category in categories}
            number = category["id"]
            if number in used:
                number = 1 + max((value for value in used if isinstance(value, int)), default=0)
            categories.append({**category, "id": number, "name": name})
            known.add(name)
    return categories


class FileMember:
    """A Predictions file as a member.

    The file is read once, image by image. Predictions that are read before they are requested are kept in memory; if
    all files have the same order there are none.
    """

    def __init__(
        self, file: PredictionsFile, categories: Sequence[Mapping[str, Any]], rename: Mapping[str, str] | None = None
    ) -> None:
        """categories: the common ones, which contain every class of the file after `rename`."""
        self.path = file.path
        places = {str(category["name"]): index for index, category in enumerate(categories)}
        names = [(rename or {}).get(name, name) for name in file.class_names]
        self._class_of = np.array([places[name] for name in names], dtype=np.int64)
        self._images = file.images
        self._index = ImageIndex(file.images, str(file.path))
        self._reader = iter(file)
        self._waiting: dict[int | str, Predictions] = {}
        self._given: dict[int | str, str] = {}

    def missing(self, images: Sequence[ImageEntry]) -> list[ImageEntry]:
        return [image for image in images if self._index.find(image) is None]

    def examples(self) -> str:
        return names_of(self._images)

    def read(self, image: ImageEntry) -> Predictions | None:
        own = self._index.find(image)
        if own is None:
            return None
        if own.image_id in self._given and own.image_id not in self._waiting:
            raise DataError(
                f"{self.path}: {own.file_name or own.image_id} is the only match for both {self._given[own.image_id]} "
                f"and {image.file_name or image.image_id}; use the same image names in all files"
            )
        self._given[own.image_id] = image.file_name or str(image.image_id)
        while own.image_id not in self._waiting:
            predictions = next(self._reader)
            self._waiting[predictions.image_id] = predictions
        found = self._waiting.pop(own.image_id)
        return dataclasses.replace(
            found, image_id=image.image_id, file_name=image.file_name, classes=self._class_of[found.classes]
        )


@dataclass(frozen=True)
class OpenedMembers:
    """Members with their common images and categories, and the record of each for the info of the fused file."""

    members: list[Member]
    images: list[ImageEntry]
    categories: list[dict[str, Any]]
    infos: list[dict[str, Any]]


def open_members(
    paths: Sequence[str],
    ground_truth: str | None = None,
    *,
    rename: Mapping[str, str] | None = None,
    label_class: str | None = None,
    label_score: float = 1.0,
) -> OpenedMembers:
    """Open Predictions files, files of COCO results and folders of label images.

    ground_truth: a COCO file that lists the images and classes; needed if the inputs do not. rename: old -> new class
    name. label_class, label_score: class and score of the objects of label images.

    Raises DataError or ConfigError if images or classes are unknown or do not match.
    """
    from detseg.coco.dataset import CocoDataset

    truth = CocoDataset.load(ground_truth) if ground_truth else None
    if truth is not None:
        for path in paths:
            truth = truth if Path(path).is_dir() else with_classes_of(path, truth, rename)
    # A file is opened with its own images and classes; a plain list of results has none and takes the ground truth's.
    files = {
        path: read_predictions(path, truth if truth is not None and is_plain_list(path) else None)
        for path in paths
        if not Path(path).is_dir()
    }
    refuse_different_splits(files)
    if truth is None:
        categories, images = common_categories(list(files.values()), None, rename or {}), []
        for file in files.values():
            # Each image once, in the order of the first file that has it.
            known = ImageIndex(images, paths[0])
            taken = {image.image_id for image in images}
            for image in file.images:
                if known.find(image) is None:
                    free = image.image_id if image.image_id not in taken else len(taken) + 1
                    while free in taken:  # other images of other files may have the same ids
                        free += 1
                    taken.add(free)
                    images.append(dataclasses.replace(image, image_id=free))
    else:
        first = [{"id": item.id, "name": item.name} for item in truth.categories]
        categories = common_categories(list(files.values()), first, rename or {})
        images = [ImageEntry.of(image) for image in truth.images]
    if not images:
        raise DataError("folders of label images do not list the images; give --ground-truth, a COCO file with them")
    members: list[Member] = []
    infos: list[dict[str, Any]] = []
    for path in paths:
        if path in files:
            members.append(FileMember(files[path], categories, rename))
            infos.append({"file": path, "sha256": hash_file(Path(path)), "info": files[path].info})
        else:
            members.append(_label_folder(path, categories, label_class, label_score))
            infos.append({"label_folder": path, "class": label_class, "score": label_score})
    return OpenedMembers(members, images, categories, infos)


def _label_folder(path: str, categories: Sequence[Mapping[str, Any]], class_name: str | None, score: float) -> Member:
    from detseg.formats.label_predictions import LabelFolder

    names = [str(category["name"]) for category in categories]
    if class_name is None and len(names) != 1:
        raise ConfigError(f"{path}: the class of its objects is not known; give --label-class ({', '.join(names)})")
    name = class_name or names[0]
    if name not in names:
        raise ConfigError(f"--label-class {name}: there is no such class; there are: {', '.join(names)}")
    return LabelFolder(Path(path), names.index(name), score)


def refuse_missing(members: Mapping[str, Member], images: Sequence[ImageEntry], *, some: bool = False) -> None:
    """Raise DataError with all members that lack an image; with `some`, only those that have none of the images."""
    problems, is_other = [], False
    for name, member in members.items():
        lacking = member.missing(images)
        if len(lacking) == len(images) or (lacking and not some):
            is_other = is_other or len(lacking) == len(images)
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            lacks = f"lacks the image {lacking[0].file_name or lacking[0].image_id}{more}"
            problems.append(f"{name}: {lacks} (has {member.examples()})")
    if problems:
        remedy = (
            "give --missing leave-out to fuse every image from the members that have it, or --missing empty if a "
            "missing image means that nothing was found in it"
        )
        raise DataError(
            f"the inputs do not have the same images:\n{list_problems(problems)}\n"
            f"{'give files of the same images' if is_other else remedy}"
        )


def fuse_members(
    members: Sequence[Member],
    images: Sequence[ImageEntry],
    options: FusionOptions,
    weights: Sequence[float],
    missing: str = "refuse",
) -> Iterator[Predictions]:
    """Fuse the members image by image.

    weights: one per member. missing: what it means if a member lacks an image. "empty": it found nothing there.
    "leave-out": it is not a member for this image. "refuse": DataError.
    """
    for image in images:
        found, chosen = [], []
        for member, weight in zip(members, weights, strict=True):
            predictions = member.read(image)
            if predictions is None and missing == "refuse":
                refuse_missing({"a member": member}, [image])
            if predictions is None and missing == "leave-out":
                continue
            if predictions is None:
                predictions = Predictions.empty(image.image_id, image.file_name, image.height, image.width)
            found.append(predictions)
            chosen.append(weight)
        if not found:
            raise DataError(f"image {image.file_name or image.image_id}: no member has it; give --missing empty")
        fused = fuse(found, options, chosen)
        # Fields of the ground truth take precedence over those of the members.
        yield dataclasses.replace(fused, metadata={**fused.metadata, **image.metadata})
