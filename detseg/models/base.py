"""The contract that every model of detseg keeps: samples to losses in training, images to Predictions in evaluation."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from detseg.errors import DataError
from detseg.structures.predictions import Predictions, fit_windows, soft_mask_windows
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from typing_extensions import Self


class Segmenter(nn.Module):
    """An instance segmentation model.

    Attributes:
        trains_everything: whether every parameter to train is part of every training pass, also of images without
            objects (with a gradient of zero). Several processes then need not look for those that are not.
        pretrained_prefix: how the names of the parameters begin that were pretrained for classification; they learn at
            SOLVER.BACKBONE_MULTIPLIER times the rate. A feature pyramid is no part of them.
    """

    trains_everything = False
    pretrained_prefix = "backbone."

    @abstractmethod
    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the named losses (scalars, to be summed) of a batch. Images may differ in size."""

    @abstractmethod
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
        """Find the objects of images; runs in evaluation mode and without gradients.

        images: B arrays (H, W, C) as in Sample, at the size at which the model shall see them.
        output_sizes: (height, width) of the original images, in whose pixels the answer is given; None for the sizes of
            `images`.
        boxes: B arrays (N, 4) XYXY in pixels of the output size: only masks are predicted, for these boxes. The answer
            holds them in their order, all of them. `classes` (N,) is needed where masks depend on the class; `scores`
            (N,), ones where None, are passed on.
        soft_masks: keep the probabilities of the pixels of every box too.

        image_id and file_name of the answer are left to the caller.
        """

    def look(self, images: Sequence[np.ndarray], *, output_sizes: Sequence[tuple[int, int]] | None = None) -> Look:
        """Look at images, as `predict`, to ask for boxes first and for the masks of any boxes later.

        A model that can keep its features between the two overrides this.
        """
        return Look(self, images, output_sizes)

    def prefer_speed(self) -> Self:
        """Lay out and compute for speed, at the price of other rounding than the reference's; return self.

        Weights get channels last in memory, with which convolutions are faster on CPUs and in mixed precision. The
        state_dict stays what it is. Without this call a model reproduces its reference as closely as it can.
        """
        # oneDNN 3.13 (PyTorch 2.15) writes beyond the gradient of 1 x 1 convolutions of stride 2 with fewer channels
        # than a vector holds, where channels are last: such narrow networks stay as they are.
        narrow = any(
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and layer.stride != (1, 1)
            and layer.in_channels < 16
            for layer in self.modules()
        )
        return self if narrow else self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device


class Look:
    """A batch of images that a model looks at, by asking `Segmenter.predict` again for every question."""

    def __init__(
        self, model: Segmenter, images: Sequence[np.ndarray], output_sizes: Sequence[tuple[int, int]] | None
    ) -> None:
        self.output_sizes = output_sizes or [image.shape[:2] for image in images]
        self._model = model
        self._images = images

    def boxes(self) -> list[Predictions]:
        """Return the detections without masks (`rles` None)."""
        found = self._model.predict(self._images, output_sizes=self.output_sizes)
        return [dataclasses.replace(answer, rles=None, soft_masks=None) for answer in found]

    def soft_masks(self, boxes: Sequence[np.ndarray], classes: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Return N crops of probability for the boxes (N, 4) of every image, in pixels of the output, and classes (N,).

        Crops are uint8 as `Predictions.soft_masks`, of the windows of the boxes cut off at the image's border.

        Raises:
            DataError: the model gives no probabilities.
        """
        answers = self._model.predict(
            self._images, output_sizes=self.output_sizes, boxes=boxes, classes=classes, soft_masks=True
        )
        crops = []
        for given, answer in zip(boxes, answers, strict=True):
            if answer.soft_masks is None:
                raise DataError(f"{type(self._model).__name__} gives no mask probabilities for given boxes")
            size = answer.height, answer.width
            old, new = soft_mask_windows(answer.boxes, *size), soft_mask_windows(given, *size)
            crops.append(fit_windows(answer.soft_masks, old, new))
        return crops
