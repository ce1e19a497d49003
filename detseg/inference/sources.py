"""Which images to predict: folders, globs, files, lists and COCO files; pictures of stacks."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.errors import DataError
from detseg.images.planes import FIELD as PLANE
from detseg.images.reading import SUFFIXES, open_pixels
from detseg.images.zarr_source import is_zarr

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSource:
    """Images to predict. `categories`: those of the COCO file they come from, id by name; empty for plain files."""

    records: list[ImageRecord]
    categories: dict[str, int]

    def match(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """COCO categories of a model's classes, in their order: the data's ids where it has all these names.

        Else they count from 1, which is said where the data has names of its own.
        """
        if self.categories and set(classes) <= set(self.categories):
            return [{"id": self.categories[name], "name": name} for name in classes]
        if self.categories:
            logger.warning(
                "the model finds %s, but the data set has %s: the ids of the file written count from 1",
                ", ".join(classes),
                ", ".join(self.categories),
            )
        return [{"id": index + 1, "name": name} for index, name in enumerate(classes)]


def find_images(
    sources: Sequence[str], *, image_root: str | None = None, fields: Mapping[str, Any] | None = None
) -> ImageSource:
    """Find images.

    Args:
        sources: one COCO JSON file, or any number of image files, folders (their images, not those of subfolders),
            globs (`**` goes into subfolders) and lists: text files (.txt) with one of these a line, relative to the
            folder of the list; empty lines and those that begin with # are left out. A Zarr folder is one image.
        image_root: folder of the COCO file's images, where it is not the one that the file says.
        fields: what is said of all images, before what the COCO file says: `pixel_size`, `plane`.

    Returns:
        Records in a fixed order (sorted within every source, duplicates once). Of plain files the image id counts
        from 1, the file name is relative to the folder that all of them share, and height and width are 0 (unknown).

    Raises:
        DataError: a source that does not exist or holds no image.
    """
    if any(source.lower().endswith((".json", ".json.gz")) for source in sources):
        if len(sources) > 1:
            raise DataError(f"--images: give one COCO file alone, not with others: {', '.join(sources)}")
        dataset = CocoDataset.load(sources[0], image_root=image_root)
        if not dataset.images:
            raise DataError(f"{sources[0]} lists no images")
        records = [
            dataclasses.replace(image, metadata={**image.metadata, **(fields or {})}) for image in dataset.images
        ]
        return ImageSource(records, {category.name: category.id for category in dataset.categories})
    paths = list(dict.fromkeys(Path(os.path.abspath(path)) for source in sources for path in _expand(source)))
    try:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:
        raise DataError("--images: the images lie on several drives; predict those of one at a time") from None
    records = [
        ImageRecord(index + 1, path.relative_to(root).as_posix(), path, 0, 0, dict(fields or {}))
        for index, path in enumerate(paths)
    ]
    return ImageSource(records, {})


def expand_stacks(source: ImageSource, *, z: range | None, t: range | None) -> ImageSource:
    """Make every slice and point in time of stacks an image of its own.

    z, t: which, from 0 on, cut to those that a file has; None leaves the axis as it is. File names get `_t003` and
    `_z012` before their suffix, ids count from 1. What cannot be opened stays one image, for the reader to refuse.

    Raises:
        DataError: the images are those of a COCO file, which says itself which picture each is.
    """
    if source.categories:
        raise DataError(
            "several slices or points in time can be chosen of image files, not of the images of a COCO file"
        )
    records: list[ImageRecord] = []
    for record in source.records:
        for suffix, chosen in _pictures(record, z, t):
            name = PurePosixPath(record.file_name)
            plane = {**record.metadata.get(PLANE, {}), **chosen}
            changes: dict[str, Any] = {"image_id": len(records) + 1}
            if chosen:
                changes["file_name"] = name.with_name(f"{name.stem}{suffix}{name.suffix}").as_posix()
                changes["metadata"] = {**record.metadata, PLANE: plane}
            records.append(dataclasses.replace(record, **changes))
    return ImageSource(records, {})


def _pictures(record: ImageRecord, z: range | None, t: range | None) -> list[tuple[str, dict[str, int]]]:
    """Endings of names and choices of a plane, of every picture of a file."""
    wanted = {letter: numbers for letter, numbers in (("t", t), ("z", z)) if numbers is not None}
    plane = {**record.metadata.get(PLANE, {}), **dict.fromkeys(wanted, 0)}
    try:
        with open_pixels(record.path, {**record.metadata, PLANE: plane}) as opened:
            counts = {letter: opened.stack.get(letter.upper(), 1) for letter in wanted}
    except DataError:
        return [("", {})]
    axes = [
        [(f"_{letter}{number:03d}", {letter: number}) for number in numbers if number < counts[letter]]
        for letter, numbers in wanted.items()
        if counts[letter] > 1
    ]
    return [
        ("".join(suffix for suffix, _ in one), {key: value for _, chosen in one for key, value in chosen.items()})
        for one in itertools.product(*axes)
    ]


def _expand(source: str, in_list: bool = False) -> list[Path]:
    """The image files of one file, folder, glob or list; sorted, those of a list in its order."""
    path = Path(source).expanduser()
    if is_zarr(path):
        return [path]
    if path.is_dir():
        found = [entry for entry in path.iterdir() if _is_image(entry)]
        wanted = f"images ({', '.join(SUFFIXES)}); for those of subfolders give the glob {path / '**' / '*.png'}"
    elif path.is_file():
        return _listed(path) if path.suffix.lower() == ".txt" and not in_list else [path]
    elif glob.has_magic(source):
        matches = [Path(name) for name in glob.glob(os.path.expanduser(source), recursive=True)]
        found = [entry for entry in matches if entry.is_file() or is_zarr(entry)]
        wanted = "files that match this pattern"
    else:
        raise DataError(
            f"--images: {source} does not exist; expected a folder, a glob, image files, a list (.txt) or a COCO JSON "
            "file"
        )
    if not found:
        raise DataError(f"--images: {source} holds no {wanted}")
    return sorted(found)


def _is_image(path: Path) -> bool:
    return (path.suffix.lower() in SUFFIXES and path.is_file()) or is_zarr(path)


def _listed(path: Path) -> list[Path]:
    """The images that a list names; those that do not exist are kept, and told as what cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--images: the list {path} cannot be read ({error}); expected a text file") from None
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise DataError(f"--images: the list {path} names no image; expected a path a line")
    found: list[Path] = []
    for name in names:
        place = path.parent / Path(name).expanduser()
        if place.is_dir() or glob.has_magic(name):
            found += _expand(str(place), in_list=True)
        else:
            found.append(place)
    return found
