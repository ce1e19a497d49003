"""Lists of images to predict: folders, globs, files, lists and COCO files; slices of stacks."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detseg.coco.checking import is_text
from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.errors import DataError, list_problems
from detseg.files.names import matching
from detseg.files.reading import check_regular
from detseg.images.planes import FIELD as PLANE
from detseg.images.reading import SUFFIXES, open_pixels
from detseg.images.zarr_source import is_zarr

logger = logging.getLogger(__name__)

# Largest number of files in subfolders that are searched for images, for a message: a home folder may hold millions.
_MOST_LOOKED_AT = 20_000


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be predicted, and the reason."""

    file_name: str
    reason: str


@dataclass(frozen=True)
class ImageList:
    """Images to predict.

    categories, num_objects: of the COCO file the images come from, id by name and number of objects; empty and 0 for
    plain files.
    """

    records: list[ImageRecord]
    categories: dict[str, int]
    num_objects: int = 0

    @classmethod
    def of_dataset(cls, dataset: CocoDataset, fields: Mapping[str, Any] | None = None) -> ImageList:
        """Return all images of a data set; fields: see `find_images`."""
        records = [
            dataclasses.replace(image, metadata={**image.metadata, **(fields or {})}) for image in dataset.images
        ]
        categories = {category.name: category.id for category in dataset.categories}
        return cls(records, categories, dataset.num_objects)

    def match(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return COCO categories for a model's classes, in their order: with the data set's ids if it has all names.

        Otherwise ids count from 1, with a warning if the data set has other names.
        """
        if self.categories and set(classes) <= set(self.categories):
            return [{"id": self.categories[name], "name": name} for name in classes]
        if self.categories:
            logger.warning(
                "the model has the classes %s, but the data set %s: category ids in the output count from 1",
                ", ".join(classes),
                ", ".join(self.categories),
            )
        return [{"id": index + 1, "name": name} for index, name in enumerate(classes)]


def find_images(
    paths: Sequence[str], *, image_root: str | None = None, fields: Mapping[str, Any] | None = None
) -> ImageList:
    """Find the images to predict.

    Args:
        paths: one COCO JSON file, or any number of image files, folders (without subfolders), globs (`**` includes
            subfolders) and lists: text files (.txt) with one of these per line, relative to the folder of the list;
            empty lines and lines that begin with # are skipped. A Zarr folder is one image.
        image_root: folder of the COCO file's images, if it is not the one given in the file.
        fields: values for all images that override the COCO file's: `pixel_size`, `plane`.

    Returns:
        Records in a fixed order (sorted within every path, without duplicates). For plain files the image ids count
        from 1, file names are relative to the folder common to all, and height and width are 0 (unknown).

    Raises:
        DataError: a path does not exist or contains no image.
    """
    if any(path.lower().endswith((".json", ".json.gz")) for path in paths):
        if len(paths) > 1:
            raise DataError(f"--images: give a COCO file alone, not with others: {', '.join(paths)}")
        dataset = CocoDataset.load(paths[0], image_root=image_root)
        if not dataset.images:
            raise DataError(f"{paths[0]} lists no images")
        return ImageList.of_dataset(dataset, fields)
    files = list(dict.fromkeys(Path(os.path.abspath(file)) for path in paths for file in _expand(path)))
    unreadable = [str(file) for file in files if not is_text(str(file))]
    if unreadable:
        raise DataError(
            f"--images: {len(unreadable)} files have names that are not UTF-8; rename them:\n"
            f"{list_problems([ascii(name) for name in unreadable])}"
        )
    try:
        root = Path(os.path.commonpath([file.parent for file in files]))
    except ValueError:
        raise DataError("--images: the images are on several drives; predict those of one at a time") from None
    records = [
        ImageRecord(index + 1, file.relative_to(root).as_posix(), file, 0, 0, dict(fields or {}))
        for index, file in enumerate(files)
    ]
    return ImageList(records, {})


def expand_stacks(images: ImageList, *, z: range | None, t: range | None) -> ImageList:
    """Make every slice and time point of stacks an image of its own.

    z, t: the indices to take, from 0, limited to those that a file has; None leaves the axis unchanged. File names get
    `_t003` and `_z012` before their suffix, ids count from 1. A file that cannot be opened in this way stays one image,
    and reading it raises the error.

    Raises:
        DataError: the images come from a COCO file, which already gives the plane of each.
    """
    if images.categories:
        raise DataError(
            "several slices or points in time can be chosen of image files, not of the images of a COCO file"
        )
    records: list[ImageRecord] = []
    for record in images.records:
        for name, metadata in _planes(record, {"t": t, "z": z}):
            number = len(records) + 1
            records.append(dataclasses.replace(record, image_id=number, file_name=name, metadata=metadata))
    return ImageList(records, {})


def _planes(record: ImageRecord, asked: Mapping[str, range | None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the file name and fields of an image for each requested plane ({"t": 3, "z": 12}) that it has."""
    wanted = {letter: numbers for letter, numbers in asked.items() if numbers is not None}
    own = record.metadata.get(PLANE, {})
    first = {**record.metadata, PLANE: {**own, **dict.fromkeys(wanted, 0)}}
    try:
        with open_pixels(record.path, first) as opened:
            counts = {letter: opened.stack.get(letter.upper(), 1) for letter in wanted}
    except DataError:
        yield record.file_name, first
        return
    axes = [
        [(letter, number) for number in numbers if number < counts[letter]]
        for letter, numbers in wanted.items()
        if counts[letter] > 1
    ]
    name = PurePosixPath(record.file_name)
    for chosen in map(dict, itertools.product(*axes)):
        suffix = "".join(f"_{letter}{number:03d}" for letter, number in chosen.items())
        plane = {PLANE: {**own, **chosen}} if chosen else {}
        yield name.with_name(f"{name.stem}{suffix}{name.suffix}").as_posix(), {**record.metadata, **plane}


def _expand(text: str, in_list: bool = False) -> list[Path]:
    """Return the image files of one file, folder, glob or list; sorted, those of a list in its order."""
    path = Path(os.path.expanduser(text))
    check_regular(path)
    if is_zarr(path):
        return [path]
    if os.path.isdir(path):
        found = [
            entry
            for entry in path.iterdir()
            # Skip hidden files, such as ._a.png, which macOS adds on other file systems; globs skip them as well.
            if not entry.name.startswith(".")
            and ((entry.suffix.lower() in SUFFIXES and entry.is_file()) or is_zarr(entry))
        ]
        below = _images_below(path)
        globs = " ".join(f"'{path / '**' / ('*' + suffix)}'" for suffix in sorted(below))
        wanted = f"images ({', '.join(SUFFIXES)})"
        wanted += f"; for the {sum(below.values())} in its subfolders give --images {globs}" if below else ""
        if found and below:
            logger.warning(
                "%s: %d images in its subfolders are left out; to take them, give --images %s",
                text,
                sum(below.values()),
                globs,
            )
    elif os.path.isfile(path):  # unlike Path.is_file, accepts names of any length
        return _listed(path) if path.suffix.lower() == ".txt" and not in_list else [path]
    elif glob.has_magic(text):
        found = [entry for entry in matching(text) if entry.is_file() or is_zarr(entry)]
        wanted = "files that match this pattern"
    else:
        raise DataError(
            f"--images: {text} does not exist; expected a folder, a glob, image files, a list (.txt) or a COCO JSON "
            "file"
        )
    if not found:
        raise DataError(f"--images: {text} holds no {wanted}")
    return sorted(found)


def _images_below(folder: Path) -> dict[str, int]:
    """Count images in subfolders by suffix, as a glob would match them; in huge trees not all of them."""
    counts: Counter[str] = Counter()
    looked_at = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not is_zarr(Path(parent, name))]
        names = [Path(name) for name in files if not name.startswith(".")] if Path(parent) != folder else []
        counts.update(name.suffix for name in names if name.suffix.lower() in SUFFIXES)
        looked_at += len(files) + len(folders)
        if looked_at > _MOST_LOOKED_AT:
            break
    return dict(counts)


def _listed(path: Path) -> list[Path]:
    """Return the images in a list file; missing ones are kept, and reading them raises the error."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--images: the list {path} cannot be read ({error}); expected a text file") from None
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if any("\0" in name for name in names):
        raise DataError(f"--images: the list {path} holds a NUL character; expected a text file")
    if not names:
        raise DataError(f"--images: the list {path} names no image; expected a path a line")
    found: list[Path] = []
    for name in names:
        place = path.parent / os.path.expanduser(name)
        if os.path.isdir(place) or glob.has_magic(name):
            found += _expand(str(place), in_list=True)
        else:
            found.append(place)
    return found
