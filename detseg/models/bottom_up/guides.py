"""Guides: additional input channels, computed from the image, that a network would otherwise have to learn.

Each is computed from the gray value, the mean of the normalized channels, and is equivariant to rotations by 90
degrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.models.image_input import ImageBatch, ImageInput


def _smoothed(gray: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (h, w), with border pixels replicated."""
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=gray.dtype, device=gray.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel /= kernel.sum()
    padded = F.pad(gray[None, None], [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0, 0]


def edges(gray: Tensor) -> Tensor:
    """Gradient magnitude of (h, w) at a scale of one pixel."""
    padded = F.pad(_smoothed(gray, 1.0)[None, None], [1] * 4, mode="replicate")[0, 0]
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    return torch.hypot(across, down) / 2


def contours(gray: Tensor) -> Tensor:
    """Difference of Gaussians: how much brighter a pixel is than its surroundings, at the scale of rims and halos."""
    return _smoothed(gray, 1.0) - _smoothed(gray, 3.0)


def contrast(gray: Tensor) -> Tensor:
    """Gray value in standard deviations from the mean of its surroundings, about 48 pixels across."""
    difference = gray - _smoothed(gray, 8.0)
    # so that the noise of flat regions is not amplified
    return difference / (_smoothed(difference**2, 8.0).sqrt() + 0.1)


GUIDES: dict[str, Callable[[Tensor], Tensor]] = {"edges": edges, "contours": contours, "contrast": contrast}


class GuidedInput(ImageInput):
    """ImageInput that appends guides, by their names in GUIDES, to the channels of the image."""

    guides: Sequence[str] = ()

    def forward(self, images: Sequence[np.ndarray], device: torch.device) -> ImageBatch:
        """See ImageInput.forward; zeros in the padding here too."""
        batch = super().forward(images, device)
        if not self.guides:
            return batch
        shape = (len(images), len(self.guides), *batch.tensor.shape[2:])
        added = batch.tensor.new_zeros(shape)
        # small differences of large numbers need full precision
        with torch.autocast(device.type, enabled=False):
            for image, place, (height, width) in zip(batch.tensor, added, batch.sizes, strict=True):
                gray = image[:, :height, :width].mean(dim=0)
                for channel, name in zip(place, self.guides, strict=True):
                    channel[:height, :width] = GUIDES[name](gray)
        return ImageBatch(torch.cat([batch.tensor, added], dim=1), batch.sizes)
