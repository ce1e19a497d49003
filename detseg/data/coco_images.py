"""The images that a COCO file lists, checked."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from detseg.data.image_size import size_problem


@dataclass(frozen=True)
class ImageEntry:
    """One image as the COCO file describes it. height, width: pixels; 0 of a bad image whose size is not known."""

    image_id: int | str
    file_name: str
    height: int
    width: int
    metadata: dict[str, Any]


def read_images(rows: list[Any], problems: list[str]) -> tuple[list[ImageEntry], list[bool]]:
    """Return the images of a COCO file's list, and which of them are bad; what is wrong goes to `problems`.

    Rows without an id are left out. Of several images with the same id or file name all are bad.
    """
    images: list[ImageEntry] = []
    bad: list[bool] = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.append(f"image number {number}: expected an object, found {kind_of(row)}")
            continue
        image_id, file_name = row.get("id"), row.get("file_name")
        if not isinstance(image_id, (int, str)):
            problems.append(f"image number {number}: its id is {kind_of(image_id)}; expected a whole number or a text")
            continue
        name = f"image {file_name if is_text(file_name) else image_id} (number {number})"
        found = [problem for problem in (_file_name_problem(file_name), _size_problem(row)) if problem]
        problems += [f"{name}: {problem}" for problem in found]
        height, width = _pixels(row.get("height")), _pixels(row.get("width"))
        size = (height, width) if height and width else (0, 0)
        further = {key: value for key, value in row.items() if key not in ("id", "file_name", "height", "width")}
        images.append(ImageEntry(image_id, str(file_name), *size, further))
        bad.append(bool(found))
    _find_twice(images, bad, problems)
    return images, bad


def _find_twice(images: list[ImageEntry], bad: list[bool], problems: list[str]) -> None:
    for what in ("image_id", "file_name"):
        first: dict[int | str, int] = {}
        for number, image in enumerate(images):
            value = getattr(image, what)
            other = first.setdefault(value, number)
            if other != number and not (what == "file_name" and bad[number]):
                bad[number] = bad[other] = True
                called = "id" if what == "image_id" else what
                problems.append(
                    f"image {image.file_name} (number {number}): the {called} {shown(value)} occurs twice "
                    f"(number {other} has it too); give every image one entry and an id of its own"
                )


def _file_name_problem(name: Any) -> str | None:
    """Say why a file name cannot be used below the image root, on any system, or None."""
    if not is_text(name) or not name or "\0" in name:
        return f"its file_name is {shown(name)}; expected a path relative to the image root"
    slashed = name.replace("\\", "/")
    leads_out = posixpath.normpath(slashed).split("/")[0] in ("..", ".")
    if slashed.startswith("/") or PureWindowsPath(name).drive or leads_out:
        return "its file_name leads out of the image root; expected a path below it (see DATASETS.IMAGE_ROOT)"
    return None


def _size_problem(row: dict[str, Any]) -> str | None:
    height, width = _pixels(row.get("height")), _pixels(row.get("width"))
    if height is None or width is None:
        return f"expected height and width in pixels, found {shown(row.get('height'))} and {shown(row.get('width'))}"
    return size_problem(height, width)


def _pixels(value: Any) -> int | None:
    """Return a whole number of pixels from 1 on, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or not 1 <= value < 2**31:
        return None
    return int(value) if int(value) == value else None


def is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can hold.

    JSON can hold halves of characters, and Python stands them for the bytes of a file name in another encoding.
    """
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def kind_of(value: Any) -> str:
    """Return what messages call a JSON value of another kind than expected."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return a JSON value as messages show it: short, and of lists and objects their kind alone."""
    return kind_of(value) if isinstance(value, (list, dict)) else repr(value)[:80]
