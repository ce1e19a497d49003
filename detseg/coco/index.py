"""The images that a COCO file lists, checked."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from detseg.coco.json_scan import read_json_text, scan_object
from detseg.coco.masks import is_empty, segmentation_problem, to_rle
from detseg.errors import DataError, list_problems
from detseg.images.size import size_problem
from detseg.structures import rle as rle_codec


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


# What a COCO file holds, checked: images, categories, and where in its text every annotation lies.

_DECODER = json.JSONDecoder()

# RLEs that are checked together: few enough to be light, enough that NumPy's calls do not count.
_CHECKED_TOGETHER = 4096

_REMEDY = "mend the file, or leave them out by `detseg prepare coco --skip-bad`"


@dataclass(frozen=True)
class Category:
    """A class of a COCO file: its id there and its name."""

    id: int
    name: str


@dataclass(frozen=True)
class AnnotationTable:
    """All annotations, those of one image behind each other.

    text: (bytes,) uint8, the ASCII text of the file. starts, ends: (A,) int64, where each annotation's JSON lies in it.
    classes: (A,) int32, 0-based. crowd: (A,) bool. offsets: (images + 1,) int64; image i has rows
    offsets[i]:offsets[i + 1].
    """

    text: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    offsets: np.ndarray

    def rows(self, image: int) -> slice:
        """Return the rows of image number `image`."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def decode(self, image: int) -> list[dict[str, Any]]:
        """Return the annotations of an image as the file has them."""
        rows = self.rows(image)
        parts = [self.text[start:end].tobytes() for start, end in zip(self.starts[rows], self.ends[rows], strict=True)]
        return json.loads(b"[" + b",".join(parts) + b"]")

    def rles(self, image: int, height: int, width: int) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Return the masks of an image as compressed RLEs, and which of them (N,) bool are polygons without a pixel."""
        annotations = self.decode(image)
        rles = [to_rle(annotation["segmentation"], height, width) for annotation in annotations]
        empty = np.zeros(len(rles), dtype=bool)
        polygons = [n for n, annotation in enumerate(annotations) if isinstance(annotation["segmentation"], list)]
        if polygons:
            empty[polygons] = rle_codec.area([rles[number] for number in polygons]) == 0
        return rles, empty

    def select(self, images: np.ndarray) -> AnnotationTable:
        """Return the table of these images, in this order; the text is shared."""
        counts = np.diff(self.offsets)[images]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[images] - offsets[:-1], counts)
        return AnnotationTable(
            self.text, self.starts[rows], self.ends[rows], self.classes[rows], self.crowd[rows], offsets
        )

    def keep(self, rows: np.ndarray) -> AnnotationTable:
        """Return the table with the annotations `rows`, (A,) bool, alone; the text is shared."""
        offsets = np.concatenate([[0], np.cumsum(rows)])[self.offsets].astype(np.int64)
        return AnnotationTable(
            self.text, self.starts[rows], self.ends[rows], self.classes[rows], self.crowd[rows], offsets
        )

    @staticmethod
    def concatenate(tables: Sequence[AnnotationTable]) -> AnnotationTable:
        """Join tables whose classes mean the same."""
        shifts = np.cumsum([0, *(len(table.text) for table in tables[:-1])])
        first_rows = np.cumsum([0, *(len(table.starts) for table in tables)])
        return AnnotationTable(
            text=np.concatenate([table.text for table in tables]),
            starts=np.concatenate([table.starts + shift for table, shift in zip(tables, shifts, strict=True)]),
            ends=np.concatenate([table.ends + shift for table, shift in zip(tables, shifts, strict=True)]),
            classes=np.concatenate([table.classes for table in tables]),
            crowd=np.concatenate([table.crowd for table in tables]),
            offsets=np.concatenate(
                [table.offsets[:-1] + row for table, row in zip(tables, first_rows[:-1], strict=True)]
                + [first_rows[-1:]],
                dtype=np.int64,
            ),
        )


def index_coco(
    path: Path, skipped: list[str] | None = None, *, keep_empty: bool = False
) -> tuple[dict[str, Any], list[ImageEntry], list[Category], AnnotationTable]:
    """Read a COCO file: its info, images, categories and annotations.

    skipped: where given, bad images and annotations are left out and what is wrong with them is added to this list. Of
    images with the same id or file name none is kept, since nobody knows whose the annotations are.
    keep_empty: annotations without a pixel stay, for who mends them.

    Raises DataError with all problems of the file in one list.
    """
    text = read_json_text(path)
    spans: list[tuple[int, int]] = []
    other = scan_object(text, "annotations", lambda _, start, end: spans.append((start, end)), path)
    for key in ("images", "categories"):
        if not isinstance(other.get(key), list):
            raise DataError(f'{path}: is no COCO data set: expected a list "{key}", found {kind_of(other.get(key))}')
    if not isinstance(other.get("annotations"), int):
        raise DataError(f'{path}: is no COCO data set: expected a list "annotations"; for none, write an empty list')

    problems: list[str] = []
    categories = _read_categories(other["categories"], problems)
    is_fatal = bool(problems) or skipped is None
    images, bad_images = read_images(other["images"], problems)
    checker = _AnnotationChecker(images, categories, problems, keep_empty)
    for start, _ in spans:
        checker.add(_DECODER.raw_decode(text, start)[0])
    checker.check_rles()
    # Ids are used in messages alone, and written anew where bad annotations are left out.
    if skipped is None:
        checker.check_ids()
    if problems and is_fatal:
        raise DataError(
            f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}; {_REMEDY}:\n{list_problems(problems)}"
        )

    info = other.get("info") if isinstance(other.get("info"), dict) else {}
    table = _build_table(text, spans, checker, len(images))
    if skipped is not None and problems:
        skipped += problems
        good = np.flatnonzero(~np.array(bad_images, dtype=bool))
        images, table = [images[index] for index in good], table.select(good)
    return info, images, categories, table


def _build_table(
    text: str, spans: list[tuple[int, int]], checker: _AnnotationChecker, num_images: int
) -> AnnotationTable:
    # Bad annotations go behind those of the last image, where no image has its rows.
    owner = np.where(checker.bad, num_images, np.array(checker.image_indices, dtype=np.int64)).astype(np.int64)
    order = np.argsort(owner, kind="stable")
    limits = np.array(spans, dtype=np.int64).reshape(-1, 2)[order]
    return AnnotationTable(
        text=np.frombuffer(text.encode("ascii"), dtype=np.uint8),
        starts=limits[:, 0].copy(),
        ends=limits[:, 1].copy(),
        classes=np.array(checker.class_indices, dtype=np.int32)[order],
        crowd=np.array(checker.crowd, dtype=bool)[order],
        offsets=np.searchsorted(owner[order], np.arange(num_images + 1)).astype(np.int64),
    )


class _AnnotationChecker:
    """Looks at one annotation after the other and keeps the little that is needed of it."""

    def __init__(
        self, images: list[ImageEntry], categories: list[Category], problems: list[str], keep_empty: bool
    ) -> None:
        self._images = images
        self._keep_empty = keep_empty
        self._index_of_image = {image.image_id: index for index, image in enumerate(images)}
        self._index_of_category = {category.id: index for index, category in enumerate(categories)}
        self._problems = problems
        self._waiting: list[tuple[int, str, dict[str, Any]]] = []
        self._ids: list[Any] = []
        self.image_indices: list[int] = []
        self.class_indices: list[int] = []
        self.crowd: list[bool] = []
        self.bad: list[bool] = []

    def add(self, annotation: Any) -> None:
        number = len(self.image_indices)
        image, category, crowd, name = 0, 0, False, f"annotation number {number}"
        self.bad.append(False)
        if not isinstance(annotation, dict):
            self._report(number, f"{name}: expected an object, found {kind_of(annotation)}")
        else:
            annotation_id = annotation.get("id")
            if isinstance(annotation_id, (int, str)):
                self._ids.append(annotation_id)
                name = f"annotation {annotation_id}"
            image = self._lookup(self._index_of_image, annotation, "image_id", name, "images")
            category = self._lookup(self._index_of_category, annotation, "category_id", name, "categories")
            crowd = bool(annotation.get("iscrowd", 0))
            if image >= 0 and self._images[image].height:  # else its size is not known
                self._check_mask(annotation, self._images[image], name)
        self.image_indices.append(image)
        self.class_indices.append(category)
        self.crowd.append(crowd)

    def _report(self, number: int, problem: str) -> None:
        self._problems.append(problem)
        self.bad[number] = True

    def _lookup(self, indices: dict[Any, int], annotation: dict[str, Any], key: str, name: str, where: str) -> int:
        value = annotation.get(key)
        index = indices.get(value, -1) if isinstance(value, (int, str)) else -1
        if index < 0:
            self._report(len(self.bad) - 1, f'{name}: its {key} {shown(value)} is none of the file\'s "{where}"')
        return index

    def _check_mask(self, annotation: dict[str, Any], image: ImageEntry, name: str) -> None:
        name = f"{name} (image {image.file_name})"
        segmentation = annotation.get("segmentation")
        problem = segmentation_problem(segmentation, image.height, image.width)
        if problem and self._keep_empty and is_empty(segmentation):
            return
        if problem:
            self._report(len(self.bad) - 1, f"{name}: {problem}")
        elif isinstance(segmentation, dict):
            self._waiting.append((len(self.bad) - 1, name, segmentation))
            if len(self._waiting) >= _CHECKED_TOGETHER:
                self.check_rles()

    def check_rles(self) -> None:
        """Decode the RLEs that wait, all at once, and where one is broken, one by one to find all that are."""
        waiting, self._waiting = self._waiting, []
        try:
            areas = rle_codec.area([segmentation for _, _, segmentation in waiting])
        except DataError:
            areas = np.array([self._area_of(*one) for one in waiting])
        for (number, name, _), area in zip(waiting, areas, strict=True):
            if area == 0 and not self._keep_empty:
                self._report(number, f"{name}: has no mask (its RLE has no pixel)")

    def _area_of(self, number: int, name: str, segmentation: dict[str, Any]) -> int:
        try:
            return int(rle_codec.area([segmentation])[0])
        except DataError as error:
            self._report(number, f"{name}: {error}")
            return -1

    def check_ids(self) -> None:
        """Find ids of annotations that occur twice: parts of other files were joined without new ids."""
        if len(set(self._ids)) == len(self._ids):
            return
        counts = Counter(self._ids)
        self._problems += [
            f"annotation {annotation_id}: the id occurs {count} times"
            for annotation_id, count in counts.items()
            if count > 1
        ]


def _read_categories(rows: list[Any], problems: list[str]) -> list[Category]:
    categories: list[Category] = []
    for number, row in enumerate(rows):
        valid = isinstance(row, dict) and type(row.get("id")) is int and is_text(row.get("name"))
        if not valid:
            problems.append(f"category number {number}: expected an id (a number) and a name, found {shown(row)}")
            continue
        categories.append(Category(row["id"], row["name"]))
    for what, values in (("id", [c.id for c in categories]), ("name", [c.name for c in categories])):
        for value in sorted({value for value in values if values.count(value) > 1}, key=str):
            problems.append(f"the category {what} {value!r} occurs twice")
    return sorted(categories, key=lambda category: category.id)
