"""Masks of COCO annotations: polygons and RLEs of all forms to compressed RLEs; polygons with holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.images.size import check_size
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import EMPTY, MaskCrop, union_of

# A polygon needs three points; smaller parts cover nothing and are skipped, as in Detectron2.
_LEAST_NUMBERS = 6
# Pixels: a polygon inside the image whose area is this many times its longer side covers several pixels for certain.
_LEAST_THICKNESS = 3
# Pixels; pycocotools uses 100 bytes for each, and outlines of real objects have thousands.
_LONGEST_OUTLINE = 2**22


def segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    """Return what is wrong with a COCO segmentation of an image of height x width, or None. RLE text is not decoded."""
    if segmentation is None or segmentation in ([], {}):
        return "has no mask (its segmentation is missing or empty)"
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(size, list) or not isinstance(counts, (str, list)):
            return 'its RLE is incomplete; expected {"size": [height, width], "counts": string or numbers}'
        if size != [height, width]:
            return f"its RLE has the size {size} (height, width), but the image has {[height, width]}"
        return None
    if not isinstance(segmentation, list):
        return f"its segmentation is {str(segmentation)[:40]!r}; expected polygons [[x, y, x, y, ...]] or an RLE"
    if not all(isinstance(polygon, list) for polygon in segmentation):
        return "its polygon is a flat list; expected a list of polygons [[x, y, x, y, ...]]"
    for polygon in segmentation:
        if not all(type(number) in (int, float) for number in polygon):
            return "its polygon has an entry that is not a number"
        if len(polygon) % 2:
            return f"its polygon has {len(polygon)} numbers; expected pairs x, y"
        try:
            is_finite = all(map(math.isfinite, polygon))
        except OverflowError:  # a whole number of hundreds of digits
            is_finite = False
        if not is_finite:
            return "its polygon has a coordinate that is not finite"
        # `to_rle` clips coordinates to 4 times the image's size, so shorter lists need not be measured.
        if len(polygon) * 4 * max(height, width) > _LONGEST_OUTLINE:
            far = 4 * max(height, width)
            points = np.clip(np.array(polygon, dtype=np.float64).reshape(-1, 2), -far, far)
            length = np.abs(np.diff(points, axis=0)).max(axis=1, initial=0).sum()
            if length > _LONGEST_OUTLINE:
                return (
                    f"its polygon has {len(points)} points and a length of {length:.0f} pixels, above the limit of "
                    f"{_LONGEST_OUTLINE}; give it as an RLE if it is right"
                )
    if is_empty(segmentation):
        return "has no mask (no polygon of three points or more)"
    return None


def is_empty(segmentation: Any) -> bool:
    """Whether a COCO segmentation is missing, or has no polygon with three points. RLEs are not decoded."""
    if segmentation is None or segmentation in ([], {}):
        return True
    return isinstance(segmentation, list) and all(
        isinstance(polygon, list) and len(polygon) < _LEAST_NUMBERS for polygon in segmentation
    )


def is_box(bbox: Any) -> bool:
    """Whether a value is a COCO bbox, [x, y, width, height], with a positive area."""
    return (
        isinstance(bbox, list)
        and len(bbox) == 4
        and all(type(number) in (int, float) and math.isfinite(number) for number in bbox)
        and bbox[2] > 0
        and bbox[3] > 0
    )


def box_to_rle(bbox: Sequence[float], height: int, width: int) -> dict[str, Any]:
    """Return the pixels that a COCO bbox covers, including partly covered ones, as a compressed RLE."""
    x, y, across, down = bbox
    x0, y0 = (min(max(math.floor(value), 0), most) for value, most in ((x, width), (y, height)))
    x1, y1 = (min(max(math.ceil(value), 0), most) for value, most in ((x + across, width), (y + down, height)))
    return rle_codec.encode_crop(np.ones((max(y1 - y0, 0), max(x1 - x0, 0)), dtype=bool), x0, y0, height, width)


def pixels_of_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> int:
    """Return how many pixels valid polygons cover: 0, 1, or 2 for two and more.

    Most are recognized as large at once; only the others are rasterized.
    """
    for polygon in polygons:
        if len(polygon) < _LEAST_NUMBERS:
            continue
        xs, ys = polygon[::2], polygon[1::2]
        x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
        if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
            doubled = sum(map(mul, xs, [*ys[1:], ys[0]])) - sum(map(mul, ys, [*xs[1:], xs[0]]))
            if abs(doubled) >= 2 * _LEAST_THICKNESS * max(x1 - x0, y1 - y0, 1):
                return 2
    return min(int(rle_codec.area([to_rle(list(polygons), height, width)])[0]), 2)


def to_rle(segmentation: dict[str, Any] | list[list[float]] | None, height: int, width: int) -> dict[str, Any]:
    """Convert a valid segmentation to a compressed RLE; parts outside the image are clipped.

    Polygons are rasterized by pycocotools, so that masks are those that other programs score with. Without a
    segmentation the RLE has no pixels.
    """
    size = [height, width]
    if is_empty(segmentation):
        return {"size": size, "counts": rle_codec.compress_counts([height * width])}
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return {
            "size": size,
            "counts": rle_codec.compress_counts(counts) if isinstance(counts, list) else counts.encode("ascii"),
        }
    from pycocotools import mask as coco_mask

    # pycocotools stores coordinates x 5 as int32; far outside is equivalent to a little outside.
    limit = 4 * max(height, width, 1)
    parts = [
        [min(max(float(number), -limit), limit) for number in polygon]
        for polygon in segmentation
        if len(polygon) >= _LEAST_NUMBERS
    ]
    return {"size": size, "counts": coco_mask.merge(coco_mask.frPyObjects(parts, height, width))["counts"]}


def areas_of(rles: Sequence[dict[str, Any]]) -> tuple[list[int], dict[int, str]]:
    """Return the pixels of each RLE, 0 for an invalid one, and index -> problem of the invalid ones."""
    try:
        return rle_codec.area(rles).tolist(), {}
    except DataError:
        pass  # one by one, to find all invalid ones
    areas, problems = [0] * len(rles), {}
    for number, rle in enumerate(rles):
        try:
            areas[number] = int(rle_codec.area([rle])[0])
        except DataError as error:
            problems[number] = str(error)
    return areas, problems


def fill_polygon(rings: Sequence[np.ndarray], height: int, width: int) -> MaskCrop:
    """Fill the region enclosed by rings as ImageJ and QuPath do: a pixel is inside if its centre is.

    Coordinates are x, y in pixels from the outer corner of the first pixel, whose centre is at (0.5, 0.5). An outline
    along pixel edges thus gives exactly its pixels; pycocotools draws polygons larger. A ring inside another one is a
    hole (even-odd rule).

    scikit-image's `polygon` counts centres on any edge as inside, and takes 300 times as long for large outlines.

    Args:
        rings: each (P, 2) float x, y, closed or not; those with fewer than three points enclose nothing.
        height, width: of the image; parts outside are clipped.

    Returns:
        The pixels; a crop of shape (0, 0) if there are none.
    """
    rings = [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in rings if len(ring) > 2]
    if not rings:
        return EMPTY
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    sides = (width, height)
    x0, y0 = _first_centre(starts.min(axis=0), 0, sides).tolist()
    x1, y1 = _first_centre(starts.max(axis=0), 0, sides).tolist()
    if x0 >= x1 or y0 >= y1:
        return EMPTY
    check_size(y1 - y0, x1 - x0)
    # Intersections of edges with the centre lines of rows. An edge includes its upper end and not its lower one, so
    # that a corner counts once.
    is_down = (starts[:, 1] <= ends[:, 1])[:, None]
    upper, lower = np.where(is_down, starts, ends), np.where(is_down, ends, starts)
    first, last = _first_centre(upper[:, 1], y0, y1), _first_centre(lower[:, 1], y0, y1)
    counts = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(starts)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    upper, lower = upper[edge], lower[edge]
    share = (rows + 0.5 - upper[:, 1]) / (lower[:, 1] - upper[:, 1])
    columns = _first_centre(upper[:, 0] + share * (lower[:, 0] - upper[:, 0]), x0, x1)
    # Each intersection toggles between outside and inside for the pixels to its right.
    turns = np.zeros((y1 - y0, x1 - x0 + 1), dtype=np.int32)
    np.add.at(turns, (rows - y0, columns - x0), 1)
    return MaskCrop((np.cumsum(turns[:, :-1], axis=1) % 2).astype(bool), x0, y0)


def _first_centre(positions: np.ndarray, least: int, most: int | tuple[int, int]) -> np.ndarray:
    """Return the first pixels whose centres are at or after positions, clipped to least..most."""
    return np.clip(np.ceil(positions - 0.5), least, most).astype(np.int64)


def fill_polygons(polygons: Sequence[Sequence[np.ndarray]], height: int, width: int) -> MaskCrop:
    """Fill the union of polygons with holes, each as in `fill_polygon`."""
    filled = [fill_polygon(rings, height, width) for rings in polygons]
    return union_of([crop for crop in filled if crop.mask.any()]).tight()
