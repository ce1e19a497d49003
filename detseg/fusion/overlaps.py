"""Masks without overlaps: every pixel goes to one object, by score, by mask probability or by watershed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop, paint
from detseg.structures.predictions import move_window, soft_mask_windows

# Who gets a pixel that several objects claim.
POLICIES = ("score", "probability", "watershed")


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
    none. So what a prediction gets depends only on those of higher score: resolving and then cutting the list at a
    score gives the same as cutting and then resolving.

    "probability", "watershed": the same are dropped; of those left, pixels in several masks are divided by
    `share_contested`, and predictions that have less than the same limits then are dropped as well, until all have
    enough.

    Returns the predictions that are left, in their old order, with disjoint masks. A prediction that lost pixels gets
    the tight box of what remains, and a soft mask cut to it. Time and memory grow with image area plus the objects'
    boxes. Raises DataError for predictions without masks.
    """
    if predictions.rles is None:
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} are boxes without masks: overlaps "
            "can be resolved for masks only"
        )
    least = max(min_visible_area, 1)
    crops = rle_codec.decode_crops(predictions.rles)
    labels, visible_areas = paint(
        crops,
        score_order(predictions.scores),
        predictions.height,
        predictions.width,
        least=least,
        fraction=min_visible_fraction,
    )
    kept = visible_areas > 0
    shrunk = kept & (visible_areas < [crop.area for crop in crops])
    if policy != "score":
        predictions = predictions.select(kept)
        while True:
            labels, areas = share_contested(predictions, policy), rle_codec.area(predictions.rles)
            visible_areas = np.bincount(labels.reshape(-1), minlength=len(predictions) + 1)[1:]
            kept = (visible_areas >= least) & (visible_areas >= min_visible_fraction * areas)
            if kept.all():
                break
            predictions = predictions.select(kept)
        shrunk = visible_areas < areas
    if shrunk.any():
        encoded = rle_codec.encode_labels(labels, len(predictions))
        predictions = replace_masks(predictions, {index: encoded[index] for index in np.flatnonzero(shrunk)})
    return predictions.select(kept)


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


def share_contested(predictions: Predictions, policy: str) -> np.ndarray:
    """Return a label image (H, W) int32 in which every pixel of the masks belongs to one object; n has the label n + 1.

    An object without soft mask has probability 1 all over its mask; the score decides between equal probabilities.

    policy: "probability": a pixel in several masks goes to the object of the highest probability there. "watershed":
    objects grow from the pixels that only they claim over the contested ones, the most probable first, so that they
    stay connected and meet where the probability is low. An object wholly inside others keeps its pixels. What the
    watershed gives to an object that does not claim it, where three or more meet, goes by probability.
    """
    height, width = predictions.height, predictions.width
    crops = rle_codec.decode_crops(predictions.rles)
    times = np.zeros((height, width), dtype=np.int32)
    labels = np.zeros((height, width), dtype=np.int32)
    for index, crop in enumerate(crops):
        times[crop.window] += crop.mask
        labels[crop.window][crop.mask] = index + 1
    contested = times > 1
    labels[contested] = 0
    pixel, owner, probability = _claims(predictions, crops, contested)
    if not len(pixel):
        return labels
    rank = np.argsort(score_order(predictions.scores))
    order = np.lexsort((rank[owner], -probability.astype(np.int16), pixel))
    pixel, owner, probability = pixel[order], owner[order], probability[order]
    most_probable = np.flatnonzero(np.diff(pixel, prepend=-1))
    flat = labels.reshape(-1)
    if policy == "watershed":
        from skimage.segmentation import watershed

        has_own = np.zeros(len(predictions) + 1, dtype=bool)
        has_own[flat] = True
        enclosed = np.flatnonzero(~has_own[owner + 1])
        worst_first = enclosed[np.argsort(-rank[owner[enclosed]], kind="stable")]
        flat[pixel[worst_first]] = owner[worst_first] + 1
        level = np.zeros(labels.shape, dtype=np.uint8)
        level.reshape(-1)[pixel[most_probable]] = 255 - probability[most_probable]
        grown = watershed(level, labels, mask=contested | (labels > 0), connectivity=1).reshape(-1)
        agreed = grown[pixel] == owner + 1
        flat[pixel[agreed]] = owner[agreed] + 1
    free = most_probable[flat[pixel[most_probable]] == 0]
    flat[pixel[free]] = owner[free] + 1
    return labels


def _claims(
    predictions: Predictions, crops: Sequence[MaskCrop], contested: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every contested pixel with every object that claims it: position in the image row by row, (Q,) int64; the
    object, (Q,) int64; 255 x its probability there, (Q,) uint8.
    """
    windows = soft_mask_windows(predictions.boxes, predictions.height, predictions.width).tolist()
    nothing = np.zeros(0, dtype=np.int64)
    pixels, owners, probabilities = [nothing], [nothing], [nothing.astype(np.uint8)]
    for index, crop in enumerate(crops):
        rows, columns = np.nonzero(crop.mask & contested[crop.window])
        if not len(rows):
            continue
        rows, columns = rows + crop.y0, columns + crop.x0
        probability = np.full(len(rows), 255, dtype=np.uint8)
        if predictions.soft_masks is not None:
            # A mask that reaches out of its soft mask is sure there.
            x0, y0, x1, y1 = windows[index]
            inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
            probability[inside] = predictions.soft_masks[index][rows[inside] - y0, columns[inside] - x0]
        pixels.append(rows * predictions.width + columns)
        owners.append(np.full(len(rows), index))
        probabilities.append(probability)
    return np.concatenate(pixels), np.concatenate(owners), np.concatenate(probabilities)
