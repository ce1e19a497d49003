"""Boxes from any detector, to be given masks: a YOLO's text files, COCO results, a Predictions file."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np

from detseg.coco.dataset import ImageRecord
from detseg.coco.predictions_file import read_predictions
from detseg.errors import DataError
from detseg.inference.predictor import BoxSource
from detseg.inference.sources import ImageSource
from detseg.structures.predictions import Predictions


def read_boxes(path: str | os.PathLike[str], source: ImageSource, classes: Sequence[str]) -> BoxSource:
    """Open a source of boxes for the images of `source`.

    Args:
        path: a folder of YOLO text files (`YoloBoxes`), or a JSON file: a Predictions file or COCO results, of which
            boxes, scores and classes are taken; without boxes, those of the masks.
        source: the images to predict.
        classes: names of the model's classes. Those of the file are matched by name; a file and a model of one class
            each go together whatever their names.

    Raises:
        DataError: naming the file and the problem.
    """
    path = Path(path)
    if path.is_dir():
        return YoloBoxes(path, [record.file_name for record in source.records], classes)
    if path.name.lower().endswith((".json", ".json.gz")):
        return FileBoxes(path, source, classes)
    reason = "does not exist" if not path.exists() else "is no such file"
    raise DataError(f"--boxes {path}: {reason}; expected a folder of YOLO text files or a .json file of COCO results")


class YoloBoxes:
    """A folder of text files, one an image, with rows `class x y width height [confidence]`.

    Places are fractions of the image, x and y the centre. The file of `plate/a.png` is `plate/a.txt` or `a.txt`; an
    image without a file has no objects, as YOLO writes it. Without a confidence the score is 1.
    """

    def __init__(self, folder: Path, file_names: Sequence[str], classes: Sequence[str]) -> None:
        self.folder = folder
        self.classes = tuple(classes)
        found = [self._path(name) for name in file_names]
        taken: dict[Path, str] = {}
        for name, path in zip(file_names, found, strict=True):
            if path is not None and path in taken:
                raise DataError(f"{path}: would be the boxes of both {taken[path]} and {name}; use subfolders for both")
            if path is not None:
                taken[path] = name
        if not taken:
            names = ", ".join(sorted(path.name for path in folder.glob("*.txt"))[:3]) or "no .txt file"
            raise DataError(
                f"{folder}: no file belongs to any of the images (there is: {names}); expected the images' names with "
                "the suffix .txt"
            )

    def __call__(self, record: ImageRecord, height: int, width: int) -> Predictions:
        """Return the boxes of an image; see predictor.BoxSource."""
        path = self._path(record.file_name)
        rows = [] if path is None else self._rows(path)
        values = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 5)
        centre, half = values[:, :2], values[:, 2:4] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]
        classes = np.array([row[0] for row in rows], dtype=np.int64)
        return Predictions(record.image_id, record.file_name, height, width, boxes, values[:, 4], classes)

    def _path(self, file_name: str) -> Path | None:
        relative = PurePosixPath(file_name.replace("\\", "/")).with_suffix(".txt")
        for candidate in (self.folder.joinpath(*relative.parts), self.folder / relative.name):
            if ".." not in relative.parts and candidate.is_file():
                return candidate
        return None

    def _rows(self, path: Path) -> list[tuple[float, ...]]:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as text: {error}") from None
        return [
            self._row(line.split(), f"{path}: row {number}") for number, line in enumerate(lines, 1) if line.strip()
        ]

    def _row(self, words: list[str], place: str) -> tuple[float, ...]:
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if len(numbers) not in (5, 6) or not np.isfinite(numbers).all():
            more = "; polygons of a segmenting YOLO are no boxes" if len(numbers) > 6 else ""
            raise DataError(
                f"{place}: expected `class x y width height [confidence]`, got {' '.join(words)[:80]}{more}"
            )
        index, score = numbers[0], numbers[5] if len(numbers) == 6 else 1.0
        if index != int(index) or not 0 <= index < len(self.classes):
            raise DataError(
                f"{place}: the class is {words[0]}, but the model's classes are 0 to {len(self.classes) - 1} "
                f"({', '.join(self.classes)})"
            )
        if not (all(-1e-3 <= value <= 1 + 1e-3 for value in numbers[1:5]) and 0 <= score <= 1):
            raise DataError(f"{place}: expected fractions of the image from 0 to 1, got {' '.join(words)[:80]}")
        return (index, *numbers[1:5], score)


class FileBoxes:
    """Boxes of a Predictions file or COCO results.

    Images of a COCO file are found by their id, plain image files by their name (with folders, else without).
    """

    def __init__(self, path: Path, source: ImageSource, classes: Sequence[str]) -> None:
        self.path = path
        self._by_id = bool(source.categories)
        file = read_predictions(path, _truth(source) if self._by_id and _is_list(path) else None)
        if not self._by_id and not any(image.file_name for image in file.images):
            raise DataError(
                f"{path}: does not say which image files it was made for; give the images as the COCO file whose ids "
                "it has (--images FILE.json)"
            )
        self._class_of = _match_classes(path, file.class_names, classes)
        self._boxes: dict[int | str, Predictions] = {}
        for image in file:
            self._boxes[image.image_id if self._by_id else image.file_name] = self._boxes_of(image)
        if not any(self._find(record) is not None for record in source.records):
            raise DataError(f"{path}: has none of the images to predict; was it made for others?")

    def __call__(self, record: ImageRecord, height: int, width: int) -> Predictions:
        """Return the boxes of an image; see predictor.BoxSource."""
        found = self._find(record)
        if found is None:
            return Predictions.empty(record.image_id, record.file_name, height, width, masks=False)
        if (found.height, found.width) != (height, width):
            raise DataError(
                f"{record.file_name}: has {height} x {width} pixels (height x width), but {self.path} was made at "
                f"{found.height} x {found.width}"
            )
        return found

    def _find(self, record: ImageRecord) -> Predictions | None:
        if self._by_id:
            return self._boxes.get(record.image_id)
        name = record.file_name
        return self._boxes.get(name, self._boxes.get(PurePosixPath(name).name))

    def _boxes_of(self, image: Predictions) -> Predictions:
        """The boxes of one image alone, with the model's classes."""
        classes = self._class_of[image.classes] if len(image) else image.classes
        return Predictions(
            image.image_id, image.file_name, image.height, image.width, image.boxes, image.scores, classes
        )


def _truth(source: ImageSource) -> SimpleNamespace:
    """Images and categories as `read_predictions` asks for them, for files that have neither."""
    categories = [SimpleNamespace(id=number, name=name) for name, number in source.categories.items()]
    return SimpleNamespace(images=source.records, categories=sorted(categories, key=lambda category: category.id))


def _is_list(path: Path) -> bool:
    """Whether a file is COCO's plain list of results, which names neither images nor categories."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            return file.read(256).lstrip().startswith(b"[")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _match_classes(path: Path, own: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """The model's class index for every class of a file, (K,) int64."""
    if len(own) == len(classes) == 1:
        return np.zeros(1, dtype=np.int64)
    unknown = [name for name in own if name not in classes]
    if unknown:
        raise DataError(
            f"{path}: has the class {unknown[0]!r}, but the model's are {', '.join(classes)}; rename the categories of "
            "the file"
        )
    return np.array([list(classes).index(name) for name in own], dtype=np.int64)
