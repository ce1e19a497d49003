"""Detections in the pixels of the model; the answers and questions of `Segmenter.predict` in those of the output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detseg.errors import DataError
from detseg.models.rcnn.box_coding import clip_boxes
from detseg.models.rcnn.box_head import Detections
from detseg.models.rcnn.paste import paste_rles, paste_soft_masks
from detseg.structures.predictions import Predictions


def given_detections(
    boxes: Sequence[np.ndarray],
    classes: Sequence[np.ndarray] | None,
    scores: Sequence[np.ndarray] | None,
    *,
    sizes: Sequence[tuple[int, int]],
    output_sizes: Sequence[tuple[int, int]],
    device: torch.device,
) -> list[Detections]:
    """Bring the boxes of B images, (N, 4) in pixels of the output, to the model's pixels.

    classes, scores: (N,) of each image; zeros and ones where None.

    Raises:
        DataError: other numbers of classes or scores than of boxes.
    """
    given = []
    for index, (image_boxes, size, output_size) in enumerate(zip(boxes, sizes, output_sizes, strict=True)):
        count = len(image_boxes)
        image_classes = np.zeros(count, dtype=np.int64)
        if classes is not None:
            image_classes = np.array(classes[index], dtype=np.int64)
        image_scores = np.ones(count, dtype=np.float32)
        if scores is not None:
            image_scores = np.array(scores[index], dtype=np.float32)
        if not len(image_classes) == len(image_scores) == count:
            raise DataError(f"{count} boxes, {len(image_classes)} classes and {len(image_scores)} scores for one image")
        tensor = torch.from_numpy(np.array(image_boxes, dtype=np.float32).reshape(-1, 4)).to(device)
        given.append(
            Detections(
                scale_boxes(tensor, output_size, size),
                torch.from_numpy(image_scores).to(device),
                torch.from_numpy(image_classes).to(device),
            )
        )
    return given


def scale_boxes(boxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Bring boxes (N, 4) from an image of one (height, width) to another and cut them off at its border."""
    x, y = to_size[1] / from_size[1], to_size[0] / from_size[0]
    return clip_boxes(boxes * boxes.new_tensor([x, y, x, y]), to_size)


def to_predictions(
    found: Detections,
    masks: Tensor | None,
    size: tuple[int, int],
    output_size: tuple[int, int],
    *,
    soft_masks: bool,
    drop_empty: bool,
) -> Predictions:
    """Answer in pixels of the output; what clipping leaves without area is dropped where `drop_empty`.

    masks: (D, s, s) probabilities. size, output_size: (height, width) of the image as the model saw it, and of the
    output.
    """
    height, width = output_size
    boxes = scale_boxes(found.boxes, size, output_size).cpu().numpy()
    keep = slice(None)
    if drop_empty:
        keep = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    boxes = boxes[keep]
    rles = soft = None
    if masks is not None:
        probabilities = masks.float().cpu().numpy()[keep]
        rles = paste_rles(probabilities, boxes, height, width)
        soft = paste_soft_masks(probabilities, boxes, height, width) if soft_masks else None
    return Predictions(
        image_id=0,
        file_name="",
        height=height,
        width=width,
        boxes=boxes,
        scores=found.scores.float().cpu().numpy()[keep],
        classes=found.classes.cpu().numpy()[keep],
        rles=rles,
        soft_masks=soft,
    )
