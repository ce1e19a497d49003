"""The mask head (He et al. 2017): a small mask for each region."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.node import Config
from detseg.config.options import Options, key, part
from detseg.config.problems import Problems
from detseg.models.rcnn.layers import ConvNorm, check_group_norm, init_msra, init_normal, norm_key
from detseg.models.rcnn.regions import Regions, in_portions
from detseg.models.rcnn.roi_align import PoolerOptions, axis_weights, crop_pixels, crop_side
from detseg.models.rcnn.targets import Targets

# What the mask head should answer: regions cut straight out of label layers, without making any full-size mask.
#
# Equal to torchvision's roi_align (aligned, adaptive number of samples) of the masks `layers == id`, thresholded at
# 0.5.
# Regions of similar size are computed together.

THRESHOLD = 0.5
# Pixels of crops held at once.
PIXELS_PER_CHUNK = 2_000_000
CROP_STEP = 16


@torch.no_grad()
def sample_masks(layers: Tensor, layer_of: Tensor, ids: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return (M, size, size) bool: in each cell, whether at least half of it belongs to the region's object.

    layers: (L, H, W) int32. layer_of: (M,) int64 and ids: (M,) int32, the object of each region. boxes: (M, 4) regions.
    """
    masks = torch.zeros((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
    if len(boxes) == 0 or layers.numel() == 0:
        return masks
    sides = torch.maximum(*(crop_side(boxes[:, axis], boxes[:, axis + 2], CROP_STEP) for axis in (0, 1)))
    with torch.autocast(boxes.device.type, enabled=False):
        for side in sorted(set(sides.tolist())):
            group = torch.nonzero(sides == side).squeeze(1)
            for part in group.split(max(1, PIXELS_PER_CHUNK // side**2)):
                masks[part] = _sample(layers, layer_of[part], ids[part], boxes[part], size, side)
    return masks


def _sample(layers: Tensor, layer_of: Tensor, ids: Tensor, boxes: Tensor, size: int, side: int) -> Tensor:
    _, height, width = layers.shape
    columns, left, in_x = axis_weights(boxes[:, 0], boxes[:, 2], length=width, size=size, side=side)
    rows, top, in_y = axis_weights(boxes[:, 1], boxes[:, 3], length=height, size=size, side=side)
    y, x = crop_pixels(top, side, height), crop_pixels(left, side, width)
    pixels = layers[layer_of[:, None, None], y[:, :, None], x[:, None, :]]
    sums = rows @ (pixels == ids[:, None, None]).float() @ columns.transpose(1, 2)
    return sums / (in_x * in_y).clamp(min=1)[:, None, None] >= THRESHOLD


@dataclass(frozen=True)
class MaskConvOptions(Options):
    """The layers of MaskHead: num_conv 3 x 3 convolutions, and a deconvolution, of as many channels."""

    section = "MODEL.ROI_MASK_HEAD"

    num_conv: int = key("NUM_CONV", at_least=0)
    channels: int = key("CONV_DIM", at_least=1)
    norm: str = norm_key()
    class_agnostic: bool = key("CLS_AGNOSTIC_MASK")

    def check(self, problems: Problems) -> None:
        if self.num_conv:
            check_group_norm(problems, f"{self.section}.NORM", f"{self.section}.CONV_DIM", self.channels)


def _is_conv_head(cfg: Config) -> bool:
    return cfg.MODEL.ROI_MASK_HEAD.NAME == "MaskRCNNConvUpsampleHead"


def _pools_itself(cfg: Config) -> bool:
    return _is_conv_head(cfg) and cfg.MODEL.ROI_HEADS.NAME != "Res5ROIHeads"


@dataclass(frozen=True)
class MaskHeadOptions(Options):
    """pooler: None where the head gets the features of the box head (Res5ROIHeads)."""

    section = "MODEL.ROI_MASK_HEAD"

    name: str = key("NAME", choices=("MaskRCNNConvUpsampleHead",), registry=True)
    layers: MaskConvOptions | None = part(MaskConvOptions, when=_is_conv_head)
    pooler: PoolerOptions | None = part(PoolerOptions, section="MODEL.ROI_MASK_HEAD", when=_pools_itself)


class MaskHead(nn.Module):
    """Detectron2's MaskRCNNConvUpsampleHead: 3 x 3 convolutions, a 2 x 2 deconvolution, then the masks.

    class_agnostic: one mask for all classes instead of one for each.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        conv_channels: Sequence[int],
        deconv_channels: int,
        class_agnostic: bool,
        norm: str = "",
    ) -> None:
        super().__init__()
        self.class_agnostic = class_agnostic
        self.conv_names = [f"mask_fcn{index}" for index in range(1, len(conv_channels) + 1)]
        channels = in_channels
        for name, width in zip(self.conv_names, conv_channels, strict=True):
            conv = ConvNorm(channels, width, 3, norm=norm, relu=True)
            init_msra(conv)
            self.add_module(name, conv)
            channels = width
        self.deconv = nn.ConvTranspose2d(channels, deconv_channels, kernel_size=2, stride=2)
        self.predictor = ConvNorm(deconv_channels, 1 if class_agnostic else num_classes, 1)
        init_msra(self.deconv)
        init_normal(self.predictor, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (M, 1 or K, 2 * size, 2 * size) for pooled regions (M, C, size, size)."""
        for name in self.conv_names:
            x = getattr(self, name)(x)
        return self.predictor(F.relu_(self.deconv(x)))

    def logits_of(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return the logits (M, 2 * size, 2 * size), float32, of the masks of the given classes (M,)."""
        logits = self(x)
        if self.class_agnostic:
            return logits[:, 0].float()
        return logits[torch.arange(len(logits), device=logits.device), classes].float()


def mask_loss(logits: Tensor, truth: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits (M, s, s) against truth (M, s, s) bool.

    counted: (M, s, s) bool, the pixels that the mean is taken over; None for all. Zero, with gradients of zero, where
    there is nothing to count.
    """
    if logits.numel() == 0:
        return logits.sum() * 0
    if counted is None:
        return F.binary_cross_entropy_with_logits(logits, truth.float())
    loss = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def foreground_boxes(regions: Sequence[Regions]) -> list[Tensor]:
    """Return the boxes of every image whose masks are trained: those on objects."""
    return [region.boxes[: region.foreground] for region in regions]


def foreground_mask_loss(
    mask_head: MaskHead, pooled: Tensor, regions: Sequence[Regions], targets: Sequence[Targets]
) -> Tensor:
    """Return the loss of the masks of `foreground_boxes`, of which `pooled` (M, C, s, s) are the features."""
    boxes = foreground_boxes(regions)
    logits = mask_head.logits_of(pooled, torch.cat([region.classes[: region.foreground] for region in regions]))
    size = logits.shape[-1]
    truth, counted = [], []
    for image_boxes, region, target in zip(boxes, regions, targets, strict=True):
        objects = region.objects[: region.foreground]
        truth.append(sample_masks(target.layers, target.layer_of[objects], target.ids[objects], image_boxes, size))
        counted.append(counted_pixels(target, image_boxes, size))
    anything_ignored = any(target.ignore is not None for target in targets)
    return mask_loss(logits, torch.cat(truth), torch.cat(counted) if anything_ignored else None)


def mask_probabilities(
    mask_head: MaskHead,
    pool: Callable[[Sequence[Tensor]], Tensor],
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    at_once: int,
) -> list[Tensor]:
    """Return the mask probabilities (N, s, s) float32 for boxes (N, 4) and classes (N,) of every image.

    pool: gives the features (M, C, s, s) for the boxes of every image.
    """
    of_portions = torch.cat(list(classes)).split(at_once)
    probabilities = [
        mask_head.logits_of(pool(portion), portion_classes).sigmoid()
        for portion, portion_classes in zip(in_portions(boxes, at_once), of_portions, strict=True)
    ]
    return list(torch.cat(probabilities).split([len(image_boxes) for image_boxes in boxes]))


def counted_pixels(target: Targets, boxes: Tensor, size: int) -> Tensor:
    """Return (M, size, size) bool: the cells that enter the mask loss, those that are not ignored."""
    if target.ignore is None:
        return torch.ones((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
    nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    return ~sample_masks(target.ignore[None].int(), nothing, nothing.int() + 1, boxes, size)
