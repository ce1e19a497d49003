"""Single objects among their neighbours, cut out of their image and enlarged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detseg.report.drawing import draw_objects, resize_display
from detseg.structures import rle as rle_codec

Rles = Sequence[Mapping[str, Any]]
Box = tuple[int, int, int, int]


def window_around(box: Sequence[float], side: int, height: int, width: int) -> Box:
    """Return a square XYXY of `side` pixels around the centre of a box, moved into the image where it can be."""
    wide, high = min(side, width), min(side, height)
    left = int(np.clip((box[0] + box[2] - wide) / 2, 0, width - wide))
    top = int(np.clip((box[1] + box[3] - high) / 2, 0, height - high))
    return left, top, left + wide, top + high


def draw_close_up(
    picture: np.ndarray,
    window: Box,
    masks: Sequence[tuple[Rles, tuple[int, int, int], int]],
    *,
    side: int,
    painted: Mapping[str, Any] | None = None,
    paint: tuple[int, int, int] = (0, 0, 0),
    background: int = 255,
) -> np.ndarray:
    """Return what a window XYXY shows of a picture (H, W, 3) uint8, enlarged to (side, side, 3).

    masks: (masks of the image, their colour, width of the lines), the later ones over the earlier ones. painted: a mask
    whose pixels get the colour `paint`.
    """
    x0, y0, x1, y1 = window
    scale = side / max(x1 - x0, y1 - y0)
    shown = resize_display(np.ascontiguousarray(picture[y0:y1, x0:x1]), scale)
    for rles, shade, line_width in masks:
        cut = _cut(rles, window)
        shown = draw_objects(shown, cut, [shade] * len(cut), scale, line_width)
    for rle in _cut([painted], window) if painted else []:
        mask = rle_codec.decode(rle)
        rows, columns = (
            np.minimum((np.arange(length) / scale).astype(np.int64), limit - 1)
            for length, limit in zip(shown.shape, mask.shape, strict=False)
        )
        where = mask[rows][:, columns]
        shown[where] = shown[where] // 3 + np.array(paint, dtype=np.uint8) // 3 * 2
    canvas = np.full((side, side, 3), background, dtype=np.uint8)
    canvas[: shown.shape[0], : shown.shape[1]] = shown[:side, :side]
    return canvas


def _cut(rles: Rles, window: Box) -> list[dict[str, Any]]:
    """Return what a window shows of masks; those outside of it are left out."""
    x0, y0, x1, y1 = window
    boxes = rle_codec.bounding_boxes(rles).reshape(-1, 4)
    near = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
    crops = rle_codec.decode_crops([rles[index] for index in np.flatnonzero(near)])
    cut = [part.moved(-x0, -y0) for crop in crops if (part := crop.within(window)).mask.any()]
    return rle_codec.encode_crops(cut, y1 - y0, x1 - x0)
