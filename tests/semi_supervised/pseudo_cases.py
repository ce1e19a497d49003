"""Images with known cells, and predictions of them, for the tests of pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.coco.predictions_file import write_predictions
from detseg.data.trained_images import FIELD, TrainedImages
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

SIZE = (48, 64)
NAMES = ("round", "long")


def square(column: int, row: int = 0, side: int = 8, shift: int = 0) -> dict[str, Any]:
    """Return the RLE of a square; those of different columns and rows do not touch."""
    mask = np.ones((side, side), dtype=bool)
    return rle_codec.encode_crop(mask, 2 + 10 * column + shift, 2 + 10 * row, *SIZE)


def predicted(
    name: str,
    masks: Sequence[dict[str, Any]],
    scores: Sequence[float],
    classes: Sequence[int] | None = None,
    image_id: int = 1,
    **provenance: Any,
) -> Predictions:
    classes = np.zeros(len(masks), dtype=np.int64) if classes is None else classes
    boxes = rle_codec.bounding_boxes(masks)
    return Predictions(image_id, name, *SIZE, boxes, scores, classes, list(masks), provenance=provenance)


def write_images(
    folder: Path,
    name: str,
    pictures: Mapping[str, Sequence[tuple[dict[str, Any], int]]],
    fields: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    info: Mapping[str, Any] | None = None,
) -> CocoDataset:
    """Write noise pictures, which look like no other, and a COCO file. pictures: file name -> masks with classes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    images, annotations = [], []
    for number, (file_name, objects) in enumerate(pictures.items(), start=1):
        coarse = random.integers(0, 255, (6, 8), dtype=np.uint8)
        Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.NEAREST).save(folder / file_name)
        own = (fields or {}).get(file_name, {})
        images.append({"id": number, "file_name": file_name, "height": SIZE[0], "width": SIZE[1], **own})
        rles, classes = [mask for mask, _ in objects], [1 + index for _, index in objects]
        annotations += annotations_of(rles, classes, image_id=number, first_id=len(annotations) + 1)
    categories = [{"id": number, "name": one} for number, one in enumerate(NAMES, start=1)]
    path = folder / name
    write_coco(path, images=images, annotations=annotations, categories=categories, info=info, overwrite=True)
    return CocoDataset.load(path)


def write_file(path: Path, images: Sequence[Predictions], saw: CocoDataset | None = None, **info: Any) -> Path:
    """Write a Predictions file; saw: the images that its model was trained with."""
    seen = {} if saw is None else {FIELD: TrainedImages.of_records(saw.images).to_plain()}
    write_predictions(path, images, NAMES, {**seen, **info})
    return path
