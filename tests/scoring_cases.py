"""Small truths and predictions for the tests of scores, fusion and pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

SIZE = (40, 50)


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = SIZE) -> dict:
    """Return the RLE of a rectangle, half-open."""
    return rle_codec.encode_crop(np.ones((y1 - y0, x1 - x0), dtype=bool), x0, y0, *size)


def truth_of(
    rles: Sequence[dict],
    classes: Sequence[int] | None = None,
    crowd: Sequence[bool] | None = None,
    image_id: int | str = 1,
    size: tuple[int, int] = SIZE,
    metadata: dict | None = None,
) -> ImageTruth:
    classes = np.zeros(len(rles), dtype=np.int64) if classes is None else classes
    return ImageTruth(image_id, f"{image_id}.png", *size, list(rles), classes, crowd, metadata or {})


def predictions_of(
    rles: Sequence[dict],
    scores: Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
    image_id: int | str = 1,
    size: tuple[int, int] = SIZE,
) -> Predictions:
    scores = np.linspace(0.9, 0.5, len(rles)) if scores is None else scores
    classes = np.zeros(len(rles), dtype=np.int64) if classes is None else classes
    boxes = rle_codec.bounding_boxes(rles)
    return Predictions(image_id, f"{image_id}.png", *size, boxes, scores, classes, list(rles))


def without_masks(predictions: Predictions) -> Predictions:
    return Predictions(
        predictions.image_id,
        predictions.file_name,
        predictions.height,
        predictions.width,
        predictions.boxes,
        predictions.scores,
        predictions.classes,
    )


def random_case(
    seed: int, images: int = 3, classes: int = 2, overlaps: bool = True, crowds: bool = False, objects: int = 12
) -> tuple[GroundTruth, list[Predictions]]:
    """Random blobs; predictions are moved, missed, doubled and invented objects, with scores that have ties.

    overlaps: masks of the truth and of the predictions may overlap within their side.
    """
    random = np.random.default_rng(seed)
    truths, predictions = [], []
    for image_id in range(1, images + 1):
        boxes = np.array([_random_box(random) for _ in range(random.integers(0, objects + 1))]).reshape(-1, 4)
        moved = boxes + random.integers(-1, 2, size=boxes.shape)
        found = np.concatenate([moved, moved[: len(moved) // 3], [_random_box(random) for _ in range(2)]])
        found = found[random.random(len(found)) < 0.85]
        true_masks, found_masks = ([_ellipse(box) for box in side] for side in (boxes, found))
        if not overlaps:
            true_masks, found_masks = _disjoint(true_masks), _disjoint(found_masks)
        true_masks, found_masks = ([mask for mask in side if mask.any()] for side in (true_masks, found_masks))
        truths.append(
            truth_of(
                [rle_codec.encode_mask(mask) for mask in true_masks],
                random.integers(0, classes, len(true_masks)),
                random.random(len(true_masks)) < (0.2 if crowds else 0),
                image_id,
            )
        )
        predictions.append(
            predictions_of(
                [rle_codec.encode_mask(mask) for mask in found_masks],
                random.integers(1, 10, len(found_masks)) / 10,
                random.integers(0, classes, len(found_masks)),
                image_id,
            )
        )
    return GroundTruth([f"kind {number}" for number in range(classes)], truths), predictions


def _random_box(random: np.random.Generator) -> list[int]:
    height, width = SIZE
    x0, y0 = random.integers(0, width - 12), random.integers(0, height - 12)
    return [x0, y0, x0 + random.integers(4, 12), y0 + random.integers(4, 12)]


def _ellipse(box: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    x0, y0, x1, y1 = box
    return ((x - (x0 + x1) / 2) / max(x1 - x0, 1)) ** 2 + ((y - (y0 + y1) / 2) / max(y1 - y0, 1)) ** 2 < 0.25


def _disjoint(masks: list[np.ndarray]) -> list[np.ndarray]:
    taken = np.zeros(SIZE, dtype=bool)
    result = []
    for mask in masks:
        result.append(mask & ~taken)
        taken |= mask
    return result
