"""Postprocessing of very large images in blocks, with memory that does not grow with the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from detseg.fusion.postprocess import Postprocess
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

# Larger images are postprocessed in blocks of this edge, each with the objects up to HALO around it.
BLOCK = 4096
HALO = 512


def apply_in_blocks(
    postprocess: Postprocess, predictions: Predictions, *, block: int = BLOCK, halo: int = HALO
) -> Predictions:
    """Apply `Postprocess.apply`, block by block if the image is larger than a block.

    Each block is processed with the objects up to `halo` pixels around it, and keeps those whose box centre then lies
    in it. The result is that of the whole image unless a chain of overlaps, each changed by the previous one, is longer
    than the halo.
    """
    height, width = predictions.height, predictions.width
    if max(height, width) <= block or predictions.rles is None:
        return postprocess.apply(predictions)
    # Values chosen per image must not differ between blocks.
    postprocess, predictions = postprocess.of_image(predictions)
    boxes = predictions.boxes
    parts = [predictions.select(np.zeros(0))]
    for y in range(0, height, block):
        for x in range(0, width, block):
            near = (boxes[:, 0] < x + block + halo) & (boxes[:, 2] > x - halo)
            near &= (boxes[:, 1] < y + block + halo) & (boxes[:, 3] > y - halo)
            if near.any():
                done = _apply_in_window(postprocess, predictions.select(near))
                middle = (done.boxes[:, :2] + done.boxes[:, 2:]) / 2
                inside = (middle >= [x, y]) & (middle < [x + block, y + block])
                parts.append(done.select(inside.all(axis=1)))
    together = joined(parts)
    return together.best_first()


def _apply_in_window(postprocess: Postprocess, predictions: Predictions) -> Predictions:
    """Apply within the smallest window that contains all objects, instead of the whole image."""
    tight = rle_codec.bounding_boxes(predictions.rles)
    low = np.floor(np.minimum(predictions.boxes, tight)[:, :2].min(axis=0)).astype(int)
    high = np.ceil(np.maximum(predictions.boxes, tight)[:, 2:].max(axis=0)).astype(int)
    x0, y0 = np.maximum(low, 0).tolist()
    x1, y1 = np.minimum(high, [predictions.width, predictions.height]).tolist()
    inside = postprocess.apply(_moved(predictions, -x0, -y0, y1 - y0, x1 - x0))
    return _moved(inside, x0, y0, predictions.height, predictions.width)


def _moved(predictions: Predictions, right: int, down: int, height: int, width: int) -> Predictions:
    """Return the same objects shifted by (right, down) in an image of height x width."""
    masks = rle_codec.read_runs(predictions.rles).moved(right, down, height, width)
    return dataclasses.replace(
        predictions,
        height=height,
        width=width,
        boxes=predictions.boxes + np.float32([right, down, right, down]),
        rles=rle_codec.encode_runs(masks),
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate Predictions of one image; with masks and soft masks if all parts have them."""
    has_masks, has_soft = (all(getattr(part, name) is not None for part in parts) for name in ("rles", "soft_masks"))
    return dataclasses.replace(
        parts[0],
        boxes=np.concatenate([part.boxes for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        classes=np.concatenate([part.classes for part in parts]),
        rles=[rle for part in parts for rle in part.rles] if has_masks else None,
        soft_masks=[mask for part in parts for mask in part.soft_masks] if has_soft else None,
        quality=np.concatenate([part.quality for part in parts]),
    )
