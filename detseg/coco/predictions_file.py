"""Predictions files: the predictions of a run, image by image, in a form that COCO tools can read.

The file is one JSON object, a COCO data set whose annotations are COCO results, in lines, so that it can be written and
read as a stream (and compressed, if its name ends in .gz):

    {"info": {...}, "categories": [{"id": 1, "name": "cell"}], "annotations": [
    {"id": 1, "image_id": 7, "category_id": 1, "bbox": [x, y, w, h], "score": 0.9, "segmentation": {..}, "area": 51},..
    {"id": 3, "image_id": 9, ...}, ...
    ], "images": [
    {"id": 7, "file_name": "a.png", "height": 520, "width": 704, "group": "shsy5y"},
    ...
    ]}

with one line per image with predictions, in the order of `images`, which keep the plain fields of their COCO file
(group, fold, sample, ...). `info` records how the file was made. Boxes are XYWH in pixels; segmentations are compressed
RLEs, absent if there are only boxes; a soft mask is stored as `"soft_mask": {"size": [h, w], "zlib": base64 text}`. If
the model predicts mask quality, `"quality": 0.85` is next to the score, of which it is a factor: score = class score x
quality (`Predictions.quality`). Class k is the k-th of `categories`, whatever their ids. Numbers are read back
unchanged.

Other layouts can be read too: any JSON of this structure, and COCO's plain list of results.
"""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from detseg.coco.json_files import json_file, json_rle, open_json
from detseg.coco.predictions_parsing import (
    ImageEntry,
    ResultParser,
    categories_of,
    decimals,
    image_entries,
    pack_soft_mask,
)
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import to_xywh
from detseg.structures.predictions import Predictions
from detseg.structures.sample import FIELD as PIXEL_SIZE
from detseg.structures.sample import pixel_size_field

logger = logging.getLogger(__name__)

ANNOTATIONS_END = '], "images": ['
FORMAT = "detseg predictions 1"
# Results of one image that are held as text at once.
_AT_ONCE = 20_000
# Characters: for a fusion it lists the training images of each member's models.
_LONGEST_HEADER = 50_000_000


class PredictionsWriter:
    """Write Predictions to a file, image by image; use it as a context manager.

    The file gets its name when the context ends without an exception; until then it has a temporary one. The same
    predictions give the same bytes.

    path: .json, or .json.gz. categories: COCO's `{"id": .., "name": ..}`, in the order of the class indices; plain
    names get the ids 1, 2, .... info: plain values on how the predictions were made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        categories: Sequence[dict[str, Any] | str],
        info: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.categories = [
            {"id": number, "name": category} if isinstance(category, str) else dict(category)
            for number, category in enumerate(categories, start=1)
        ]
        self.info = {"format": FORMAT, **(info or {})}
        self._images: list[dict[str, Any]] = []
        self._seen: set[int | str] = set()
        self._next_id = 1
        self._file: IO[str] | None = None
        self._open = ExitStack()

    def __enter__(self) -> PredictionsWriter:
        self._file = self._open.enter_context(json_file(self.path, "the predictions"))
        header = json.dumps({"info": self.info, "categories": self.categories}, ensure_ascii=False)
        self._file.write(header[:-1] + ', "annotations": [')
        return self

    def write(self, predictions: Predictions) -> None:
        """Append one image. Raises DataError if its id was written before or a class has no category."""
        place = f"{self.path}: image {predictions.image_id!r}"
        if self._file is None:
            raise DataError(f"{place}: the file is not open; use `with PredictionsWriter(...) as writer:`")
        if predictions.image_id in self._seen:
            raise DataError(f"{place} was written before; write every image once")
        if len(predictions) and not 0 <= predictions.classes.min() <= predictions.classes.max() < len(self.categories):
            raise DataError(f"{place}: class {predictions.classes.max()} of {len(self.categories)} categories")
        self._seen.add(predictions.image_id)
        image = {
            "id": predictions.image_id,
            "file_name": predictions.file_name,
            "height": int(predictions.height),
            "width": int(predictions.width),
            **predictions.metadata,
        }
        if predictions.pixel_size is not None:
            image[PIXEL_SIZE] = pixel_size_field(predictions.pixel_size)
        if predictions.provenance:
            image["provenance"] = predictions.provenance
        self._images.append(image)
        separator = "\n" if self._next_id == 1 else ",\n"
        for start in range(0, len(predictions), _AT_ONCE):
            part = np.arange(start, min(start + _AT_ONCE, len(predictions)))
            self._file.write(separator + ", ".join(self._results(predictions.select(part))))
            separator = ", "

    def _results(self, predictions: Predictions) -> Iterator[str]:
        """Return one JSON object per prediction."""
        boxes = to_xywh(predictions.boxes)
        scores, quality = decimals(predictions.scores), decimals(predictions.quality)
        areas = rle_codec.area(predictions.rles).tolist() if predictions.rles is not None else None
        for index, (box, score) in enumerate(zip(boxes.tolist(), scores, strict=True)):
            result: dict[str, Any] = {
                "id": self._next_id,
                "image_id": predictions.image_id,
                "category_id": self.categories[predictions.classes[index]]["id"],
                "bbox": box,
                "score": score,
            }
            if not math.isnan(quality[index]):
                result["quality"] = quality[index]
            if predictions.rles is not None:
                result["segmentation"] = json_rle(predictions.rles[index])
                result["area"] = areas[index]
            if predictions.soft_masks is not None:
                result["soft_mask"] = pack_soft_mask(predictions.soft_masks[index])
            self._next_id += 1
            try:
                yield json.dumps(result, allow_nan=False)
            except ValueError:
                raise DataError(
                    f"{self.path}: image {predictions.image_id!r}: prediction {index} has a score or box that is not "
                    f"finite (score {score}, box {box})"
                ) from None

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        file, self._file = self._file, None
        if kind is not None:
            self._open.__exit__(kind, *error)
            return
        with self._open:
            rows = ",\n".join(json.dumps(image, ensure_ascii=False) for image in self._images)
            file.write(f"\n{ANNOTATIONS_END}\n{rows}\n]}}\n")


def write_predictions(
    path: str | os.PathLike[str],
    predictions: Iterable[Predictions],
    categories: Sequence[dict[str, Any] | str],
    info: dict[str, Any] | None = None,
) -> None:
    """Write all predictions to a file; see PredictionsWriter."""
    with PredictionsWriter(path, categories, info) as writer:
        for image in predictions:
            writer.write(image)


class PredictionsFile:
    """A Predictions file: iterate over it, repeatedly, for one Predictions per image, empty ones included.

    Files by PredictionsWriter are read line by line, so one image is in memory at a time.
    categories: COCO's list, in the order of the class indices. info: how the file was made. images: id, file name and
    size.
    """

    def __init__(
        self, path: Path, info: dict[str, Any], parser: ResultParser, results: dict[int | str, list[Any]] | None
    ) -> None:
        """results: of every image, in memory; None: read from the file."""
        self.path = path
        self.info = info
        self.categories = parser.categories
        self.images: list[ImageEntry] = list(parser.images.values())
        self._parser = parser
        self._results = results

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> list[str]:
        return [str(category["name"]) for category in self.categories]

    def __iter__(self) -> Iterator[Predictions]:
        if self._results is not None:
            for image in self.images:
                yield self._parser.parse(image, self._results.get(image.image_id, []))
            return
        lines = self._lines()
        pending = next(lines, None)
        for image in self.images:
            if pending is not None and pending[0] == image.image_id:
                yield self._parser.parse(image, pending[1])
                pending = next(lines, None)
            else:
                yield self._parser.parse(image, [])
        if pending is not None:
            raise DataError(
                f"{self.path}: the results of image {pending[0]!r} are not in the order of `images`, or occur twice, "
                "or the image is not listed there"
            )

    def _lines(self) -> Iterator[tuple[int | str, list[Any]]]:
        """Yield image id and results for every line of annotations."""
        with open_json(self.path) as file:
            next(file)
            for number, line in enumerate(file, start=2):
                if line.startswith("]"):
                    return
                results = _parse_json(f"[{line.strip().rstrip(',')}]", f"{self.path}: line {number}")
                yield self._parser.image_id_of(results, f"line {number}"), results


def read_predictions(path: str | os.PathLike[str], ground_truth: Any = None) -> PredictionsFile:
    """Open a Predictions file, a COCO data set with scores, or a plain list of COCO results; .gz is decompressed.

    ground_truth: a CocoDataset (`.images` with image_id, file_name, height, width; `.categories` with id, name). Class
    indices are then those of the ground truth: by name if the file names its categories, else by category id. It is
    required for a plain list of boxes without masks, which has no image sizes.

    Raises DataError with the file, the image or annotation and the remedy: here for a broken file, while iterating for
    an invalid result.
    """
    path = Path(path)
    with _readable(path):
        content = _read_frame(path)
        results = None
        if content is None:
            with open_json(path) as file:
                content = _parse_json(file.read(), str(path))
            if isinstance(content, list):
                content = {"annotations": content}
            elif not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
                raise DataError(
                    f"{path}: neither a Predictions file nor COCO results: expected a list of results, or an object "
                    "with a list `annotations`"
                )
            results = content["annotations"]
        info = content.get("info") or {}
        if not isinstance(info, dict):
            raise DataError(f"{path}: `info` is {type(info).__name__}, expected an object")
        categories = content.get("categories")
        if categories is None and results is not None:
            categories = categories_of(results, path, ground_truth)
        images = None if content.get("images") is None else image_entries(content["images"], path)
        parser = ResultParser(path, categories, images, ground_truth)
        return PredictionsFile(path, info, parser, None if results is None else parser.group(results))


def with_classes_of(path: str | os.PathLike[str], ground_truth: Any, rename: Mapping[str, str] | None = None) -> Any:
    """Return a ground truth, a CocoDataset, with the additional classes of a file, of which it has no objects.

    rename: old -> new class name, in the file.
    """
    own = ground_truth.class_names
    try:
        names = [] if is_plain_list(path) else read_predictions(path).class_names
    except DataError:  # reported when it is read with the ground truth, which it may need
        return ground_truth
    names = [(rename or {}).get(name, name) for name in names]
    further = [name for name in dict.fromkeys(names) if name not in own]
    if not further or not set(own) & set(names):
        return ground_truth
    logger.warning(
        "%s has no class %s, which %s predicts: these predictions are false positives",
        ground_truth.name,
        ", ".join(further),
        path,
    )
    return ground_truth.with_classes([*own, *further])


def is_plain_list(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a plain list of COCO results, without images and class names, judged by its beginning.

    Raises DataError if it cannot be read.
    """
    with _readable(Path(path)), open_json(Path(path)) as file:
        return file.read(100).lstrip().startswith("[")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read: {error or type(error).__name__}; check that it exists and is complete"
        ) from None
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: not JSON text; expected a Predictions file or COCO results (.json or .json.gz)"
        ) from None


def _read_frame(path: Path) -> dict[str, Any] | None:
    """Return everything around the annotations in the layout of PredictionsWriter; None for any other layout."""
    with open_json(path) as file:
        first = file.readline(_LONGEST_HEADER).rstrip("\r\n")
        if FORMAT not in first or not first.endswith(', "annotations": ['):
            return None
        frame = _parse_json(first[: -len(', "annotations": [')] + "}", f"{path}: line 1")
        for line in file:
            if line.startswith("]"):
                if line.rstrip("\r\n") != ANNOTATIONS_END:
                    return None
                images = _parse_json("[" + file.read().rstrip().removesuffix("}"), f"{path}: `images`")
                return {**frame, "images": images}
    raise DataError(f"{path}: is truncated: the list of images at its end is missing; copy or predict it again")


def _parse_json(text: str, place: str) -> Any:
    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not a valid number in JSON")

    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: not complete JSON: {error}; if the file is truncated, copy or predict it again"
        ) from None
