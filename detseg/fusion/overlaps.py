"""No pixel belongs to two objects: overlaps go to the object of the higher score, or as the probabilities say."""

from __future__ import annotations

import numpy as np

from detseg.errors import DataError
from detseg.fusion.contested import share_contested
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import move_window, soft_mask_windows


def score_order(scores: np.ndarray) -> np.ndarray:
    """Return indices (N,) int64 by descending score; of equal scores, the earlier prediction comes first."""
    return np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")


def resolve_overlaps(
    predictions: Predictions,
    *,
    min_visible_fraction: float = 0.0,
    min_visible_area: int = 1,
    policy: str = "score",
) -> Predictions:
    """Give every pixel to one of the predictions that cover it, whatever the classes.

    "score": predictions take their pixels one after the other by descending score. One that finds less than
    `min_visible_fraction` of its own area, or fewer than `min_visible_area` pixels, still free is dropped and takes
    none. So what a prediction gets depends on those of higher score alone: resolving and then cutting the list at a
    score gives the same as cutting and then resolving.

    "probability", "watershed": the same are dropped; of those left, pixels in several masks are shared out by
    probability (`detseg.fusion.contested`), and whoever has less than the same limits then is dropped as well, until
    all have enough.

    Returns the predictions that are left, in their old order, with disjoint masks. A prediction that lost pixels gets
    the tight box of what remains, and a soft mask cut to it. Time and memory grow with image area plus the objects'
    boxes. Raises DataError for predictions that are boxes alone.
    """
    if predictions.rles is None:
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} are boxes without masks: overlaps "
            "can be resolved for masks only"
        )
    labels = np.zeros((predictions.height, predictions.width), dtype=np.int32)
    crops = rle_codec.decode_crops(predictions.rles)
    shrunk = np.zeros(len(predictions), dtype=bool)
    kept = np.zeros(len(predictions), dtype=bool)
    for index in score_order(predictions.scores):
        crop, x0, y0 = crops[index]
        window = labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
        visible = crop & (window == 0)
        full_area, visible_area = np.count_nonzero(crop), np.count_nonzero(visible)
        if visible_area < max(min_visible_area, 1) or visible_area < min_visible_fraction * full_area:
            continue
        window[visible] = index + 1
        kept[index] = True
        shrunk[index] = visible_area < full_area
    if policy != "score":
        return _share(predictions.select(kept), min_visible_fraction, max(min_visible_area, 1), policy)
    if shrunk.any():
        encoded = rle_codec.encode_labels(labels, len(predictions))
        predictions = replace_masks(predictions, {index: encoded[index] for index in np.flatnonzero(shrunk)})
    return predictions.select(kept)


def _share(predictions: Predictions, min_fraction: float, min_area: int, policy: str) -> Predictions:
    """Share out contested pixels by probability; drop whoever keeps too little, and share again."""
    while True:
        areas = rle_codec.area(predictions.rles)
        rank = np.empty(len(predictions), dtype=np.int64)
        rank[score_order(predictions.scores)] = np.arange(len(predictions))
        labels = share_contested(predictions, rank, policy)
        visible = np.bincount(labels.reshape(-1), minlength=len(predictions) + 1)[1:]
        enough = (visible >= min_area) & (visible >= min_fraction * areas)
        if enough.all():
            break
        predictions = predictions.select(enough)
    encoded = rle_codec.encode_labels(labels, len(predictions))
    return replace_masks(predictions, {index: encoded[index] for index in np.flatnonzero(visible < areas)})


def replace_masks(predictions: Predictions, masks: dict[int, dict]) -> Predictions:
    """Return predictions in which some masks (index -> RLE) are others, with the tight boxes of these.

    Soft masks of such predictions are cut, or padded with 0, to the new boxes.
    """
    indices = np.array(sorted(masks), dtype=np.int64)
    result = predictions.select(np.arange(len(predictions)))
    for index in indices:
        result.rles[index] = masks[index]
    result.boxes[indices] = rle_codec.bounding_boxes([masks[index] for index in indices])
    if result.soft_masks is not None:
        size = predictions.height, predictions.width
        old, new = (soft_mask_windows(image.boxes[indices], *size).tolist() for image in (predictions, result))
        for place, index in enumerate(indices):
            result.soft_masks[index] = move_window(predictions.soft_masks[index], old[place], new[place])
    return result
