"""Masks without overlaps: every pixel goes to one object, by score, by mask probability or by watershed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop, paint
from detseg.structures.predictions import move_window, soft_mask_windows

# Which of several objects gets a shared pixel.
POLICIES = ("score", "probability", "watershed")


def score_order(scores: np.ndarray) -> np.ndarray:
    """Return indices (N,) int64 by descending score; equal scores keep their order."""
    return np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")


def resolve_overlaps(
    predictions: Predictions,
    *,
    min_visible_fraction: float = 0.0,
    min_visible_area: int = 1,
    policy: str = "score",
) -> Predictions:
    """Assign every pixel to one of the predictions that cover it, of whatever class.

    "score": predictions take their pixels in descending order of score. One that finds less than
    `min_visible_fraction` of its area, or fewer than `min_visible_area` pixels, still free is dropped and takes none.
    The result for a prediction therefore depends only on those with higher scores: resolving overlaps and then applying
    a score threshold gives the same as the reverse order.

    "probability", "watershed": the same predictions are dropped; `share_contested` then divides the pixels that lie in
    several of the remaining masks. Predictions that fall below the same limits are dropped, until none does.

    Returns the remaining predictions in their original order, with disjoint masks. A prediction that lost pixels gets
    the tight box of the rest, and its soft mask is cropped to it. Time and memory grow with image area plus the areas
    of the boxes. Raises DataError for predictions without masks.
    """
    if predictions.rles is None:
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} have no masks: overlaps can be "
            "resolved for masks only"
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
    """Return predictions with some masks (index -> RLE) replaced, and the tight boxes of these.

    Their soft masks are cropped, or padded with 0, to the new boxes.
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
    """Return a label image (H, W) int32 in which every pixel of the masks has one object; index n has the label n + 1.

    An object without soft mask has probability 1 on its whole mask; equal probabilities are decided by score.

    policy: "probability": a pixel in several masks goes to the object with the highest probability there. "watershed":
    objects grow from the pixels that only they cover into the contested ones, the most probable first, so that they
    stay connected and meet where the probability is low. An object entirely inside others keeps its pixels. Where three
    or more meet, pixels that the watershed assigns to an object that does not cover them are assigned by probability.
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
    """Return all pairs of a contested pixel and an object that covers it: pixel index in row-major order, (Q,) int64;
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
            # Mask pixels outside the soft mask have probability 1.
            x0, y0, x1, y1 = windows[index]
            inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
            probability[inside] = predictions.soft_masks[index][rows[inside] - y0, columns[inside] - x0]
        pixels.append(rows * predictions.width + columns)
        owners.append(np.full(len(rows), index))
        probabilities.append(probability)
    return np.concatenate(pixels), np.concatenate(owners), np.concatenate(probabilities)
