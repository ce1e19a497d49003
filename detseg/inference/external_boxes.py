"""External boxes, for which masks are predicted: YOLO text files, COCO results or a Predictions file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np

from detseg.coco.dataset import ImageRecord
from detseg.coco.pairing import ImageIndex, names_of
from detseg.coco.predictions_file import is_plain_list, read_predictions
from detseg.errors import DataError
from detseg.inference.image_list import ImageList
from detseg.inference.predictor import BoxLookup
from detseg.structures.predictions import Predictions


def read_boxes(path: str | os.PathLike[str], images: ImageList, classes: Sequence[str]) -> BoxLookup:
    """Open a file or folder of boxes for `images`.

    Args:
        path: a folder of YOLO text files (`YoloBoxes`), or a JSON file (Predictions or COCO results), of which boxes,
            scores and classes are used; if it has no boxes, those of its masks.
        images: the images to predict.
        classes: the model's class names. Those of the file are matched by name; if both have a single class, these
        match whatever their names.

    Raises:
        DataError: names the file and the problem.
    """
    path = Path(path)
    if path.is_dir():
        return YoloBoxes(path, [record.file_name for record in images.records], classes)
    if path.name.lower().endswith((".json", ".json.gz")):
        return FileBoxes(path, images, classes)
    reason = "does not exist" if not path.exists() else "is no such file"
    raise DataError(f"--boxes {path}: {reason}; expected a folder of YOLO text files or a .json file of COCO results")


class YoloBoxes:
    """A folder of text files, one per image, with rows `class x y width height [confidence]`.

    Coordinates are fractions of the image size, x and y the centre. The file of `plate/a.png` is `plate/a.txt` or
    `a.txt`; an image without a file has no objects, as in YOLO's own output. Without a confidence the score is 1.
    """

    def __init__(self, folder: Path, file_names: Sequence[str], classes: Sequence[str]) -> None:
        self.folder = folder
        self.classes = tuple(classes)
        taken: dict[Path, str] = {}
        for name in file_names:
            path = self._path(name)
            if path is not None and taken.setdefault(path, name) != name:
                raise DataError(f"{path}: would be the boxes of both {taken[path]} and {name}; use subfolders for both")
        if not taken:
            names = ", ".join(sorted(path.name for path in folder.glob("*.txt"))[:3]) or "no .txt file"
            raise DataError(
                f"{folder}: no file belongs to any of the images (there is: {names}); expected the images' names with "
                "the suffix .txt"
            )

    def __call__(self, record: ImageRecord, height: int, width: int) -> Predictions:
        """Return the boxes of an image; see predictor.BoxLookup."""
        path = self._path(record.file_name)
        lines: list[str] = []
        if path is not None:
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read as text: {error}") from None
        rows = [
            self._row(line.split(), f"{path}: row {number}") for number, line in enumerate(lines, 1) if line.strip()
        ]
        values = np.array(rows, dtype=np.float64).reshape(-1, 6)
        centre, half = values[:, 1:3], values[:, 3:5] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]
        return Predictions(record.image_id, record.file_name, height, width, boxes, values[:, 5], values[:, 0])

    def _path(self, file_name: str) -> Path | None:
        relative = PurePosixPath(file_name.replace("\\", "/")).with_suffix(".txt")
        for candidate in (self.folder.joinpath(*relative.parts), self.folder / relative.name):
            if ".." not in relative.parts and candidate.is_file():
                return candidate
        return None

    def _row(self, words: list[str], place: str) -> list[float]:
        """Return class, x, y, width, height, score."""
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if len(numbers) not in (5, 6) or not np.isfinite(numbers).all():
            more = "; polygons of YOLO segmentation are not boxes" if len(numbers) > 6 else ""
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
        return [*numbers[:5], score]


class FileBoxes:
    """Boxes of a Predictions file or COCO results; images are matched as in scoring and fusing (`ImageIndex`).

    The mask qualities in the file do not affect the scores, because the boxes get new masks.
    """

    def __init__(self, path: Path, images: ImageList, classes: Sequence[str]) -> None:
        self.path = path
        truth = None
        if images.categories and is_plain_list(path):  # has neither image nor category names
            pairs = sorted(images.categories.items(), key=lambda pair: pair[1])
            categories = [SimpleNamespace(id=number, name=name) for name, number in pairs]
            truth = SimpleNamespace(images=images.records, categories=categories)
        file = read_predictions(path, truth)
        if not images.categories and not any(image.file_name for image in file.images):
            raise DataError(
                f"{path}: does not say which image files it was made for; give the images as the COCO file whose ids "
                "it has (--images FILE.json)"
            )
        class_of = self._match_classes(file.class_names, classes)
        boxes = []
        for image in file:
            size = image.height, image.width
            of_image = image.boxes, image.class_scores, class_of[image.classes]
            boxes.append(Predictions(image.image_id, image.file_name, *size, *of_image))
        self._boxes = ImageIndex(boxes, str(path))
        # Sizes are ignored here: one that differs is reported for that image only.
        if all(self._boxes.find(dataclasses.replace(image, height=0, width=0)) is None for image in images.records):
            raise DataError(
                f"{path}: has none of the images to predict ({names_of(images.records)}), but {names_of(file.images)}; "
                "give the boxes of these images"
            )

    def __call__(self, record: ImageRecord, height: int, width: int) -> Predictions:
        """Return the boxes of an image; see predictor.BoxLookup."""
        found = self._boxes.find(dataclasses.replace(record, height=height, width=width))
        if found is None:
            return Predictions.empty(record.image_id, record.file_name, height, width, masks=False)
        return found

    def _match_classes(self, own: Sequence[str], classes: Sequence[str]) -> np.ndarray:
        """Return the model's class index for each class of the file, (K,) int64."""
        if len(own) == len(classes) == 1:
            return np.zeros(1, dtype=np.int64)
        unknown = [name for name in own if name not in classes]
        if unknown:
            raise DataError(
                f"{self.path}: has the class {unknown[0]!r}, but the model's are {', '.join(classes)}; rename the "
                "categories of the file"
            )
        return np.array([list(classes).index(name) for name in own], dtype=np.int64)
