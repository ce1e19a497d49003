"""The contract that every model of detseg keeps: samples to losses in training, images to Predictions in evaluation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from detseg.errors import DataError, OutputError
from detseg.structures.predictions import Predictions
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
        gives_soft_masks: whether `predict` can keep the probabilities of its masks.
        takes_boxes: whether it gives masks to boxes that something else has found: a RegionSegmenter with masks.
        largest_object: the longest side of the objects that it is made for, in pixels of the image as the network sees
            it. Tiles of a large image overlap by this and some context.
    """

    trains_everything = False
    pretrained_prefix = "backbone."
    gives_soft_masks = False
    takes_boxes = False
    largest_object = 128.0

    @abstractmethod
    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the losses of a batch by names that begin with `loss` (scalars, to be summed), and by other names what
        is only logged. Images may differ in size."""

    @abstractmethod
    def predict(
        self,
        images: Sequence[np.ndarray],
        output_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """Find the objects of images; runs in evaluation mode and without gradients.

        Args:
            images: arrays (H, W, C) as in Sample, at the size at which the network shall see them.
            output_sizes: (height, width) of the original images, in whose pixels the predictions are; None for the
                sizes of `images`.
            soft_masks: keep the probabilities of the pixels of every box too; asked only of models that
                `gives_soft_masks`.

        Returns:
            Predictions of every image; image_id and file_name are left to the caller.
        """

    def require_evaluation_mode(self) -> None:
        """Raise RuntimeError in training mode, in which predictions would be others."""
        if self.training:
            raise RuntimeError("predict() needs the model in evaluation mode: call model.eval() before")

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


def total_loss(losses: Mapping[str, Tensor | float]) -> Tensor | float:
    """The sum of what a model's `forward` returned as losses, without what is only logged."""
    return sum(value for name, value in losses.items() if name.startswith("loss"))


def check_finite(what: str, *values: Tensor) -> None:
    """Raise OutputError where an output of a network is not finite: selections would drop it and find nothing."""
    # One transfer from the GPU for all tensors: that takes longer than the check itself. What is not finite makes the
    # sum so, which is found in a tenth of the time; a sum may overflow by itself.
    if not values or bool(torch.stack([value.sum(dtype=torch.float32) for value in values]).isfinite().all()):
        return
    if not all(bool(value.isfinite().all()) for value in values):
        raise OutputError(
            f"the model's {what} are not finite (NaN or infinity), so nothing it says counts. Its weights diverged in "
            "training, or overflow in half precision or at such intensities: predict with --precision float32, or take "
            "an earlier checkpoint"
        )


def check_image(image: np.ndarray, channels: int) -> None:
    """Raise DataError unless an image is (H, W, channels) with pixels."""
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise DataError(
            f"the model takes images (height, width, {channels}) with pixels, but got {image.shape}; "
            "MODEL.PIXEL_MEAN has one value per channel, INPUT.CHANNELS says which of a file's are taken"
        )
