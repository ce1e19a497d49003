"""Images as network input: channel order, normalization, padding to a common size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from detseg.models.base import check_image
from detseg.models.options import ImageInputOptions


@dataclass(frozen=True)
class ImageBatch:
    """tensor: (B, C, H, W) float32; sizes: (height, width) of every image without the padding."""

    tensor: Tensor
    sizes: list[tuple[int, int]]


class ImageInput(nn.Module):
    """Normalize images and pad them with zeros, on the right and at the bottom, to a common size.

    pixel_mean, pixel_std: per channel of the model, so in BGR order with `bgr`. bgr: images with three channels are RGB
    and get reversed.
    """

    def __init__(
        self, *, pixel_mean: Sequence[float], pixel_std: Sequence[float], bgr: bool, size_divisibility: int = 1
    ) -> None:
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ValueError(f"{len(pixel_mean)} pixel means, but {len(pixel_std)} standard deviations")
        self.reverse = bgr and len(pixel_mean) == 3
        self.size_divisibility = max(size_divisibility, 1)
        self.mean = tuple(pixel_mean)
        self.std = tuple(pixel_std)

    @classmethod
    def from_options(cls, options: ImageInputOptions, *, size_divisibility: int) -> ImageInput:
        """Create from the configuration; sides are padded to multiples of `size_divisibility`."""
        return cls(
            pixel_mean=options.pixel_mean,
            pixel_std=options.pixel_std,
            bgr=options.channel_order == "BGR",
            size_divisibility=size_divisibility,
        )

    def forward(self, images: Sequence[np.ndarray], device: torch.device) -> ImageBatch:
        """Create a batch from B arrays (H, W, C)."""
        channels, step = len(self.mean), self.size_divisibility
        for image in images:
            check_image(image, channels)
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        height = -(-max(size[0] for size in sizes) // step) * step
        width = -(-max(size[1] for size in sizes) // step) * step
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device)
        std = torch.tensor(self.std, dtype=torch.float32, device=device)
        batch = torch.zeros((len(images), channels, height, width), dtype=torch.float32, device=device)
        for place, image in zip(batch, images, strict=True):
            pixels = _to_tensor(image).to(device).float()
            if self.reverse:
                pixels = pixels.flip(-1)
            place[:, : image.shape[0], : image.shape[1]] = ((pixels - mean) / std).permute(2, 0, 1)
        return ImageBatch(batch, sizes)


def _to_tensor(image: np.ndarray) -> Tensor:
    if image.dtype not in (np.uint8, np.float32):
        image = image.astype(np.float32)
    if not image.flags.writeable or not image.flags.c_contiguous:
        image = np.array(image, order="C")
    return torch.from_numpy(image)
