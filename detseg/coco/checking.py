"""Read and validate a COCO file: images, categories, and the position of every annotation in its text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.json_files import read_json_text, scan_object
from detseg.coco.masks import areas_of, box_to_rle, is_box, is_empty, pixels_of_polygons, segmentation_problem
from detseg.coco.records import AnnotationTable, Category, ImageRecord
from detseg.errors import DataError, count_problems, list_problems
from detseg.files.names import below
from detseg.images.size import size_problem

_DECODER = json.JSONDecoder()

# RLEs that are validated at once: few enough for memory, enough to amortize NumPy's call overhead.
_CHECKED_TOGETHER = 4096

_REMEDY = "correct the file, or skip them with `detseg prepare coco --skip-bad`"
_KNOWN = ("info", "images", "categories", "annotations")


def read_coco(
    path: Path,
    image_root: Path | None = None,
    *,
    skipped: list[str] | None = None,
    keep_empty: bool = False,
    boxes: bool = False,
    last_part: bool = False,
) -> dict[str, Any]:
    """Read a COCO file; return the fields of its CocoDataset.

    Args:
        path: the file.
        image_root: see CocoDataset.load.
        skipped: if given, bad images and annotations are skipped and their problems appended to this list. Images that
            share an id or file name are all skipped, since it is unknown which one the annotations belong to, and so is
            an image whose annotations are all bad: it is not background.
        keep_empty: keep annotations without pixels, to be repaired.
        boxes, last_part: see CocoDataset.load.

    Raises:
        DataError: lists all problems of the file.
    """
    text, spans, other = _read_parts(path)
    info = other.get("info") if isinstance(other.get("info"), dict) else {}
    if image_root is None:
        said = info.get("image_root") or ""
        if not is_text(said) or "\0" in said:
            raise DataError(f"{path}: its info.image_root is {shown(said)}; expected the path of a folder")
        image_root = path.parent / said

    problems: list[str] = []
    categories, category_ids = _read_categories(other["categories"], problems)
    is_fatal = bool(problems) or skipped is None
    images, is_bad = _read_images(other["images"], image_root, problems, last_part=last_part)
    checker = _AnnotationChecker(images, category_ids, problems, keep_empty=keep_empty, boxes=boxes)
    for start, _ in spans:
        checker.add(_DECODER.raw_decode(text, start)[0])
    checker.check_rles()
    if skipped is None:  # ids serve only messages, and are renumbered if bad annotations are skipped
        counts = Counter(checker.ids).items()
        problems += [f"annotation {number}: the id occurs {count} times" for number, count in counts if count > 1]
    else:
        for index in checker.images_without_good_ones():
            is_bad[index] = True
            problems.append(f"image {images[index].file_name}: all of its annotations are bad, so it is left out")
    if len(checker.boxes_alone) > 1:
        # Put one sentence for all annotations of a file with boxes only in front, where it is noticed.
        problems = [
            f"{len(checker.boxes_alone)} of {len(spans)} annotations have a box (bbox) but no mask (segmentation): "
            "masks are needed to train and score masks; only a model with boxes alone (MODEL.MASK_ON False) reads bbox",
            *(problem for problem in problems if problem not in checker.boxes_alone),
        ]
    if problems and is_fatal:
        raise DataError(f"{path}: {count_problems(problems)}; {_REMEDY}:\n{list_problems(problems)}")
    table = checker.table(text, spans)
    if skipped is not None and problems:
        skipped += problems
        good = np.flatnonzero(~np.array(is_bad, dtype=bool))
        images, table = [images[index] for index in good], table.select(good)
    further = {key: value for key, value in other.items() if key not in _KNOWN}
    return {"images": images, "categories": categories, "table": table, "info": info, "further": further}


def _read_parts(path: Path) -> tuple[str, list[tuple[int, int]], dict[str, Any]]:
    """Return the text of a COCO file, start and end of each annotation in it, and its other keys.

    Raises DataError if one of its three lists is missing.
    """
    text = read_json_text(path)
    spans: list[tuple[int, int]] = []
    other = scan_object(text, "annotations", lambda _, start, end: spans.append((start, end)), path)
    for key in ("images", "categories"):
        if not isinstance(other.get(key), list):
            raise DataError(f'{path}: not a COCO data set: expected a list "{key}", found {kind_of(other.get(key))}')
    if not isinstance(other.get("annotations"), int):
        raise DataError(f'{path}: not a COCO data set: expected a list "annotations"; for none, write an empty list')
    return text, spans, other


def _read_categories(rows: list[Any], problems: list[str]) -> tuple[list[Category], list[int | str]]:
    """Return the categories, sorted by id, and the id by which annotations refer to each.

    If all ids are strings, categories get numbers: those in the strings if they are numeric, else from 1.
    """
    categories: list[Category] = []
    ids = [_whole(row.get("id")) if isinstance(row, dict) else None for row in rows]
    are_texts = bool(ids) and all(is_text(value) for value in ids)
    are_numbers = are_texts and all(value.isascii() and value.isdigit() and len(value) < 10 for value in ids)
    # Roboflow adds a group above the classes, which may have the name of a class: then that is its own supercategory.
    own = {row["name"] for row in rows if isinstance(row, dict) and is_text(row.get("name")) and _is_below(row)}
    for number, row in enumerate(rows):
        if (type(ids[number]) is int or are_texts) and is_text(row.get("name")):
            if row["name"] in own and not _is_below(row):
                continue
            further = {key: value for key, value in row.items() if key not in ("id", "name")}
            new_id = ids[number] if not are_texts else int(ids[number]) if are_numbers else number + 1
            categories.append(Category(new_id, row["name"], further, number))
        else:
            problems.append(
                f"category number {number}: expected an id (a whole number, or a string in all categories) and a name, "
                f"found {shown(row)}"
            )
    for what, values in (("id", [c.id for c in categories]), ("name", [c.name for c in categories])):
        for value in sorted((value for value, count in Counter(values).items() if count > 1), key=str):
            problems.append(f"the category {what} {value!r} occurs twice")
    categories.sort(key=lambda category: category.id)
    return categories, [ids[category.position] for category in categories]


def _is_below(category: dict[str, Any]) -> bool:
    """Whether a category is in a group of its own name."""
    return category.get("supercategory") == category.get("name")


def _read_images(
    rows: list[Any], root: Path, problems: list[str], *, last_part: bool = False
) -> tuple[list[ImageRecord], list[bool]]:
    """Return the images in a COCO file's list, and which of them are bad; problems are appended to `problems`.

    Rows without an id are skipped. Images that share an id or file name are all bad. An image without a size gets 0 x
    0. last_part: use only the last part of each file name.
    """
    images: list[ImageRecord] = []
    is_bad: list[bool] = []
    first: dict[tuple[str, int | str], int] = {}  # ("id" or "file_name", its value) -> number of the image
    twice: list[str] = []
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.append(f"image number {position}: expected an object, found {kind_of(row)}")
            continue
        image_id, file_name = _whole(row.get("id")), row.get("file_name")
        if not isinstance(image_id, (int, str)) or isinstance(image_id, bool):
            problems.append(
                f"image number {position}: its id is {kind_of(image_id)}; expected a whole number or a string"
            )
            continue
        height, width = _pixels(row.get("height")), _pixels(row.get("width"))
        if height and width:
            wrong_size = size_problem(height, width)
        else:
            sides = f"{shown(row.get('height'))} and {shown(row.get('width'))}"
            wrong_size, height, width = f"expected height and width in pixels, found {sides}", 0, 0
        found = [wrong_size] if wrong_size else []
        try:
            if not is_text(file_name) or not file_name:
                raise DataError(f"its file_name is {shown(file_name)}; expected a path relative to the image root")
            if last_part:
                file_name = file_name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
            file_name = below(file_name, root)
        except DataError as error:
            found.insert(0, str(error))
        name = f"image {file_name if is_text(file_name) else image_id} (number {position})"
        problems += [f"{name}: {problem}" for problem in found]
        metadata = {key: value for key, value in row.items() if key not in ("id", "file_name", "height", "width")}
        path = root / str(file_name).replace("\\", "/")
        number = len(images)
        images.append(ImageRecord(image_id, str(file_name), path, height, width, metadata))
        is_bad.append(bool(found))
        for key, value in (("id", image_id), ("file_name", str(file_name))):
            other = first.setdefault((key, value), number)
            if other != number and not (key == "file_name" and is_bad[number]):
                is_bad[number] = is_bad[other] = True
                twice.append(
                    f"image {file_name} (number {number}): the {key} {shown(value)} occurs twice (number {other} has "
                    "it too); every image needs one entry with a unique id"
                )
    problems += twice
    return images, is_bad


def _whole(value: Any) -> Any:
    """Return a whole number written as a float, such as 3.0, as int; else the value itself."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _pixels(value: Any) -> int | None:
    """Return a whole number of pixels >= 1, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or not 1 <= value < 2**31:
        return None
    return int(value) if int(value) == value else None


class _AnnotationChecker:
    """Validates annotations one by one and keeps the little that the table needs."""

    def __init__(
        self,
        images: list[ImageRecord],
        category_ids: list[int | str],
        problems: list[str],
        *,
        keep_empty: bool,
        boxes: bool,
    ) -> None:
        self._images = images
        self._keep_empty = keep_empty
        self._boxes = boxes
        self.boxes_alone: set[str] = set()  # problems of annotations with a box but no mask
        self._index_of_image = {image.image_id: index for index, image in enumerate(images)}
        self._index_of_category = {value: index for index, value in enumerate(category_ids)}
        self._problems = problems
        self._waiting: list[tuple[int, str, dict[str, Any]]] = []
        self.ids: list[Any] = []
        self._image_indices: list[int] = []
        self._class_indices: list[int] = []
        self._crowd: list[bool] = []
        self._pixels: list[int] = []
        self._bad: list[bool] = []

    def add(self, annotation: Any) -> None:
        number = len(self._bad)
        image, category, crowd, pixels, name = -1, 0, False, 0, f"annotation number {number}"
        self._bad.append(False)
        if not isinstance(annotation, dict):
            self._report(number, f"{name}: expected an object, found {kind_of(annotation)}")
        else:
            annotation_id = annotation.get("id")
            if isinstance(annotation_id, (int, str)):
                self.ids.append(annotation_id)
                name = f"annotation {annotation_id}"
            image = self._lookup(self._index_of_image, annotation, "image_id", name, "images")
            category = self._lookup(self._index_of_category, annotation, "category_id", name, "categories")
            crowd = crowd_flag(annotation.get("iscrowd", 0))
            if crowd is None:
                self._report(number, f"{name}: its iscrowd is {shown(annotation['iscrowd'])}; expected 0 or 1")
            if image >= 0 and self._images[image].height:  # else its size is unknown
                record, segmentation = self._images[image], annotation.get("segmentation")
                name = f"{name} (image {record.file_name})"
                problem = segmentation_problem(segmentation, record.height, record.width)
                has_box = bool(problem) and is_empty(segmentation) and is_box(annotation.get("bbox"))
                if has_box and not self._boxes:
                    self.boxes_alone.add(f"{name}: {problem}")
                if has_box and self._boxes:
                    (area,), _ = areas_of([box_to_rle(annotation["bbox"], record.height, record.width)])
                    pixels = min(area, 2)
                elif problem and not (self._keep_empty and is_empty(segmentation)):
                    self._report(number, f"{name}: {problem}")
                elif not problem and isinstance(segmentation, dict):
                    self._waiting.append((number, name, segmentation))
                elif not problem:
                    pixels = pixels_of_polygons(segmentation, record.height, record.width)
        self._image_indices.append(image)
        self._class_indices.append(category)
        self._crowd.append(bool(crowd))
        self._pixels.append(pixels)
        if len(self._waiting) >= _CHECKED_TOGETHER:
            self.check_rles()

    def _report(self, number: int, problem: str) -> None:
        self._problems.append(problem)
        self._bad[number] = True

    def _lookup(self, indices: dict[Any, int], annotation: dict[str, Any], key: str, name: str, where: str) -> int:
        value = annotation.get(key)
        index = indices.get(value, -1) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else -1
        if index < 0:
            self._report(len(self._bad) - 1, f'{name}: its {key} {shown(value)} is none of the file\'s "{where}"')
        return index

    def check_rles(self) -> None:
        """Decode the pending RLEs, all at once."""
        waiting, self._waiting = self._waiting, []
        areas, broken = areas_of([segmentation for _, _, segmentation in waiting])
        for position, (number, name, _) in enumerate(waiting):
            self._pixels[number] = min(areas[position], 2)
            if position in broken:
                self._report(number, f"{name}: {broken[position]}")
            elif areas[position] == 0 and not self._keep_empty:
                self._report(number, f"{name}: has no mask (its RLE has no pixel)")

    def images_without_good_ones(self) -> list[int]:
        """Return the images with annotations, all of which are bad."""
        of_image, is_bad = np.array(self._image_indices, dtype=np.int64), np.array(self._bad, dtype=bool)
        of_image, is_bad = of_image[of_image >= 0], is_bad[of_image >= 0]
        return np.setdiff1d(of_image[is_bad], of_image[~is_bad]).tolist()

    def table(self, text: str, spans: list[tuple[int, int]]) -> AnnotationTable:
        """Return the table of the good annotations."""
        num_images = len(self._images)
        # Bad annotations go to the end, after those of the last image, where no image refers to them.
        owner = np.where(self._bad, num_images, np.array(self._image_indices, dtype=np.int64)).astype(np.int64)
        order = np.argsort(owner, kind="stable")
        limits = np.array(spans, dtype=np.int64).reshape(-1, 2)[order]
        return AnnotationTable(
            text=np.frombuffer(text.encode("ascii"), dtype=np.uint8),
            starts=limits[:, 0].copy(),
            ends=limits[:, 1].copy(),
            classes=np.array(self._class_indices, dtype=np.int32)[order],
            crowd=np.array(self._crowd, dtype=bool)[order],
            pixels=np.array(self._pixels, dtype=np.uint8)[order],
            boxes=self._boxes,
            offsets=np.searchsorted(owner[order], np.arange(num_images + 1)).astype(np.int64),
        )


def crowd_flag(value: Any) -> bool | None:
    """Parse `iscrowd`: 0, 1, false and true, also as strings; None for anything else."""
    if isinstance(value, str):
        return {"0": False, "1": True, "false": False, "true": True}.get(value.lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be encoded as UTF-8.

    JSON allows unpaired surrogates, and Python uses them for undecodable bytes of file names.
    """
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def kind_of(value: Any) -> str:
    """Return the description of an unexpected JSON value for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return a JSON value for messages: shortened, and for lists and objects only their kind."""
    return kind_of(value) if isinstance(value, (list, dict)) else repr(value)[:80]
