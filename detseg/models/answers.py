"""Detections in the pixels of the model; the answers and questions of `Segmenter.predict` in those of the output."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from detseg.errors import DataError
from detseg.models.base import Look, Segmenter
from detseg.models.rcnn.box_head import Detections
from detseg.models.rcnn.boxes import clip_boxes
from detseg.models.rcnn.paste import paste_masks, paste_soft_masks
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


class RegionLook(Look):
    """A batch whose features are kept: see Segmenter.look.

    sizes: (height, width) of every image as the model sees it. detect: finds the boxes, in those pixels. masks: gives
    the probabilities (N, s, s) of boxes and classes of every image; None for a model without masks. needs_classes:
    whether masks depend on the class.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[tuple[int, int]],
        output_sizes: Sequence[tuple[int, int]] | None,
        detect: Callable[[], list[Detections]],
        masks: Callable[[list[Tensor], list[Tensor]], list[Tensor]] | None,
        needs_classes: bool,
        device: torch.device,
    ) -> None:
        self.sizes = sizes
        self.output_sizes = sizes if output_sizes is None else output_sizes
        self._detect = detect
        self._masks = masks
        self._needs_classes = needs_classes
        self._device = device

    @torch.inference_mode()
    def boxes(self) -> list[Predictions]:
        """See Look.boxes."""
        found = self._detect()
        return [
            to_predictions(one, None, scale_boxes(one.boxes, size, output).cpu().numpy(), output, drop_empty=True)
            for one, size, output in zip(found, self.sizes, self.output_sizes, strict=True)
        ]

    @torch.inference_mode()
    def soft_masks(self, boxes: Sequence[np.ndarray], classes: Sequence[np.ndarray] | None) -> list[list[np.ndarray]]:
        """See Look.soft_masks."""
        _, masks, places = self._of_given(boxes, classes, None)
        return [
            paste_soft_masks(mask.float().cpu().numpy(), place, *output)
            for mask, place, output in zip(masks, places, self.output_sizes, strict=True)
        ]

    @torch.inference_mode()
    def detections(self, *, soft_masks: bool) -> list[Predictions]:
        """Return the detections with their masks."""
        found = self._detect()
        masks = [None] * len(found)
        if self._masks is not None:
            masks = self._masks([one.boxes for one in found], [one.classes for one in found])
        return [
            to_predictions(
                one,
                mask,
                scale_boxes(one.boxes, size, output).cpu().numpy(),
                output,
                soft_masks=soft_masks,
                drop_empty=True,
            )
            for one, mask, size, output in zip(found, masks, self.sizes, self.output_sizes, strict=True)
        ]

    @torch.inference_mode()
    def given(
        self,
        boxes: Sequence[np.ndarray],
        classes: Sequence[np.ndarray] | None,
        scores: Sequence[np.ndarray] | None,
        *,
        soft_masks: bool,
    ) -> list[Predictions]:
        """Return given boxes with their masks: see the `boxes` of Segmenter.predict."""
        found, masks, places = self._of_given(boxes, classes, scores)
        return [
            to_predictions(one, mask, place, output, soft_masks=soft_masks)
            for one, mask, place, output in zip(found, masks, places, self.output_sizes, strict=True)
        ]

    def _of_given(
        self, boxes: Sequence[np.ndarray], classes: Sequence[np.ndarray] | None, scores: Sequence[np.ndarray] | None
    ) -> tuple[list[Detections], list[Tensor], list[np.ndarray]]:
        """Return boxes in the model's pixels, their masks, and the boxes (N, 4) float32 in pixels of the output.

        The latter are those given, cut off at the border: scaled there and back they would be others.
        """
        if self._masks is None:
            raise DataError("masks for given boxes need a model with a mask head (MODEL.MASK_ON)")
        if classes is None and self._needs_classes:
            raise DataError("this model has a mask for each class: masks for given boxes need their `classes`")
        found = given_detections(
            boxes, classes, scores, sizes=self.sizes, output_sizes=self.output_sizes, device=self._device
        )
        places = []
        for image_boxes, (height, width) in zip(boxes, self.output_sizes, strict=True):
            limits = np.array([width, height, width, height], dtype=np.float32)
            places.append(np.clip(np.asarray(image_boxes, dtype=np.float32).reshape(-1, 4), 0, limits))
        return found, self._masks([one.boxes for one in found], [one.classes for one in found]), places


class RegionSegmenter(Segmenter):
    """A model that finds boxes first and then gives masks to boxes, its own or others': all answers come of `look`."""

    @abstractmethod
    def look(
        self, images: Sequence[np.ndarray], *, output_sizes: Sequence[tuple[int, int]] | None = None
    ) -> RegionLook:
        """See Segmenter.look."""

    def predict(
        self,
        images: Sequence[np.ndarray],
        *,
        output_sizes: Sequence[tuple[int, int]] | None = None,
        boxes: Sequence[np.ndarray] | None = None,
        classes: Sequence[np.ndarray] | None = None,
        scores: Sequence[np.ndarray] | None = None,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """See Segmenter.predict."""
        if len(images) == 0:
            return []
        look = self.look(images, output_sizes=output_sizes)
        if boxes is None:
            return look.detections(soft_masks=soft_masks)
        return look.given(boxes, classes, scores, soft_masks=soft_masks)


def to_predictions(
    found: Detections,
    masks: Tensor | None,
    boxes: np.ndarray,
    output_size: tuple[int, int],
    *,
    soft_masks: bool = False,
    drop_empty: bool = False,
) -> Predictions:
    """Answer in pixels of the output; what clipping left without area is dropped where `drop_empty`.

    masks: (D, s, s) probabilities. boxes: (D, 4) float32 in pixels of the output, whose (height, width) is output_size.
    """
    height, width = output_size
    keep = slice(None)
    if drop_empty:
        keep = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    boxes = boxes[keep]
    rles = soft = None
    if masks is not None:
        rles, soft = paste_masks(masks.float().cpu().numpy()[keep], boxes, height, width, soft_masks=soft_masks)
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
