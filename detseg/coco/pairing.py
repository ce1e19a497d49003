"""Match the images of two files: the one rule wherever two files meet.

Images of files that belong together are matched by name. Whether two files of any origin show the same image is decided
by content.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from detseg.errors import DataError, list_problems, some_of
from detseg.files.hashing import fingerprint
from detseg.images.planes import FIELD as PLANE

if TYPE_CHECKING:
    from detseg.coco.records import ImageRecord


class PairedImage(Protocol):
    """The attributes for matching: of an `ImageEntry`, a record of a COCO file, the truth of an image."""

    image_id: int | str
    file_name: str
    height: int
    width: int


Image = TypeVar("Image", bound=PairedImage)


class ImageIndex(Generic[Image]):
    """Finds the images of one file that match those of another.

    By file name if both have one: the same path; else the only image whose path ends like the other one, regardless of
    suffixes (`x.png`, `train/x.png`, `train/x.tif`). By id if one of the two has no name, or if only the last parts of
    their paths agree. An id never matches images whose names differ.
    """

    def __init__(self, images: Sequence[Image], source: str) -> None:
        """source: the file of the images, for messages."""
        self._source, self._images = source, images
        self._by_id: dict[int | str, Image] = {image.image_id: image for image in images}
        self._by_path: dict[tuple[str, ...], Image] = {}
        self._by_stem: dict[str, list[tuple[tuple[str, ...], Image]]] = defaultdict(list)
        for image in images:
            if image.file_name:
                parts = _parts(image.file_name)
                self._by_path[PurePosixPath(_slashes(image.file_name)).parts] = image
                self._by_stem[parts[-1]].append((parts, image))

    def find(self, image: PairedImage) -> Image | None:
        """Return the matching image of this file, or None. Raises DataError if its size (unless 0 x 0) differs."""
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
        alike = [
            own
            for own_parts, own in self._by_stem.get(parts[-1], ())
            if (shorter := min(len(own_parts), len(parts))) and own_parts[-shorter:] == parts[-shorter:]
        ]
        if len(alike) == 1:
            return alike[0]
        if of_id is not None and (not of_id.file_name or _parts(of_id.file_name)[-1] == parts[-1]):
            return of_id
        return None

    def pair(self, images: Sequence[PairedImage], source: str) -> list[Image]:
        """Return the image of this file for each of another file's.

        source: the other file, for messages. Raises DataError if images are missing here, with examples of both sides,
        if two match the same one here, or if sizes differ.
        """
        return [own for own in self._pair(images, source, some=False) if own is not None]

    def pair_some(self, images: Sequence[PairedImage], source: str) -> list[Image | None]:
        """Like `pair`, with None for images that are missing here. Raises DataError if all of them are."""
        return self._pair(images, source, some=True)

    def _pair(self, images: Sequence[PairedImage], source: str, *, some: bool) -> list[Image | None]:
        paired = [self.find(image) for image in images]
        unknown = [self._contradiction(image) for image, own in zip(images, paired, strict=True) if own is None]
        if unknown and (len(unknown) == len(images) or not some):
            raise DataError(
                f"{source}: has images that are not in {self._source}, which has {names_of(self._images)}:\n"
                f"{list_problems(unknown)}\ngive files of the same images; names are compared from the end of the path"
            )
        taken: dict[int | str, PairedImage] = {}
        for image, own in zip(images, paired, strict=True):
            if own is not None and own.image_id in taken:
                names = dict.fromkeys(str(one.file_name or one.image_id) for one in (taken[own.image_id], image))
                raise DataError(
                    f"{source}: image {' and '.join(names)} {'both match' if len(names) > 1 else 'occurs twice, as'} "
                    f"{own.file_name or own.image_id} of {self._source}; give one of them, or fuse them"
                )
            if own is not None:
                taken[own.image_id] = image
        return paired

    def _contradiction(self, image: PairedImage) -> str:
        """Describe an image that is missing here, and how it differs from the one with its id."""
        own = self._by_id.get(image.image_id)
        if own is None or not image.file_name:
            return f"there is no image {image.file_name or repr(image.image_id)}"
        return f"the id {image.image_id!r} is {image.file_name!r}, but {own.file_name!r} in {self._source}"


def names_of(images: Sequence[PairedImage]) -> str:
    """Return the names of the first images, for messages."""
    return some_of([image.file_name or f"id {image.image_id!r}" for image in images])


def content_key(record: ImageRecord) -> int:
    """Return 63 bits that are equal for files with equal content and the same plane.

    Raises DataError if the file cannot be read.
    """
    try:
        return fingerprint(record.path, str(record.metadata.get(PLANE, "")))
    except OSError as error:
        raise DataError(f"{record.path}: cannot be read ({error})") from None


def is_same_file(first: ImageRecord, second: ImageRecord) -> bool:
    """Whether two records refer to one file, or to files with equal content. Raises DataError if one is missing."""
    if first.path == second.path and first.metadata.get(PLANE) == second.metadata.get(PLANE):
        return True
    return content_key(first) == content_key(second)


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a path, the last one without its suffix."""
    return PurePosixPath(_slashes(name)).with_suffix("").parts if _slashes(name).strip("/.") else (name,)
