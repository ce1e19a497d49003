"""Which image of one file is which of another: the one rule for scoring, tuning, fusing and joining."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Generic, Protocol, TypeVar

from detseg.errors import DataError


class PairedImage(Protocol):
    """What tells images apart: an `ImageEntry`, a record of a COCO file, the truth of an image."""

    image_id: int | str
    file_name: str
    height: int
    width: int


Image = TypeVar("Image", bound=PairedImage)


class ImageIndex(Generic[Image]):
    """Finds the image of another file among the images of one.

    By file name where both have one: the same path; else the only image whose path ends as the other does, whatever the
    suffixes of the files (`x.png`, `train/x.png`, `train/x.tif`). By id where one of the two has no name, and where two
    paths in different folders have the same last part. An id never pairs images whose names differ.
    """

    def __init__(self, images: Sequence[Image], source: str) -> None:
        """source: the file that the images are from, for messages."""
        self._source = source
        self._by_id: dict[int | str, Image] = {image.image_id: image for image in images}
        self._by_path: dict[tuple[str, ...], Image] = {}
        self._by_stem: dict[str, list[tuple[tuple[str, ...], Image]]] = defaultdict(list)
        for image in images:
            if image.file_name:
                parts = _parts(image.file_name)
                self._by_path[PurePosixPath(_slashes(image.file_name)).parts] = image
                self._by_stem[parts[-1]].append((parts, image))

    def find(self, image: PairedImage) -> Image | None:
        """Return the same image in this file, or None. Raises DataError where its size, unless it is 0 x 0, differs."""
        own = self._find(image)
        is_known = own is not None and image.height and own.height
        if is_known and (own.height, own.width) != (image.height, image.width):
            raise DataError(
                f"{self._source}: image {own.file_name or own.image_id} has {own.height} x {own.width} pixels (height "
                f"x width), elsewhere {image.height} x {image.width}; predict at the original size"
            )
        return own

    def _find(self, image: PairedImage) -> Image | None:
        of_id = self._by_id.get(image.image_id)
        if not image.file_name:
            return of_id
        exact = self._by_path.get(PurePosixPath(_slashes(image.file_name)).parts)
        if exact is not None:
            return exact
        parts = _parts(image.file_name)
        alike = [own for own_parts, own in self._by_stem.get(parts[-1], ()) if _one_ends_as_the_other(own_parts, parts)]
        if len(alike) == 1:
            return alike[0]
        if of_id is not None and (not of_id.file_name or _parts(of_id.file_name)[-1] == parts[-1]):
            return of_id
        return None

    def contradiction(self, image: PairedImage) -> str | None:
        """Say how an image that `find` does not find differs from the one with its id here; None without such an id."""
        own = self._by_id.get(image.image_id)
        if own is None:
            return None
        return f"the id {image.image_id!r} is {image.file_name!r}, but {own.file_name!r} in {self._source}"


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a path, the last one without its suffix."""
    return PurePosixPath(_slashes(name)).with_suffix("").parts if _slashes(name).strip("/.") else (name,)


def _one_ends_as_the_other(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    shorter = min(len(first), len(second))
    return first[-shorter:] == second[-shorter:]
