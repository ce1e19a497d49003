"""The thin-section project's system: a three-class U-Net finds objects, and SAM, prompted by them, segments them again.

The U-Net is trained separately, as BoundaryUNet, and its checkpoint is MODEL.WEIGHTS here. Trained here is SAM's mask
decoder, with prompts from the true objects; everything else is frozen, and embeddings are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from detseg.config.options import Problems, key, part
from detseg.data.augment.resampling import resize_image
from detseg.files.transfer import cache_folder
from detseg.models.base import Segmenter, check_finite
from detseg.models.bottom_up.boundary import BoundaryOptions, BoundaryUNet
from detseg.models.prompted.embeddings import EmbeddingCache
from detseg.models.prompted.options import SamOptions
from detseg.models.prompted.prompts import Prompts, make_prompts
from detseg.models.prompted.refine import refine
from detseg.models.prompted.sam import Sam, as_rgb, load_sam
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop
from detseg.structures.predictions import Predictions
from detseg.structures.sample import MASK_LOSS, Sample
from detseg.structures.windows import Window, grid_windows

FIRST_PASS, SAM = "first_pass.", "sam."
# Weights of the losses, and the exponent of the focal one, of Kirillov et al., Segment Anything, ICCV 2023.
_FOCAL_WEIGHT, _FOCUS = 20.0, 2.0
# Maximum shift of the edges of a true box when it becomes a prompt, as a fraction of its sides.
_JITTER = 0.1


@dataclass(frozen=True)
class PromptedOptions(BoundaryOptions):
    """sam: the model and its prompts. objects: maximum number per window in a training pass.

    cache: folder of embeddings; empty for one in detseg's cache.
    """

    sam: SamOptions = part(SamOptions)
    objects: int = key("MODEL.SAM.TRAIN_OBJECTS", at_least=1)
    cache: str = key("MODEL.SAM.CACHE")

    def check(self, problems: Problems) -> None:
        super().check(problems)
        if len(self.image_input.pixel_mean) not in (1, 3):
            problems.add("MODEL.PIXEL_MEAN", "Segment Anything takes gray or RGB images: expected 1 or 3 values")
        if problems.training and not problems.cfg.MODEL.WEIGHTS:
            expected = "expected the checkpoint of the first pass, a trained BoundaryUNet with the same MODEL.UNET keys"
            problems.add("MODEL.WEIGHTS", expected)


class PromptedSAM(Segmenter):
    """See the module.

    Attributes:
        weights_prefix: prefix of the part that a checkpoint of a BoundaryUNet contains.
        given_elsewhere: prefix of the part whose weights are loaded when the model is built, unless a checkpoint has
            them.
    """

    gives_soft_masks = True
    weights_prefix = FIRST_PASS
    given_elsewhere = SAM

    def __init__(self, first_pass: BoundaryUNet, sam: Sam, options: PromptedOptions) -> None:
        super().__init__()
        self.first_pass = first_pass.requires_grad_(False)
        self.sam = sam
        self.sam.train_decoder()
        self.options = options
        self._cache: EmbeddingCache | None = None

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """See Segmenter.forward; of every image one random window of the grid with objects is used."""
        found = [self._losses(sample) for sample in samples]
        known = [one for one in found if one is not None]
        if not known:  # a zero gradient, as for other batches without objects
            nothing = sum(one.sum() for one in self.parameters() if one.requires_grad) * 0.0
            return {"loss_focal": nothing, "loss_dice": nothing, "loss_quality": nothing}
        return {name: torch.stack([one[name] for one in known]).sum() / len(samples) for name in known[0]}

    def predict(
        self,
        images: Sequence[np.ndarray],
        output_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """See Segmenter.predict."""
        self.require_evaluation_mode()
        options = self.options.sam.refine
        objects = self.first_pass.predict(images, output_sizes, soft_masks=soft_masks)
        return [
            refine(self.sam, resize_image(image, one.height, one.width), one, options, soft_masks=soft_masks)
            for image, one in zip(images, objects, strict=True)
        ]

    def prefer_speed(self) -> Self:
        """See Segmenter.prefer_speed: SAM is not changed."""
        self.first_pass.prefer_speed()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        self.first_pass.eval()
        return self

    def _losses(self, sample: Sample) -> dict[str, Tensor] | None:
        """Return the losses of one window of a sample; None without objects in it."""
        if sample.layers is None or not len(sample.layers) or sample.weight == 0:
            return None
        refine_options = self.options.sam.refine
        height, width = sample.height, sample.width
        windows = grid_windows(height, width, tile=refine_options.tile, overlap=refine_options.overlap)
        # From torch's generator, whose state a resumed training restores.
        every = rle_codec.decode_crops(sample.layers.to_rles())
        for number in torch.randperm(len(windows)).tolist():
            crops, weights = _within(every, sample.weights_or_ones()[:, MASK_LOSS], windows[number])
            if crops:
                break
        else:
            return None
        chosen = torch.randperm(len(crops))[: self.options.objects].tolist()
        crops, weights = [crops[index] for index in chosen], weights[chosen]
        x0, y0, x1, y1 = windows[number]
        size = (y1 - y0, x1 - x0)
        if self._cache is None:
            folder = Path(self.options.cache).expanduser() if self.options.cache else cache_folder() / "embeddings"
            self._cache = EmbeddingCache(folder, self.sam)
        window = np.ascontiguousarray(as_rgb(sample.image)[y0:y1, x0:x1])
        prompts = self._prompts_of(crops, size)
        multimask = refine_options.multimask
        logits, quality = self.sam.masks(self._cache.embed(window), prompts, size, multimask)
        check_finite("masks", logits, quality)
        truth = np.zeros((len(crops), *size), dtype=np.float32)
        for mask, crop in zip(truth, crops, strict=True):
            mask[crop.window][crop.mask] = 1
        counts = np.ones(size, dtype=np.float32)
        if sample.ignore is not None:
            counts[sample.ignore[y0:y1, x0:x1]] = 0
        if sample.certainty is not None:
            counts *= sample.certainty[y0:y1, x0:x1] / np.float32(255)
        target, share = (_on_grid(one, logits.shape[-1]).to(logits.device) for one in (truth, counts[None]))
        object_weights = torch.from_numpy(weights).to(logits.device) * sample.weight
        return mask_losses(logits, quality, (target >= 0.5).float(), share, object_weights)

    def _prompts_of(self, crops: Sequence[MaskCrop], size: tuple[int, int]) -> Prompts:
        """Return prompts of true objects, made inexact: box edges are shifted, and any point inside is used."""
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        boxes = np.array([crop.box for crop in crops], dtype=np.float32)
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        moved = boxes + (rng.uniform(-_JITTER, _JITTER, boxes.shape) * sides).astype(np.float32)
        prompts = make_prompts(boxes, crops, self.options.sam.refine.prompts)
        if prompts.points is not None:
            for index, crop in enumerate(crops):
                rows, columns = np.nonzero(crop.mask)
                place = rng.integers(len(rows))
                prompts.points[index, 0] = crop.x0 + columns[place] + 0.5, crop.y0 + rows[place] + 0.5
        boxes = None if prompts.boxes is None else np.clip(moved, 0, np.float32([size[1], size[0]] * 2))
        return Prompts(prompts.points, prompts.labels, boxes)


def build_prompted_sam(options: PromptedOptions) -> PromptedSAM:
    """Build the system, SAM with its weights. Raises WeightsError if these are not available; see `load_sam`."""
    return PromptedSAM(BoundaryUNet(options), load_sam(options.sam.name), options)


def mask_losses(logits: Tensor, quality: Tensor, target: Tensor, share: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Return the losses of masks (B, M, s, s) with expected IoUs (B, M): focal, Dice, and squared error of the IoU.

    target: (B, s, s), 0 or 1. share: (1, s, s), weight of a pixel; 0 for ignored ones. weights: (B,). Of several masks
    of one prompt only the best one is trained.
    """
    target, share = target[:, None].expand_as(logits), share[None]
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = (probability - target).abs()
    area = share.sum().clamp(min=1)
    focal = (entropy * wrong**_FOCUS * share).sum(dim=(2, 3)) / area
    shared = (probability * target * share).sum(dim=(2, 3))
    dice = 1 - (2 * shared + 1) / (((probability + target) * share).sum(dim=(2, 3)) + 1)
    with torch.no_grad():
        drawn = (logits > 0).float() * share
        both = (drawn * target).sum(dim=(2, 3))
        iou = both / (drawn.sum(dim=(2, 3)) + (target * share).sum(dim=(2, 3)) - both).clamp(min=1e-6)
    wrong_quality = (quality - iou) ** 2
    best = (_FOCAL_WEIGHT * focal + dice).argmin(dim=1, keepdim=True)
    chosen = {"loss_focal": _FOCAL_WEIGHT * focal, "loss_dice": dice, "loss_quality": wrong_quality, "iou_masks": iou}
    return {name: (values.gather(1, best)[:, 0] * weights).mean() for name, values in chosen.items()}


def _within(every: Sequence[MaskCrop], weights: np.ndarray, window: Window) -> tuple[list[MaskCrop], np.ndarray]:
    """Return the parts of masks in a window, in its pixels, and their weights (n,) float32; none are 0."""
    inside = [crop.within(window).tight() for crop in every]
    chosen = [index for index, crop in enumerate(inside) if crop.area and weights[index] > 0]
    return [inside[index].moved(-window[0], -window[1]) for index in chosen], weights[chosen]


def _on_grid(masks: np.ndarray, side: int) -> Tensor:
    """Return masks (B, h, w) float32 of a window on the grid of its square, (B, side, side), cell means."""
    longest = max(masks.shape[1:])
    padded = F.pad(torch.from_numpy(masks), (0, longest - masks.shape[2], 0, longest - masks.shape[1]))
    return F.interpolate(padded[:, None], (side, side), mode="area")[:, 0]
