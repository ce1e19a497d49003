"""Images that come with one annotation file each: matched by name, a `Source` whatever the form of the annotation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from detseg.coco.masks import Crop
from detseg.errors import DataError
from detseg.formats.source import LabelledImage
from detseg.formats.source_files import SourceFiles, StoredImages
from detseg.images.planes import SINGLE
from detseg.images.reading import SUFFIXES, decode_picture, stored_facts
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers

# Folders by these names are the split that a data set comes with.
PART_FOLDERS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Objects:
    """The N good objects of one annotation file, and what is wrong with the others.

    rles: compressed COCO RLEs. labels: what the file calls each. crowd: N flags, True for a region to be ignored;
    empty: none. classes: N indices into the source's class names; empty: all of class 0.
    """

    rles: list[dict[str, Any]]
    labels: list[str]
    crowd: list[bool] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)


# What a file holds, what messages call it, height and width of its image -> its objects.
ReadObjects = Callable[[bytes, str, int, int], Objects]


def objects_of_labels(labels: np.ndarray, where: str, height: int, width: int) -> Objects:
    """Return the objects of a label image (H, W) int32, called by their numbers. Raises DataError for another size."""
    check_mask_size(labels, where, height, width)
    numbers = np.unique(labels)
    rles = LabelLayers.from_label_image(labels).to_rles()
    return Objects(rles, [str(number) for number in numbers[numbers > 0]])


def objects_of_crops(crops: Sequence[Crop], labels: Sequence[str], height: int, width: int) -> Objects:
    """Return objects that are given by crops of their pixels."""
    return Objects(rle_codec.encode_crops(crops, height, width), list(labels))


def check_mask_size(mask: np.ndarray, where: str, height: int, width: int) -> None:
    """Raise DataError where a mask (H, W) has another size than its image."""
    if mask.shape != (height, width):
        found = " x ".join(map(str, mask.shape))
        raise DataError(f"{where}: has {found} pixels (height x width), its image {height} x {width}")


def image_names(files: Sequence[str], problems: list[str]) -> dict[str, str]:
    """Return name (path without suffix) -> file of the images among files; names that two have are `problems`."""
    names: dict[str, str] = {}
    for file in files:
        path = PurePosixPath(file)
        if path.suffix.lower() not in SUFFIXES:
            continue
        name = path.with_suffix("").as_posix()
        if name in names:
            problems.append(f"{file}: has the same name as {names[name]}; keep one of them")
        else:
            names[name] = file
    return names


def match_by_name(
    images: Mapping[str, str], annotations: Mapping[str, str]
) -> tuple[dict[str, str], list[str], list[str]]:
    """Match names of images with names of annotations: equal paths, else equal last parts that occur once on each side.

    Returns image name -> annotation's file, the names of images without one, and those of annotations without image.
    """
    matched = {name: annotations[name] for name in images if name in annotations}
    rest = {side: [n for n in names if n not in matched] for side, names in (("i", images), ("a", annotations))}
    by_stem = {side: _once_each(names) for side, names in rest.items()}
    for stem, name in by_stem["i"].items():
        if stem in by_stem["a"]:
            matched[name] = annotations[by_stem["a"][stem]]
    used = set(matched.values())
    alone = [name for name in images if name not in matched]
    return matched, alone, [name for name in annotations if annotations[name] not in used]


def _once_each(names: Sequence[str]) -> dict[str, str]:
    """Return last part -> name, of the last parts that only one name has."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(PurePosixPath(name).name, []).append(name)
    return {stem: those[0] for stem, those in found.items() if len(those) == 1}


def parts_by_folder(names: Sequence[str]) -> dict[str, list[str]] | None:
    """Return the split that images lie in, folders train, val(idation) and test; None where one lies elsewhere."""
    parts: dict[str, list[str]] = {}
    for name in names:
        part = next((PART_FOLDERS[f] for f in _folders(name) if f in PART_FOLDERS), None)
        if part is None:
            return None
        parts.setdefault(part, []).append(name)
    return parts if len(parts) > 1 else None


def _folders(name: str) -> list[str]:
    return [folder.lower() for folder in PurePosixPath(name).parent.parts]


class AnnotatedImages(StoredImages):
    """A `Source` of images with one annotation file each, in folders or zip archives."""

    default_column = None

    def __init__(
        self,
        images: SourceFiles,
        annotations: SourceFiles,
        *,
        file_of: Mapping[str, str],
        annotation_of: Mapping[str, str],
        read_objects: ReadObjects,
        class_names: Sequence[str],
        description: str,
        problems: Sequence[str] = (),
        empty: Sequence[str] = (),
        unlabelled: Sequence[str] = (),
    ) -> None:
        """Take what a reader has matched.

        file_of: image name -> its file among `images`. annotation_of: image name -> its file among `annotations`.
        empty: names of images without annotation file that have no objects.
        """
        self.description = description
        self.class_names = list(class_names)
        self.names = sorted([*annotation_of, *empty])
        self.unlabelled = sorted(unlabelled)
        self.problems = list(problems)
        self.parts = parts_by_folder(self.names)
        self.columns: dict[str, dict[str, str]] = {}
        self._images = images
        self._annotations = annotations
        self._file_of = file_of
        self._annotation_of = annotation_of
        self._read_objects = read_objects
        self.plane = SINGLE

    def aliases(self, name: str) -> list[str]:
        file = PurePosixPath(self._file_of[name])
        return [name, str(file), file.stem, file.name]

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        file_name = self._file_of[name]
        picture, facts = decode_picture(self._images.read(file_name), self.describe(name), self.plane.fields())
        height, width = picture.shape[:2]
        if name not in self._annotation_of:
            return LabelledImage(name, file_name, height, width, [], fields=stored_facts(facts)), []
        annotation = self._annotation_of[name]
        where = self._annotations.describe(annotation)
        found = self._read_objects(self._annotations.read(annotation), where, height, width)
        if found.problems and not found.rles:
            raise DataError(f"{where}: none of its {len(found.problems)} objects can be used; {found.problems[0]}")
        image = LabelledImage(
            *(name, file_name, height, width, found.rles, found.classes),
            fields=stored_facts(facts),
            crowd=found.crowd,
            labels=found.labels,
        )
        return image, found.problems


def source_of_pairs(
    images: SourceFiles,
    annotations: SourceFiles,
    *,
    image_files: Sequence[str],
    annotation_files: Mapping[str, str],
    read_objects: ReadObjects,
    class_names: Sequence[str],
    description: str,
    expected: str,
    allow_empty: bool = False,
    problems: Sequence[str] = (),
) -> AnnotatedImages:
    """Match images with annotation files and make a source of them.

    image_files: those among the files that are images. annotation_files: name -> file. expected: what the annotation of
    an image is called, for messages. allow_empty: an image without annotation file has no objects; else it is a
    problem.

    Raises DataError where there are no images, or no annotations.
    """
    found = list(problems)
    file_of = image_names(image_files, found)
    if not file_of or not annotation_files:
        missing = "images" if not file_of else "annotations"
        raise DataError(
            f"{description}: there are no {missing}; expected images ({', '.join(SUFFIXES)}) and {expected}"
        )
    matched, alone, unused = match_by_name(file_of, annotation_files)
    if not allow_empty:
        found += [
            f"{images.describe(file_of[name])}: has no annotation file; expected {expected}; with --allow-empty it has "
            "no objects"
            for name in alone
        ]
    found += [f"{annotations.describe(annotation_files[name])}: has no image of this name" for name in unused]
    return AnnotatedImages(
        images,
        annotations,
        file_of=file_of,
        annotation_of=matched,
        read_objects=read_objects,
        class_names=class_names,
        description=description,
        problems=found,
        empty=alone if allow_empty else (),
    )
