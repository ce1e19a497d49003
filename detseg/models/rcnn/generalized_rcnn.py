"""Backbone, RPN and region heads put together: Mask R-CNN and its relatives (Detectron2's GeneralizedRCNN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from detseg.models.base import check_image
from detseg.models.rcnn.layers import ConvNorm
from detseg.models.rcnn.roi_align import Pooler
from detseg.models.rcnn.rpn import RPN
from detseg.models.rcnn.targets import Targets
from detseg.models.region_segmenter import Detections, RegionSegmenter
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from typing_extensions import Self


# Images as the model's input: channel order, normalisation, padding to one size.


@dataclass(frozen=True)
class ImageBatch:
    """tensor: (B, C, H, W) float32; sizes: (height, width) of every image without the padding."""

    tensor: Tensor
    sizes: list[tuple[int, int]]


class ImageInput(nn.Module):
    """Normalise images and pad them with zeros, at the right and at the bottom, to one size.

    pixel_mean, pixel_std: per channel of the model, so in BGR order where `bgr`. bgr: images of three channels come as
    RGB and are turned around.
    """

    def __init__(
        self, *, pixel_mean: Sequence[float], pixel_std: Sequence[float], bgr: bool, size_divisibility: int
    ) -> None:
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ValueError(f"{len(pixel_mean)} pixel means, but {len(pixel_std)} standard deviations")
        self.reverse = bgr and len(pixel_mean) == 3
        self.size_divisibility = max(size_divisibility, 1)
        self.mean = tuple(pixel_mean)
        self.std = tuple(pixel_std)

    def forward(self, images: Sequence[np.ndarray], device: torch.device) -> ImageBatch:
        """Make a batch of B arrays (H, W, C)."""
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


class GeneralizedRCNN(RegionSegmenter):
    """image_input makes the batch; the other parts bear the names that they have in Detectron2's state_dict."""

    def __init__(
        self, *, image_input: ImageInput, backbone: nn.Module, proposal_generator: RPN, roi_heads: nn.Module
    ) -> None:
        super().__init__()
        self.image_input = image_input
        self.backbone = backbone
        if hasattr(backbone, "bottom_up"):
            self.pretrained_prefix = "backbone.bottom_up."
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    @property
    def trains_everything(self) -> bool:
        """See Segmenter: the RPN looks at whole feature maps, the region heads only where there are regions."""
        return set(self.backbone.channels) <= set(self.proposal_generator.in_features)

    @property
    def largest_object(self) -> float:
        """See Segmenter: as large as the largest anchors."""
        return self.proposal_generator.anchor_generator.largest_size

    def prefer_speed(self) -> Self:
        """See Segmenter.prefer_speed; norms with fixed statistics are folded, pooling is done by matrix products,
        wide 3 x 3 convolutions by Winograd's."""
        for module in self.modules():
            if isinstance(module, (ConvNorm, Pooler)):
                module.fast = True
        return super().prefer_speed()

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return loss_rpn_cls and loss_rpn_loc of a batch, and the losses of the region heads."""
        device = self.device
        targets = [Targets.from_sample(sample, self.roi_heads.num_classes, device) for sample in samples]
        batch = self.image_input([sample.image for sample in samples], device)
        features = self.backbone(batch.tensor)
        output = self.proposal_generator(features)
        losses = self.proposal_generator.losses(output, batch.sizes, targets)
        proposals = self.proposal_generator.propose(output, batch.sizes)
        losses.update(self.roi_heads.losses(features, proposals, targets))
        return losses

    @property
    def has_mask_head(self) -> bool:
        """See RegionSegmenter."""
        return self.roi_heads.mask_head is not None

    def extract(self, images: Sequence[np.ndarray]) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
        """See RegionSegmenter.extract: feature maps by name, and the (height, width) of every image."""
        batch = self.image_input(images, self.device)
        return self.backbone(batch.tensor), batch.sizes

    def detect(self, features: tuple[dict[str, Tensor], list[tuple[int, int]]]) -> list[Detections]:
        """See RegionSegmenter.detect."""
        maps, sizes = features
        return self.roi_heads.detect(maps, self.proposal_generator.propose(self.proposal_generator(maps), sizes), sizes)

    def mask_probabilities(
        self,
        features: tuple[dict[str, Tensor], list[tuple[int, int]]],
        boxes: list[Tensor],
        classes: list[Tensor],
    ) -> list[Tensor]:
        """See RegionSegmenter.mask_probabilities."""
        return self.roi_heads.masks(features[0], boxes, classes)
