"""The images that a submission must name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from detseg.errors import DataError, list_problems


@dataclass(frozen=True)
class SubmissionImage:
    """name: as the competition knows it, the file's name without folder and suffix. Sizes are None where unknown."""

    name: str
    height: int | None = None
    width: int | None = None


def name_of(file_name: str) -> str:
    """Return the name of an image in a submission."""
    return PurePosixPath(file_name.replace("\\", "/")).stem


def by_name(images: Iterable[SubmissionImage]) -> dict[str, SubmissionImage]:
    """Return the images by name. Raises DataError where two have one name, or none is there."""
    found: dict[str, SubmissionImage] = {}
    doubled = []
    for image in images:
        if image.name in found:
            doubled.append(f"two images would be called {image.name!r} in the submission; rename one of them")
        found[image.name] = image
    if doubled:
        raise DataError(list_problems(doubled))
    if not found:
        raise DataError("there are no images that a submission could be about")
    return found
