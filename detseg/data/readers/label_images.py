"""Pairs of images and label images, and what is read from one pair."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detseg.data.coco_images import is_text
from detseg.data.images import SUFFIXES, read_label_image, read_picture, stored_facts
from detseg.data.planes import SINGLE, PlaneChoice
from detseg.data.readers.source import LabelledImage
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = ("_mask", "_masks", "_label", "_labels")


@dataclass(frozen=True)
class Pair:
    """An image and its label image. name: the image's path below its folder without suffix, with slashes."""

    name: str
    image: Path
    label: Path


def find_pairs(images: Path, labels: Path, label_suffix: str | None = None) -> tuple[list[Pair], list[str]]:
    """Match the images of a folder with the label images of another, or of the same one, by name.

    A label is named as its image, or has `label_suffix` (None: one of `LABEL_SUFFIXES`) after the name; subfolders are
    the same on both sides.

    Returns:
        The pairs in the order of their names, and the problems: images without label, labels without image, names that
        two files have.

    Raises:
        DataError: a folder is missing or holds no image.
    """
    problems: list[str] = []
    endings = ("", *LABEL_SUFFIXES) if label_suffix is None else (label_suffix,)
    if images.resolve() == labels.resolve():
        endings = tuple(ending for ending in endings if ending)
        if not endings:
            raise DataError(f"{images}: images and labels lie in one folder; tell them apart with --label-suffix")
        files = _list_files(images, problems, what="images")
        label_files = {name: path for name, path in files.items() if name.endswith(endings)}
        image_files = {name: path for name, path in files.items() if name not in label_files}
    else:
        image_files = _list_files(images, problems, what="images")
        label_files = _list_files(labels, problems, what="labels")
    pairs = []
    unused = set(label_files)
    for name, path in image_files.items():
        found = [name + ending for ending in endings if name + ending in label_files]
        unused.difference_update(found)
        if len(found) == 1:
            pairs.append(Pair(name, path, label_files[found[0]]))
        elif found:
            problems.append(
                f"{path}: has several label images: {', '.join(str(label_files[other]) for other in found)}"
            )
        else:
            problems.append(f"{path}: has no label image {name}{_either(endings)} in {labels}")
    problems += [f"{label_files[name]}: has no image of this name in {images}" for name in sorted(unused)]
    return pairs, problems


def _either(endings: Iterable[str]) -> str:
    """The endings as a pattern: (|_mask|_label).*"""
    listed = list(endings)
    return (listed[0] if len(listed) == 1 else f"({'|'.join(listed)})") + ".*"


def _list_files(folder: Path, problems: list[str], *, what: str) -> dict[str, Path]:
    """Return name (below the folder, without suffix) -> path of the image files, hidden ones left out."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of {what}")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in below.parts):
            continue
        name = below.with_suffix("").as_posix()
        if not is_text(name):
            problems.append(f"{str(path)!a}: its name is no UTF-8; rename the file")
        elif name in files:
            problems.append(f"{path}: has the same name as {files[name]}; keep one of them")
        else:
            files[name] = path
    if not files:
        raise DataError(f"{folder}: there are no {what} in this folder; expected files {', '.join(SUFFIXES)}")
    return files


def read_pair(pair: Pair, file_name: str, plane: PlaneChoice = SINGLE) -> LabelledImage:
    """Read both files of a pair; objects are in ascending order of their labels.

    Raises DataError where one cannot be read, or their sizes differ.
    """
    labels = read_label_image(pair.label)
    image, facts = read_picture(pair.image, plane.fields())
    if image.shape[:2] != labels.shape:
        raise DataError(
            f"{pair.label}: has {labels.shape[0]} x {labels.shape[1]} pixels (height x width), its image "
            f"{pair.image.name} {image.shape[0]} x {image.shape[1]}; expected the same size"
        )
    layers = LabelLayers.from_label_image(labels)
    if len(layers) == 1 and labels.max() == 255:
        logger.warning(
            "%s: has the values 0 and 255 only, as a mask of all objects together has; it is taken for one object. "
            "Where it shows several, give every object a number of its own.",
            pair.label,
        )
    numbers = np.unique(labels)
    names = [str(number) for number in numbers[numbers > 0]]
    return LabelledImage(
        pair.name, file_name, *labels.shape, layers.to_rles(), labels=names, fields=stored_facts(facts)
    )


class LabelImages:
    """A folder of images and one of label images as a `Source` of one class; images stay where they are."""

    parts = None
    unlabelled: Sequence[str] = ()
    default_column = None

    def __init__(
        self, images: Path, labels: Path, *, label_suffix: str | None = None, class_name: str = "cell"
    ) -> None:
        """Match the files. Raises DataError where a folder is missing or holds no image."""
        pairs, self.problems = find_pairs(images, labels, label_suffix)
        self.description = f"label images of {labels}"
        self.class_names = [class_name]
        self.plane = SINGLE
        self.columns: dict[str, dict[str, str]] = {}
        self._images = images
        self._pairs = {pair.name: pair for pair in pairs}
        self.names = list(self._pairs)

    def aliases(self, name: str) -> list[str]:
        image = self._pairs[name].image
        return [name, name + image.suffix, image.stem, image.name]

    def describe(self, name: str) -> str:
        return str(self._pairs[name].image)

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        pair = self._pairs[name]
        return read_pair(pair, pair.image.relative_to(self._images).as_posix(), self.plane), []

    def image_root(self, output: Path) -> Path:
        return self._images

    def check_target(self, images: Sequence[LabelledImage], output: Path, *, overwrite: bool) -> None:
        """Nothing is written."""

    def provide(self, images: Sequence[LabelledImage], output: Path) -> None:
        """They are there."""
