"""Which images to predict: folders, globs, files and COCO files."""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detseg.data.coco import CocoDataset, ImageRecord
from detseg.data.images import SUFFIXES
from detseg.errors import DataError

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
        sources: one COCO JSON file, or any number of image files, folders (their images, not those of subfolders) and
            globs (`**` goes into subfolders).
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


def _expand(source: str) -> list[Path]:
    """The image files of one file, folder or glob, sorted."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = [entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file()]
        wanted = f"images ({', '.join(SUFFIXES)}); for those of subfolders give the glob {path / '**' / '*.png'}"
    elif path.is_file():
        return [path]
    elif glob.has_magic(source):
        found = [Path(name) for name in glob.glob(os.path.expanduser(source), recursive=True) if Path(name).is_file()]
        wanted = "files that match this pattern"
    else:
        raise DataError(
            f"--images: {source} does not exist; expected a folder, a glob, image files or a COCO JSON file"
        )
    if not found:
        raise DataError(f"--images: {source} holds no {wanted}")
    return sorted(found)
