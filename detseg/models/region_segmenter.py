"""Models that detect boxes first and then predict masks for boxes, their own or external ones.

Features are kept in between (`CachedFeatures`), so that test-time augmentation can merge the boxes of several views
before it requests the masks of the merged boxes from every view.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detseg.errors import DataError
from detseg.models.base import Segmenter, check_finite
from detseg.models.paste import paste_masks
from detseg.structures.boxes import clip_boxes
from detseg.structures.predictions import Predictions

# Function of scores (N,) and classes (N,): which detections are kept, (N,) bool.
Keep = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Detections:
    """D objects found in one image, best first, in pixels at network scale.

    boxes: (D, 4) XYXY. scores: (D,). classes: (D,) int64. masks: (D, s, s) probabilities within the boxes, from
    networks that compute boxes and masks together; None: they come from `RegionSegmenter.region_masks`.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None

    def __getitem__(self, index: Tensor) -> Detections:
        """Return the subset with the indices (n,) int64."""
        masks = None if self.masks is None else self.masks[index]
        return Detections(self.boxes[index], self.scores[index], self.classes[index], masks)


@dataclass(frozen=True)
class RegionMasks:
    """The masks of N boxes of one image.

    probabilities: (N, s, s) within the boxes. quality: (N,) predicted IoU, above 0 and up to 1, of each mask with its
    object; None if the model does not predict it.
    """

    probabilities: Tensor
    quality: Tensor | None = None

    def on_cpu(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return both as float32. Raises OutputError if they are not finite."""
        check_finite("mask probabilities", self.probabilities)
        probabilities = self.probabilities.float().cpu().numpy()
        if self.quality is None:
            return probabilities, None
        check_finite("mask qualities", self.quality)
        return probabilities, self.quality.float().cpu().numpy()


class RegionSegmenter(Segmenter):
    """A model that detects boxes first and then predicts masks for boxes, its own or external ones.

    Subclasses implement `extract`, `detect` and `region_masks`, which run in evaluation mode and without gradients;
    their boxes are in pixels at network scale.

    Attributes:
        has_mask_head: whether there are masks at all.
        masks_apart: whether there are masks that come from `region_masks`, not from `detect`.
        mask_dtype: dtype in which `region_masks` computes; None for that of everything else.
    """

    has_mask_head = True
    mask_dtype: torch.dtype | None = None

    @property
    def masks_apart(self) -> bool:
        """See the class."""
        return self.has_mask_head

    @property
    def gives_soft_masks(self) -> bool:
        """See Segmenter."""
        return self.has_mask_head

    @property
    def takes_boxes(self) -> bool:
        """See Segmenter."""
        return self.has_mask_head

    @abstractmethod
    def extract(self, images: Sequence[np.ndarray]) -> Any:
        """Return the features of images (H, W, C), in the form for the other two methods."""

    @abstractmethod
    def detect(self, features: Any) -> list[Detections]:
        """Find the objects of every image."""

    @abstractmethod
    def region_masks(self, features: Any, boxes: list[Tensor], classes: list[Tensor]) -> list[RegionMasks]:
        """Return the masks within the boxes (N, 4), of classes (N,), of every image."""

    def cache_features(
        self, images: Sequence[np.ndarray], output_sizes: Sequence[tuple[int, int]] | None = None
    ) -> CachedFeatures:
        """Compute the features of images once, for boxes and masks; arguments as in `predict`."""
        return CachedFeatures(self, images, output_sizes)

    def predict(
        self,
        images: Sequence[np.ndarray],
        output_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """See Segmenter.predict."""
        return self.cache_features(images, output_sizes).predict(soft_masks=soft_masks) if len(images) else []

    def predict_masks(
        self,
        images: Sequence[np.ndarray],
        boxes: Sequence[Predictions],
        output_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """Predict masks for boxes in pixels of the output, keeping their number, order, scores and classes.

        A model that predicts mask quality multiplies the scores by it; earlier qualities are replaced.

        Raises:
            DataError: the model has no mask head.
        """
        return self.cache_features(images, output_sizes).predict_masks(boxes, soft_masks=soft_masks)


class CachedFeatures:
    """The features of a batch of images, kept to predict boxes first and the masks of any boxes later.

    Arguments as in `Segmenter.predict`; all predictions are in pixels of the output.
    """

    def __init__(
        self,
        model: RegionSegmenter,
        images: Sequence[np.ndarray],
        output_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        model.require_evaluation_mode()
        self.model = model
        self.sizes = [image.shape[:2] for image in images]
        self.output_sizes = self.sizes if output_sizes is None else output_sizes
        with torch.inference_mode():
            self._features = model.extract(images)

    @torch.inference_mode()
    def predict(self, *, masks: bool = True, soft_masks: bool = False, keep: Keep | None = None) -> list[Predictions]:
        """Return the detections of every image, best first; only boxes (`rles` None) if `masks` is False.

        keep: detections that it excludes are dropped before masks are computed.
        """
        found, answers = [], []
        for one, size, output in zip(self.model.detect(self._features), self.sizes, self.output_sizes, strict=True):
            boxes = scale_boxes(one.boxes, size, output).cpu().numpy()
            scores, classes = one.scores.float().cpu().numpy(), one.classes.cpu().numpy()
            # clipping at the border can leave boxes without area
            kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            kept = kept if keep is None else kept & keep(scores, classes)
            found.append(one[torch.from_numpy(np.flatnonzero(kept)).to(one.boxes.device)])
            answers.append((boxes[kept], scores[kept], classes[kept]))
        given = [None if one.masks is None else RegionMasks(one.masks) for one in found]
        if not masks:
            given = [None] * len(found)
        elif self.model.has_mask_head and None in given:
            given = self._region_masks([one.boxes for one in found], [one.classes for one in found])
        return [
            _with_masks(*answer, None if mask is None else mask.on_cpu(), output, soft_masks).best_first()
            for answer, mask, output in zip(answers, given, self.output_sizes, strict=True)
        ]

    @torch.inference_mode()
    def predict_masks(self, boxes: Sequence[Predictions], *, soft_masks: bool = False) -> list[Predictions]:
        """See RegionSegmenter.predict_masks."""
        # Boxes are not rescaled to the network and back, which would change them by rounding.
        return [
            _with_masks(clip_boxes(given.boxes, *size), given.class_scores, given.classes, masks, size, soft_masks)
            for given, masks, size in zip(boxes, self.region_masks(boxes), self.output_sizes, strict=True)
        ]

    @torch.inference_mode()
    def region_masks(self, boxes: Sequence[Predictions]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Return the probabilities (N, s, s) float32 of the masks within the N boxes of every image, not pasted, and
        their qualities (N,) float32, or None if the model does not predict them.
        """
        if not self.model.has_mask_head:
            raise DataError("masks for given boxes need a model with a mask head (MODEL.MASK_ON)")
        device = self.model.device
        scaled, classes = [], []
        for given, size, output in zip(boxes, self.sizes, self.output_sizes, strict=True):
            scaled.append(scale_boxes(torch.from_numpy(given.boxes).to(device), output, size))
            classes.append(torch.from_numpy(given.classes).to(device))
        return [masks.on_cpu() for masks in self._region_masks(scaled, classes)]

    def _region_masks(self, boxes: list[Tensor], classes: list[Tensor]) -> list[RegionMasks]:
        """See RegionSegmenter.region_masks; in the dtype of masks."""
        dtype = self.model.mask_dtype
        with nullcontext() if dtype is None else torch.autocast(self.model.device.type, dtype=dtype):
            return self.model.region_masks(self._features, boxes, classes)


def scale_boxes(boxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Rescale boxes (N, 4) from an image of one (height, width) to another and clip them."""
    x, y = to_size[1] / from_size[1], to_size[0] / from_size[0]
    scaled = boxes * boxes.new_tensor([x, y, x, y])
    return scaled.clamp(min=scaled.new_zeros(4), max=scaled.new_tensor([to_size[1], to_size[0]] * 2))


def _with_masks(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    masks: tuple[np.ndarray, np.ndarray | None] | None,
    size: tuple[int, int],
    soft_masks: bool,
) -> Predictions:
    """Paste masks, from `RegionMasks.on_cpu`, into an image of `size` (height, width); None for boxes only."""
    if masks is None:
        return Predictions(0, "", *size, boxes, scores, classes)
    probabilities, quality = masks
    rles, soft = paste_masks(probabilities, boxes, *size, soft_masks=soft_masks)
    predictions = Predictions(0, "", *size, boxes, scores, classes, rles, soft)
    return predictions if quality is None else predictions.with_quality(quality)
