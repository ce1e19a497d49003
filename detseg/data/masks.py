"""The masks of COCO annotations: polygons and run-lengths of every form to compressed RLE."""

from __future__ import annotations

import math
from typing import Any

from detseg.structures import rle as rle_codec

# A polygon needs three points; parts with fewer cover nothing and are passed over, as Detectron2 does.
_LEAST_NUMBERS = 6


def segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    """Say what is wrong with a COCO segmentation of an image of height x width, or None. RLE texts are not decoded."""
    if segmentation is None or segmentation in ([], {}):
        return "has no mask (its segmentation is missing or empty)"
    if isinstance(segmentation, dict):
        return _rle_problem(segmentation, height, width)
    if not isinstance(segmentation, list):
        return f"its segmentation is {str(segmentation)[:40]!r}; expected polygons [[x, y, x, y, ...]] or an RLE"
    return _polygon_problem(segmentation)


def _rle_problem(segmentation: dict[str, Any], height: int, width: int) -> str | None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or not isinstance(counts, (str, list)):
        return 'its RLE is incomplete; expected {"size": [height, width], "counts": text or numbers}'
    if size != [height, width]:
        return f"its RLE was made for an image of {size} (height, width), but the image has {[height, width]}"
    return None


def _polygon_problem(polygons: list[Any]) -> str | None:
    if not all(isinstance(polygon, list) for polygon in polygons):
        return "its polygon is a flat list; expected a list of polygons [[x, y, x, y, ...]]"
    for polygon in polygons:
        if not all(type(number) in (int, float) for number in polygon):
            return "its polygon holds what is no number"
        if len(polygon) % 2:
            return f"its polygon has {len(polygon)} numbers; expected pairs x, y"
        if not all(map(math.isfinite, polygon)):
            return "its polygon has a coordinate that is not finite"
    if is_empty(polygons):
        return "has no mask (no polygon of three points or more)"
    return None


def is_empty(segmentation: Any) -> bool:
    """Whether a COCO segmentation is missing, or polygons none of which has three points. RLEs are not decoded."""
    if segmentation is None or segmentation in ([], {}):
        return True
    return isinstance(segmentation, list) and all(
        isinstance(polygon, list) and len(polygon) < _LEAST_NUMBERS for polygon in segmentation
    )


def to_rle(segmentation: dict[str, Any] | list[list[float]] | None, height: int, width: int) -> dict[str, Any]:
    """Return a segmentation without problems as a compressed RLE; parts outside of the image are cut off.

    Polygons are filled by pycocotools, so that masks are those that everybody scores with. Where there is none, the RLE
    has no pixel.
    """
    if is_empty(segmentation):
        return {"size": [height, width], "counts": rle_codec.compress_counts([height * width])}
    if isinstance(segmentation, list):
        return _fill_polygons(segmentation, height, width)
    if isinstance(segmentation["counts"], list):
        return {"size": [height, width], "counts": rle_codec.compress_counts(segmentation["counts"])}
    return {"size": [height, width], "counts": segmentation["counts"].encode("ascii")}


def _fill_polygons(polygons: list[list[float]], height: int, width: int) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    # pycocotools holds coordinates as int32 after multiplying by 5; far outside is as good as a little outside.
    limit = 4 * max(height, width, 1)
    parts = [
        [min(max(float(number), -limit), limit) for number in polygon]
        for polygon in polygons
        if len(polygon) >= _LEAST_NUMBERS
    ]
    rle = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    return {"size": [height, width], "counts": rle["counts"]}
