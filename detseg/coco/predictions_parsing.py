"""From the results of a Predictions file, as parsed JSON, to validated Predictions."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.masks import areas_of
from detseg.coco.pairing import ImageIndex
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions, image_level_fields, soft_mask_window
from detseg.structures.sample import PixelSize, pixel_size_of

_LARGEST_COORDINATE = 1e9


@dataclass(frozen=True)
class ImageEntry:
    """An image entry of a file; height and width in pixels; other fields as in Predictions."""

    image_id: int | str
    file_name: str
    height: int
    width: int
    provenance: dict[str, Any] = field(default_factory=dict)
    pixel_size: PixelSize | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Any) -> ImageEntry:
        """Return the entry of an image of the ground truth, such as an ImageRecord."""
        metadata = image_level_fields(record.metadata)
        return cls(record.image_id, record.file_name, record.height, record.width, metadata=metadata)


def image_entries(images: Any, path: Path) -> list[ImageEntry]:
    """Validate the `images` of a file. Raises DataError with the entry."""
    if not isinstance(images, list):
        raise DataError(f"{path}: `images` is {type(images).__name__}, expected a list")
    entries: dict[int | str, ImageEntry] = {}
    for position, image in enumerate(images):
        valid = isinstance(image, dict) and _is_id(image.get("id"))
        if not (valid and _is_side(image.get("height")) and _is_side(image.get("width"))):
            raise DataError(
                f"{path}: images[{position}] is {str(image)[:80]}; expected an object with id, file_name, height and "
                "width"
            )
        if image["id"] in entries:
            raise DataError(f"{path}: the image id {image['id']!r} occurs twice under `images`")
        provenance = image.get("provenance")
        entries[image["id"]] = ImageEntry(
            image_id=image["id"],
            file_name=str(image.get("file_name", "")),
            height=image["height"],
            width=image["width"],
            provenance=provenance if isinstance(provenance, dict) else {},
            pixel_size=pixel_size_of(image, f"{path}: images[{position}]"),
            metadata=image_level_fields(image),
        )
    return list(entries.values())


def categories_of(results: Sequence[Any], path: Path, ground_truth: Any) -> list[dict[str, Any]]:
    """Return the categories for a file that lists none: those of the ground truth, else one for every id in use."""
    if ground_truth is not None:
        return [{"id": category.id, "name": category.name} for category in ground_truth.categories]
    used = [result.get("category_id") for result in results if isinstance(result, dict)]
    for position, value in enumerate(used):
        if not _is_id(value):
            raise DataError(f"{path}: annotations[{position}]: the category_id {str(value)[:80]} is not a whole number")
    ids = sorted(set(used), key=lambda value: (isinstance(value, str), value))
    return [{"id": value, "name": str(value)} for value in ids]


def _checked_categories(categories: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(categories, list):
        raise DataError(f"{path}: `categories` is {type(categories).__name__}, expected a list")
    seen: set[int | str] = set()
    for position, category in enumerate(categories):
        if not (isinstance(category, dict) and _is_id(category.get("id")) and "name" in category):
            raise DataError(
                f"{path}: categories[{position}] is {str(category)[:80]}; expected an object with id and name"
            )
        if category["id"] in seen:
            raise DataError(f"{path}: the category id {category['id']!r} occurs twice")
        seen.add(category["id"])
    return categories


class ResultParser:
    """Turns lists of results into Predictions, given the images and categories of the file and of the ground truth.

    images None: the file lists none; those of the ground truth are used, or else what the masks tell.
    """

    def __init__(self, path: Path, categories: Any, images: list[ImageEntry] | None, ground_truth: Any) -> None:
        self.path = path
        self.categories = _checked_categories(categories, path)
        self._class_of = {category["id"]: index for index, category in enumerate(self.categories)}
        # The images of the ground truth by the ids of the file.
        self._known: dict[int | str, ImageEntry] | None = None
        self._lists_images = images is not None
        if ground_truth is not None:
            self._take_classes_of(ground_truth)
            entries = [ImageEntry.of(image) for image in ground_truth.images]
            if images is None:
                self._known = {image.image_id: image for image in entries}
            else:
                found = ImageIndex(entries, "the ground truth").pair(images, str(path))
                self._known = {image.image_id: own for image, own in zip(images, found, strict=True)}
        self.images = {image.image_id: image for image in images} if images is not None else dict(self._known or {})

    def _take_classes_of(self, ground_truth: Any) -> None:
        """Use the class indices of the ground truth, matched by name."""
        names = [category.name for category in ground_truth.categories]
        own = {str(category["name"]): category["id"] for category in self.categories}
        unknown = [name for name in own if name not in names]
        if unknown:
            raise DataError(
                f"{self.path}: predicts the class {unknown[0]!r}, which the ground truth does not have (it has: "
                f"{', '.join(map(str, names))}); rename the categories in one of the files "
                "(`detseg prepare coco --annotations FILE --classes-from map:NAMES.csv`, a table of name and class, "
                "renames those of the ground truth)"
            )
        self._class_of = {own[name]: index for index, name in enumerate(names) if name in own}
        self.categories = [{"id": category.id, "name": category.name} for category in ground_truth.categories]

    def image_id_of(self, results: Sequence[Any], place: str) -> int | str:
        """Return the image id of results, which must all be of one image. Raises DataError with `place`."""
        ids = [result.get("image_id") if isinstance(result, dict) else None for result in results]
        if not ids or not _is_id(ids[0]) or any(one != ids[0] for one in ids):
            raise DataError(
                f"{self.path}: {place}: expected the results of one image, not of {sorted(set(map(str, ids)))!s:.80}"
            )
        return ids[0]

    def group(self, results: Sequence[Any]) -> dict[int | str, list[Any]]:
        """Group results by image, keeping their order; complete `images` if the file lists none."""
        grouped: dict[int | str, list[Any]] = {}
        for position, result in enumerate(results):
            if not isinstance(result, dict) or not _is_id(result.get("image_id")):
                raise DataError(
                    f"{self.path}: annotations[{position}] is {str(result)[:80]}; expected an object with image_id, "
                    "category_id, score, and segmentation or bbox"
                )
            grouped.setdefault(result["image_id"], []).append(result)
        for image_id, of_image in grouped.items():
            if image_id in self.images:
                continue
            if self._lists_images or self._known is not None:
                raise DataError(
                    f"{self.path}: {_name_of(of_image[0], 0)}: the image id {image_id!r} is unknown "
                    f"{'under `images`' if self._lists_images else 'in the ground truth'}; use the COCO file that the "
                    "predictions were made for"
                )
            segmentation = of_image[0].get("segmentation")
            size = segmentation.get("size") if isinstance(segmentation, dict) else None
            if not (isinstance(size, list) and len(size) == 2 and all(_is_side(side) for side in size)):
                raise DataError(
                    f"{self.path}: the size of image {image_id!r} is unknown; give the ground truth's COCO file as well"
                )
            self.images[image_id] = ImageEntry(image_id, "", size[0], size[1])
        return grouped

    def parse(self, image: ImageEntry, results: Sequence[Any]) -> Predictions:
        """Return the validated results of one image. Raises DataError with the file, the image and the annotation."""
        boxes, scores, qualities, classes, rles, soft_masks = [], [], [], [], [], []
        for index, result in enumerate(results):
            try:
                if not isinstance(result, dict):
                    raise DataError(f"is {type(result).__name__}, expected an object")
                scores.append(_score(result))
                qualities.append(_quality(result))
                classes.append(self._class(result))
                boxes.append(_box(result))
                rles.append(_rle(result, image))
                soft_masks.append(result.get("soft_mask"))
            except DataError as error:
                raise self._error(image, results, index, error) from None
        has_masks, has_soft_masks = (
            self._all_or_none(image, results, name, values)
            for name, values in (("segmentation", rles), ("soft_mask", soft_masks))
        )
        if has_masks:
            for index, problem in areas_of(rles)[1].items():
                raise self._error(image, results, index, problem)
            if None in boxes:
                tight = rle_codec.bounding_boxes(rles)
                boxes = [tight[index] if box is None else box for index, box in enumerate(boxes)]
        elif None in boxes:
            raise self._error(image, results, boxes.index(None), "has neither segmentation nor bbox")
        made = Predictions(
            image_id=image.image_id,
            file_name=image.file_name,
            height=image.height,
            width=image.width,
            boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
            scores=np.array(scores, dtype=np.float32),
            classes=np.array(classes, dtype=np.int64),
            rles=rles if has_masks or not results else None,
            provenance=dict(image.provenance),
            pixel_size=image.pixel_size,
            metadata=image.metadata,
            quality=np.array(qualities, dtype=np.float32),
        )
        if has_soft_masks:
            made.soft_masks = []
            for index, packed in enumerate(soft_masks):
                try:
                    x0, y0, x1, y1 = soft_mask_window(made.boxes[index], made.height, made.width)
                    made.soft_masks.append(unpack_pixels(packed, (y1 - y0, x1 - x0)))
                except DataError as error:
                    raise self._error(image, results, index, error) from None
        if self._known is not None:
            made.file_name = made.file_name or self._known[image.image_id].file_name
        return made

    def _error(self, image: ImageEntry, results: Sequence[Any], index: int, problem: object) -> DataError:
        return DataError(f"{self.path}: image {image.image_id!r}, {_name_of(results[index], index)}: {problem}")

    def _class(self, result: Mapping[str, Any]) -> int:
        category = result.get("category_id")
        if not _is_id(category) or category not in self._class_of:
            known = ", ".join(str(key) for key in list(self._class_of)[:20])
            raise DataError(f"unknown category_id {category!r}; the ids in `categories` are: {known or 'none'}")
        return self._class_of[category]

    def _all_or_none(self, image: ImageEntry, results: Sequence[Any], name: str, values: Sequence[Any]) -> bool:
        """Return whether the results have a value. Raises DataError if only some have."""
        missing = [index for index, value in enumerate(values) if value is None]
        if missing and len(missing) < len(values):
            problem = f"has no {name}, but other results of this image have; give all of them one, or none"
            raise self._error(image, results, missing[0], problem)
        return len(values) > 0 and not missing


def _name_of(result: Any, index: int) -> str:
    number = result.get("id") if isinstance(result, dict) else None
    return f"annotation id {number}" if number is not None else f"result {index} of this image"


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_number(value: Any, limit: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -limit < value < limit


def _score(result: Mapping[str, Any]) -> float:
    score = result.get("score")
    if not _is_number(score, 2) or not 0 <= score <= 1:
        raise DataError(
            f"the score is {score!r}, expected a number from 0 to 1"
            + ("; this may be a ground truth file instead of predictions" if score is None else "")
        )
    return float(score)


def _quality(result: Mapping[str, Any]) -> float:
    """Return the quality of the mask, NaN if the result has none."""
    quality = result.get("quality")
    if quality is None:
        return math.nan
    if not _is_number(quality, 2) or not 0 <= quality <= 1:
        raise DataError(f"the quality is {repr(quality)[:40]}, expected the IoU of the mask, from 0 to 1")
    return float(quality)


def _box(result: Mapping[str, Any]) -> list[float] | None:
    """Return the box as XYXY, or None if the result has none."""
    box = result.get("bbox")
    if box is None or box == []:
        return None
    valid = isinstance(box, list) and len(box) == 4 and all(_is_number(value, _LARGEST_COORDINATE) for value in box)
    if not valid or box[2] < 0 or box[3] < 0:
        raise DataError(f"the bbox is {repr(box)[:80]}, expected [x, y, width, height] in pixels")
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def _rle(result: Mapping[str, Any], image: ImageEntry) -> dict[str, Any] | None:
    """Return the mask as a compressed RLE, or None if the result has none."""
    segmentation = result.get("segmentation")
    if segmentation is None:
        return None
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), (str, list)):
        kind = "polygons" if isinstance(segmentation, list) else type(segmentation).__name__
        raise DataError(
            f"the segmentation is {kind}, expected a COCO RLE {{size, counts}}; convert it with pycocotools' "
            "mask.frPyObjects and mask.merge"
        )
    size, counts = segmentation.get("size"), segmentation["counts"]
    if size != [image.height, image.width]:
        raise DataError(
            f"the RLE has the size {str(size)[:40]}, but the image {[image.height, image.width]} (height, width)"
        )
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else rle_codec.compress_counts(counts)
    except UnicodeEncodeError:
        raise DataError("the RLE has invalid characters") from None
    return {"size": size, "counts": text}


def decimals(values: np.ndarray) -> list[float]:
    """Return the shortest decimals that give these float32, instead of the many digits of their float64 values."""
    return np.asarray(values, dtype=np.float32).astype(str).astype(np.float64).tolist()


def pack_soft_mask(soft_mask: np.ndarray) -> dict[str, Any]:
    """Return a soft mask (h, w) uint8 in the form of the file."""
    soft_mask = np.ascontiguousarray(soft_mask, dtype=np.uint8)
    data = base64.b64encode(zlib.compress(soft_mask.tobytes(), 6)).decode("ascii")
    return {"size": list(soft_mask.shape), "zlib": data}


def unpack_pixels(packed: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels packed by `pack_soft_mask`, (height, width) uint8. Raises DataError if the size is wrong."""
    expected = list(size)
    pixels = expected[0] * expected[1]
    try:
        if packed["size"] != expected:
            size = str(packed["size"])[:40]
            raise DataError(f"the soft mask has the size {size}, but its box {expected} pixels (height, width)")
        # Never unpack more than the box has pixels: a few bytes can claim gigabytes.
        data = zlib.decompressobj().decompress(base64.b64decode(packed["zlib"], validate=True), pixels + 1)
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise DataError(f"the soft mask cannot be unpacked: {error}") from None
    if len(data) != pixels:
        raise DataError(f"the soft mask has {len(data)} bytes, expected {pixels}")
    return np.frombuffer(data, dtype=np.uint8).reshape(expected).copy()
