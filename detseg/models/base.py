"""The interface of all models: samples to losses in training, images to Predictions in evaluation."""

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
        trains_everything: whether every trainable parameter takes part in every training pass, also for images without
            objects (with a zero gradient). DistributedDataParallel then need not search for unused ones.
        pretrained_prefix: prefix of the names of parameters that were pretrained for classification, without a feature
            pyramid; their learning rate is multiplied by SOLVER.BACKBONE_MULTIPLIER.
        gives_soft_masks: whether `predict` can return mask probabilities.
        takes_boxes: whether it predicts masks for given boxes: a RegionSegmenter with masks.
        largest_object: longest side of the objects that it is meant for, in pixels at network scale. Tiles of a large
            image overlap by this and some context.
    """

    trains_everything = False
    pretrained_prefix = "backbone."
    gives_soft_masks = False
    takes_boxes = False
    largest_object = 128.0

    @abstractmethod
    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the losses of a batch under names that start with `loss` (scalars, to be summed), and values that are
        only logged under other names. Images may differ in size."""

    @abstractmethod
    def predict(
        self,
        images: Sequence[np.ndarray],
        output_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """Predict the objects of images, in evaluation mode and without gradients.

        Args:
            images: arrays (H, W, C) as in Sample, at network scale.
            output_sizes: (height, width) of the original images, in whose pixels the predictions are; None for the
                sizes of `images`.
            soft_masks: also return the probabilities of the pixels of every box; only for models with
                `gives_soft_masks`.

        Returns:
            Predictions of every image; image_id and file_name are set by the caller.
        """

    def require_evaluation_mode(self) -> None:
        """Raise RuntimeError in training mode, in which predictions would differ."""
        if self.training:
            raise RuntimeError("predict() needs the model in evaluation mode: call model.eval() first")

    def prefer_speed(self) -> Self:
        """Choose memory layout and kernels for speed, with other rounding than the reference; return self.

        Weights get the channels_last memory format, with which convolutions are faster on CPUs and in mixed precision.
        The state_dict is unchanged. Without this call a model reproduces its reference as closely as possible.
        """
        # With channels_last, oneDNN 3.13 (PyTorch 2.15) writes out of bounds in the gradient of 1 x 1 convolutions with
        # stride 2 and fewer channels than a vector has: such narrow networks are not converted.
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
    """Return the sum of the losses from a model's `forward`, without values that are only logged."""
    return sum(value for name, value in losses.items() if name.startswith("loss"))


def check_finite(what: str, *values: Tensor) -> None:
    """Raise OutputError if a network output is not finite: selections would silently drop it and find nothing."""
    # One transfer from the GPU for all tensors, because it takes longer than the check. A sum is not finite if a value
    # is not, and takes a tenth of the time; but it may also overflow.
    if not values or bool(torch.stack([value.sum(dtype=torch.float32) for value in values]).isfinite().all()):
        return
    if not all(bool(value.isfinite().all()) for value in values):
        raise OutputError(
            f"the model's {what} are not finite (NaN or infinity), so its predictions are invalid. Its weights "
            "diverged in training, or overflow in half precision or with these intensities: predict with --precision "
            "float32, or "
            "use an earlier checkpoint"
        )


def check_image(image: np.ndarray, channels: int) -> None:
    """Raise DataError unless an image is (H, W, channels) with pixels."""
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise DataError(
            f"the model takes images (height, width, {channels}) with pixels, but got {image.shape}; "
            "MODEL.PIXEL_MEAN has one value per channel, INPUT.CHANNELS selects those of a file"
        )
