"""The mask head (He et al. 2017): a small mask for each region."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.node import Config
from detseg.config.options import Options, Problems, key, part
from detseg.models.rcnn.fused import Cached, affine, fused_dtype, needs_gradient
from detseg.models.rcnn.layers import ConvNorm, check_group_norm, init_msra, init_normal, norm_key
from detseg.models.rcnn.mask_quality import QualityHead, QualityOptions, mask_ious, quality_loss
from detseg.models.rcnn.regions import Regions, in_portions
from detseg.models.rcnn.roi_align import PoolerOptions
from detseg.models.rcnn.targets import Targets
from detseg.models.region_segmenter import RegionMasks

# Pixels whose 2 x 2 cells are computed at once in prediction, so that they fit the cache.
PIXELS_AT_ONCE = 2_000


@dataclass(frozen=True)
class MaskConvOptions(Options):
    """The layers of MaskHead, num_conv 3 x 3 convolutions and a deconvolution of as many channels, and its loss."""

    section = "MODEL.ROI_MASK_HEAD"

    num_conv: int = key("NUM_CONV", at_least=0)
    channels: int = key("CONV_DIM", at_least=1)
    norm: str = norm_key()
    class_agnostic: bool = key("CLS_AGNOSTIC_MASK")
    boundary_weight: float = key("BOUNDARY_WEIGHT", at_least=0)

    def check(self, problems: Problems) -> None:
        if self.num_conv:
            check_group_norm(problems, f"{self.section}.NORM", f"{self.section}.CONV_DIM", self.channels)


def _is_conv_head(cfg: Config) -> bool:
    return cfg.MODEL.ROI_MASK_HEAD.NAME == "MaskRCNNConvUpsampleHead"


def _pools_itself(cfg: Config) -> bool:
    return _is_conv_head(cfg) and cfg.MODEL.ROI_HEADS.NAME != "Res5ROIHeads"


@dataclass(frozen=True)
class MaskHeadOptions(Options):
    """pooler: None if the head uses the box head's features (Res5ROIHeads). quality: None without a quality head."""

    section = "MODEL.ROI_MASK_HEAD"

    name: str = key("NAME", choices=("MaskRCNNConvUpsampleHead",), registry=True)
    layers: MaskConvOptions | None = part(MaskConvOptions, when=_is_conv_head)
    pooler: PoolerOptions | None = part(PoolerOptions, section="MODEL.ROI_MASK_HEAD", when=_pools_itself)
    judges: bool = key("QUALITY.ENABLED")
    quality: QualityOptions | None = part(QualityOptions, when=lambda cfg: cfg.MODEL.ROI_MASK_HEAD.QUALITY.ENABLED)


class MaskHead(nn.Module):
    """Detectron2's MaskRCNNConvUpsampleHead: 3 x 3 convolutions, a 2 x 2 deconvolution, then the masks.

    class_agnostic: one mask for all classes instead of one for each. boundary_weight: see `boundary_factors`.
    fast: whether oneDNN computes the deconvolution as a matrix product, with other rounding.
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
        boundary_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.class_agnostic = class_agnostic
        self.boundary_weight = boundary_weight
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
        self.fast = False
        self._cell_weights = Cached()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (M, 1 or K, 2 * size, 2 * size) for pooled regions (M, C, size, size)."""
        for name in self.conv_names:
            x = getattr(self, name)(x)
        dtype = fused_dtype(x) if self.fast else None
        if dtype is None:
            return self.predictor(F.relu_(self.deconv(x)))
        if needs_gradient(x, *self.parameters()):
            return self._predict_cells(x, dtype)
        portions = x.split(max(1, PIXELS_AT_ONCE // (x.shape[2] * x.shape[3])))
        return torch.cat([self._predict_cells(portion, dtype) for portion in portions])

    def _predict_cells(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Apply `deconv` and `predictor`: every pixel becomes 2 x 2 cells, a matrix product over its channels; the 1 x
        1 predictor works on cells in any order, so only the logits are rearranged to the mask."""
        channels, (height, width) = self.deconv.out_channels, x.shape[2:]
        weight, bias = self.deconv.weight, self.deconv.bias
        rows = self._cell_weights(
            lambda: (weight.permute(2, 3, 1, 0).flatten(0, 2).to(dtype), bias.repeat(4).to(dtype)),
            [weight, bias],
            dtype,
        )
        cells = affine(x.to(dtype), *rows, relu=True).permute(0, 2, 3, 1)
        logits = self.predictor(cells.reshape(-1, height, width * 4, channels).permute(0, 3, 1, 2))
        return logits.unflatten(3, (width, 2, 2)).transpose(3, 4).reshape(*logits.shape[:2], height * 2, width * 2)

    def logits_of(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return the logits (M, 2 * size, 2 * size), float32, of the masks of the given classes (M,)."""
        logits = self(x)
        if self.class_agnostic:
            return logits[:, 0].float()
        return logits[torch.arange(len(logits), device=logits.device), classes].float()


def mask_loss(logits: Tensor, truth: Tensor, counted: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits (M, s, s) against truth (M, s, s) bool.

    counted: (M, s, s), weight of each pixel in the mean: 0, or 1 and more; None for equal weights. weights: (M, s, s)
    or None, factors on their losses, by which the mean is not divided. Zero, with zero gradients, if nothing counts.
    """
    if logits.numel() == 0:
        return logits.sum() * 0
    if counted is None and weights is None:
        return F.binary_cross_entropy_with_logits(logits, truth.float())
    loss = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
    loss = loss if weights is None else loss * weights
    return loss.mean() if counted is None else (loss * counted).sum() / counted.sum().clamp(min=1)


def boundary_factors(truth: Tensor, weight: float) -> Tensor:
    """Return the weight of each cell of masks (M, s, s) bool in the mean of the mask loss, (M, s, s) float32.

    1 + weight for cells that are 8-connected to a cell on the other side of the object's boundary, else 1. Most cells
    of a mask are easy; its overlap with the object is decided at the boundary.
    """
    cells = truth[:, None].float()
    largest, smallest = (sign * F.max_pool2d(sign * cells, 3, stride=1, padding=1)[:, 0] for sign in (1, -1))
    return 1 + weight * (largest - smallest)


def foreground_boxes(regions: Sequence[Regions]) -> list[Tensor]:
    """Return the boxes of every image with trained masks: those on objects."""
    return [region.boxes[: region.foreground] for region in regions]


def foreground_mask_losses(
    mask_head: MaskHead,
    quality_head: QualityHead | None,
    pooled: Tensor,
    regions: Sequence[Regions],
    targets: Sequence[Targets],
) -> dict[str, Tensor]:
    """Return loss_mask of `foreground_boxes`, of which `pooled` (M, C, s, s) are the features, and loss_mask_quality.

    The quality of a mask with ignored pixels in its box is unknown.
    """
    classes = torch.cat([region.classes[: region.foreground] for region in regions])
    logits = mask_head.logits_of(pooled, classes)
    size = logits.shape[-1]
    boxes = foreground_boxes(regions)
    truth, counted, weights, areas = [], [], [], []
    for image_boxes, region, target in zip(boxes, regions, targets, strict=True):
        objects = region.objects[: region.foreground]
        truth.append(target.masks_in(image_boxes, objects, size))
        counted.append(target.counted_in(image_boxes, size))
        weights.append(target.mask_weights(image_boxes, objects, size))
        areas.append(target.areas[objects])
    anything_ignored = any(target.ignore is not None for target in targets)
    masks, cells = torch.cat(truth), torch.cat(counted) if anything_ignored else None
    counts = cells
    if mask_head.boundary_weight:
        counts = boundary_factors(masks, mask_head.boundary_weight)
        counts = counts if cells is None else counts * cells
    factors = torch.cat(weights) if any(target.is_weighted for target in targets) else None
    losses = {"loss_mask": mask_loss(logits, masks, counts, factors)}
    if quality_head is not None:
        probabilities = logits.detach().sigmoid()
        quality = quality_head.quality_of(pooled, probabilities, classes)
        ious = mask_ious(probabilities, masks, torch.cat(boxes), torch.cat(areas))
        known = None if cells is None else cells.all(dim=2).all(dim=1)
        factors = None if factors is None else factors.mean(dim=(1, 2))
        losses["loss_mask_quality"] = quality_loss(quality, ious, known, factors) * quality_head.loss_weight
    return losses


def predict_masks(
    mask_head: MaskHead,
    quality_head: QualityHead | None,
    pool: Callable[[Sequence[Tensor]], Tensor],
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    at_once: int,
) -> list[RegionMasks]:
    """Return the masks of boxes (N, 4) and classes (N,) of every image, with their qualities if the quality head
    rescores.

    pool: returns the features (M, C, s, s) for the boxes of every image.
    """
    probabilities, qualities = [], []
    of_portions = torch.cat(list(classes)).split(at_once)
    for portion, portion_classes in zip(in_portions(boxes, at_once), of_portions, strict=True):
        pooled = pool(portion)
        probabilities.append(mask_head.logits_of(pooled, portion_classes).sigmoid())
        if quality_head is not None and quality_head.rescores:
            qualities.append(quality_head.quality_of(pooled, probabilities[-1], portion_classes))
    lengths = [len(image_boxes) for image_boxes in boxes]
    of_images = torch.cat(probabilities).split(lengths)
    if not qualities:
        return [RegionMasks(one) for one in of_images]
    return [RegionMasks(*both) for both in zip(of_images, torch.cat(qualities).split(lengths), strict=True)]
