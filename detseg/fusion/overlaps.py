"""No pixel belongs to two objects: overlaps go to the object of the higher score, or as the probabilities say."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detseg.errors import DataError
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
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
    none. So what a prediction gets depends on those of higher score alone: resolving and then cutting the list at a
    score gives the same as cutting and then resolving.

    "probability", "watershed": the same are dropped; of those left, pixels in several masks are shared out by
    probability (`detseg.fusion.overlaps`), and whoever has less than the same limits then is dropped as well, until
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


# Pixels that several objects claim, each given to one of them: by probability, or by watershed on the probabilities.
#
# An object without soft mask has probability 1 all over its mask.
#
# Symbols: N objects, C contested pixels, Q claims (an object and a pixel that it contests).


@dataclass(frozen=True)
class Claims:
    """Which objects claim which contested pixels, by pixel, then by falling probability, then by rank.

    pixels: (Q,) int64, positions in the image, row by row. owners: (Q,) int64. probabilities: (Q,) uint8.
    """

    pixels: np.ndarray
    owners: np.ndarray
    probabilities: np.ndarray

    def first_of_pixels(self) -> np.ndarray:
        """Return the index (C,) of the first claim of every contested pixel: the most probable one."""
        return np.flatnonzero(np.append(True, self.pixels[1:] != self.pixels[:-1])[: len(self.pixels)])


def share_contested(predictions: Predictions, rank: np.ndarray, policy: str) -> np.ndarray:
    """Return a label image (H, W) int32 in which every pixel of the masks belongs to one object; n has the label n + 1.

    rank: (N,) int64, the place of each object by score, 0 the best; it decides between equal probabilities.
    policy: "probability": the object of the highest probability in this pixel. "watershed": objects grow from the
    pixels that they alone claim, over contested pixels that they claim, the most probable first (Meyer's flooding); so
    they stay connected, and meet where the probability is low. An object wholly inside others keeps its pixels, and
    pixels that nobody reaches go by probability.
    """
    labels, claims = _claims(predictions, rank)
    if not len(claims.pixels):
        return labels
    flat = labels.reshape(-1)
    if policy == "watershed":
        _settle_enclosed(flat, claims, len(predictions), rank)
        _flood(labels, claims)
    first = claims.first_of_pixels()
    free = flat[claims.pixels[first]] == 0
    flat[claims.pixels[first][free]] = claims.owners[first][free] + 1
    return labels


def _claims(predictions: Predictions, rank: np.ndarray) -> tuple[np.ndarray, Claims]:
    """Return the label image of the uncontested pixels, 0 elsewhere, and the claims on the others."""
    height, width = predictions.height, predictions.width
    crops = rle_codec.decode_crops(predictions.rles)
    times = np.zeros((height, width), dtype=np.int32)
    labels = np.zeros((height, width), dtype=np.int32)
    for index, (crop, x0, y0) in enumerate(crops):
        window = slice(y0, y0 + crop.shape[0]), slice(x0, x0 + crop.shape[1])
        times[window] += crop
        labels[window][crop] = index + 1
    contested = times > 1
    labels[contested] = 0
    windows = soft_mask_windows(predictions.boxes, height, width).tolist()
    pixels, owners, probabilities = [], [], []
    for index, (crop, x0, y0) in enumerate(crops):
        rows, columns = np.nonzero(crop & contested[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]])
        if not len(rows):
            continue
        rows, columns = rows + y0, columns + x0
        pixels.append(rows * width + columns)
        owners.append(np.full(len(rows), index))
        soft = None if predictions.soft_masks is None else predictions.soft_masks[index]
        probabilities.append(_probabilities(soft, windows[index], rows, columns))
    if not pixels:
        nothing = np.zeros(0, dtype=np.int64)
        return labels, Claims(nothing, nothing, nothing.astype(np.uint8))
    pixel, owner, probability = np.concatenate(pixels), np.concatenate(owners), np.concatenate(probabilities)
    order = np.lexsort((rank[owner], -probability.astype(np.int16), pixel))
    return labels, Claims(pixel[order], owner[order], probability[order])


def _probabilities(soft: np.ndarray | None, window: list[int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return 255 x probability (C,) uint8 of the pixels; a mask that reaches out of its soft mask is sure there."""
    result = np.full(len(rows), 255, dtype=np.uint8)
    if soft is not None:
        x0, y0, x1, y1 = window
        inside = (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
        result[inside] = soft[rows[inside] - y0, columns[inside] - x0]
    return result


def _settle_enclosed(flat: np.ndarray, claims: Claims, count: int, rank: np.ndarray) -> None:
    """Give objects that have no pixel of their own all that they claim; the best of them first."""
    has_own = np.zeros(count + 1, dtype=bool)
    has_own[flat] = True
    enclosed = np.flatnonzero(~has_own[1:][claims.owners])
    worst_first = enclosed[np.argsort(-rank[claims.owners[enclosed]], kind="stable")]
    flat[claims.pixels[worst_first]] = claims.owners[worst_first] + 1


def _flood(labels: np.ndarray, claims: Claims) -> None:
    """Let the labelled pixels grow over the free contested pixels (H, W); what is not reached stays 0."""
    flat, width = labels.reshape(-1), labels.shape[1]
    first = claims.first_of_pixels()
    level = dict(zip(claims.pixels[first].tolist(), (255 - claims.probabilities[first]).tolist(), strict=True))
    claimed = set(zip(claims.pixels.tolist(), (claims.owners + 1).tolist(), strict=True))
    heap: list[tuple[int, int, int, int]] = []
    entered = 0
    for pixel in level:
        if flat[pixel]:
            continue
        for neighbour in _neighbours(pixel, width, flat.size):
            label = int(flat[neighbour])
            if label and (pixel, label) in claimed:
                heap.append((level[pixel], entered, pixel, label))
                entered += 1
    heapq.heapify(heap)
    while heap:
        _, _, pixel, label = heapq.heappop(heap)
        if flat[pixel]:
            continue
        flat[pixel] = label
        for neighbour in _neighbours(pixel, width, flat.size):
            if not flat[neighbour] and (neighbour, label) in claimed:
                heapq.heappush(heap, (level[neighbour], entered, neighbour, label))
                entered += 1


def _neighbours(pixel: int, width: int, size: int) -> Iterator[int]:
    """Return the positions above, left, right and below."""
    column = pixel % width
    if pixel >= width:
        yield pixel - width
    if column:
        yield pixel - 1
    if column + 1 < width:
        yield pixel + 1
    if pixel + width < size:
        yield pixel + width
