"""The common base of U-Net systems: from samples to targets and losses, from images to maps to objects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from detseg.config.options import Options, Problems, key, part
from detseg.data.augment.resampling import resize_image
from detseg.data.pixel_classes import ClassMasks, flat_labels
from detseg.models.base import check_finite
from detseg.models.bottom_up.decoding import predictions_of_labels
from detseg.models.bottom_up.guides import GUIDES, GuidedInput
from detseg.models.bottom_up.losses import CROSS_ENTROPY, LossOptions, class_losses
from detseg.models.bottom_up.network import NetworkOptions, build_encoder_decoder
from detseg.models.depthwise import DepthwiseConv2d
from detseg.models.map_segmenter import MapSegmenter
from detseg.models.options import ImageInputOptions, LimitOptions
from detseg.structures.label_layers import LabelLayers
from detseg.structures.predictions import Predictions
from detseg.structures.sample import CLASS_LOSS, MASK_LOSS, Sample

CLASSES = "classes"  # the head for the class of an object's pixels


@dataclass(frozen=True)
class UNetOptions(Options):
    """threshold: on the foreground probability; 0 for its mean over the image. guides: see guides.py."""

    section = "MODEL.UNET"

    masks: bool = key("MODEL.MASK_ON", choices=(True,))
    num_classes: int = key("MODEL.ROI_HEADS.NUM_CLASSES", at_least=1)
    threshold: float = key("THRESHOLD", at_least=0, below=1)
    guides: tuple[str, ...] = key("GUIDES", choices=tuple(GUIDES))
    network: NetworkOptions = part(NetworkOptions)
    losses: LossOptions = part(LossOptions)
    image_input: ImageInputOptions = part(ImageInputOptions)
    limit: LimitOptions = part(LimitOptions)

    pixel_classes = 2

    def check(self, problems: Problems) -> None:
        if self.losses.class_weights and len(self.losses.class_weights) != self.pixel_classes:
            expected = f"expected {self.pixel_classes} values, one per pixel class, background first, or []"
            problems.add("MODEL.UNET.CLASS_WEIGHTS", expected)


class UNet(MapSegmenter):
    """A network with `backbone`, `decoder` and `heads`, and the decoding of its maps to objects.

    A system is a subclass that declares in `system_heads` what the network predicts for every pixel, and implements the
    losses and the decoding. With several classes an additional head predicts the class; an object has the class with
    the highest mean over its pixels.

    Attributes:
        system_heads: channels by name of head.
        system_maps: names of the maps of `system_maps_of`.
    """

    trains_everything = True
    class_entries = (f"heads.{CLASSES}.",)
    system_heads: ClassVar[Mapping[str, int]]
    system_maps: tuple[str, ...]

    def __init__(self, options: UNetOptions) -> None:
        super().__init__()
        self.options = options
        depth, width = options.network.depth, options.network.channels[-1]
        self.image_input = GuidedInput.from_options(options.image_input, size_divisibility=2**depth)
        self.image_input.guides = options.guides
        channels = len(options.image_input.pixel_mean) + len(options.guides)
        self.backbone, self.decoder = build_encoder_decoder(options.network, channels)
        reach = options.network.reach
        # plus 1 for the heads; the receptive field of guides is not known here
        self.reach = None if reach is None or options.guides else reach + 1
        heads = dict(self.system_heads)
        self.map_names = self.system_maps
        if options.num_classes > 1:
            heads[CLASSES] = options.num_classes
            self.map_names += tuple(f"class {number}" for number in range(options.num_classes))
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, count, 3, padding=1) for name, count in heads.items()})
        for head in self.heads.values():
            nn.init.xavier_uniform_(head.weight)
            nn.init.zeros_(head.bias)

    @abstractmethod
    def targets(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the targets of the system's heads, arrays (..., H, W) by any names, for a label image (H, W) int32."""

    @abstractmethod
    def system_losses(
        self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], share: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of the system's heads (`loss_...`), and values that are only logged.

        logits: (B, C, H, W) by head. targets: (B, ..., H, W) by the names of `targets`. share: (B, H, W) float32,
        the weight of every pixel in the loss.
        """

    @abstractmethod
    def system_maps_of(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return the maps (B, M, H, W) float32 of the system, without class maps."""

    @abstractmethod
    def objects(self, maps: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Form objects from the system's maps (M, H, W) float32 within a foreground mask (H, W) bool.

        The decoding of a component of the mask must not depend on others that do not touch it (8-connected), because
        large images are decoded component by component.

        Returns:
            labels (H, W) int32, 1..N; the quality (N,) in [0, 1] of the objects' shapes.
        """

    def compared_pixels(self, maps: np.ndarray, labels: np.ndarray) -> ClassMasks:
        """Return the pixel classes besides foreground, by the system's maps (M, H, W) and by labels (H, W)."""
        return {}

    def foreground(self, maps: np.ndarray) -> np.ndarray:
        """Return the probability (H, W) float32 that a pixel belongs to an object, from the system's maps (M, H, W)."""
        return maps[0]

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """See Segmenter.forward."""
        batch = self.image_input([sample.image for sample in samples], self.device)
        logits = self._logits(batch.tensor)
        size = batch.tensor.shape[2:]
        labels = [flat_labels(sample.layers_or_empty()) for sample in samples]
        pairs = list(zip(samples, labels, strict=True))
        of_images = [self.targets(one) for one in labels]
        targets = {name: self._batch([one[name] for one in of_images], size) for name in of_images[0]}
        share = self._batch([_share(*pair, MASK_LOSS) for pair in pairs], size)
        losses = self.system_losses(logits, targets, share)
        if CLASSES in self.heads:  # background pixels are ignored
            share = self._batch([_share(*pair, CLASS_LOSS) * (pair[1] > 0) for pair in pairs], size)
            target = self._batch([np.append(0, sample.classes)[one] for sample, one in pairs], size)
            losses |= class_losses(CLASSES, logits[CLASSES], target, share, (CROSS_ENTROPY,))
        return losses

    def predict_maps(
        self, images: Sequence[np.ndarray], output_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[np.ndarray]:
        """See MapSegmenter.predict_maps."""
        self.require_evaluation_mode()
        if not len(images):
            return []
        with torch.inference_mode():
            batch = self.image_input(images, self.device)
            logits = self._logits(batch.tensor)
            check_finite("maps", *logits.values())
            maps = self.system_maps_of(logits)
            if CLASSES in self.heads:
                maps = torch.cat([maps, logits[CLASSES].float().softmax(dim=1)], dim=1)
            arrays = maps.permute(0, 2, 3, 1).cpu().numpy()
        sizes = batch.sizes if output_sizes is None else output_sizes
        result = []
        for array, (height, width), size in zip(arrays, batch.sizes, sizes, strict=True):
            resized = np.ascontiguousarray(resize_image(array[:height, :width], *size).transpose(2, 0, 1))
            result.append(self.scaled(resized, size[0] / height, size[1] / width))
        return result

    def decode(
        self, maps: np.ndarray, *, soft_masks: bool = False, level: float | None = None, limited: bool = True
    ) -> Predictions:
        """See MapSegmenter.decode."""
        count = len(self.system_maps)
        foreground = self.foreground(maps)
        threshold = self.options.threshold or (self.level(maps) if level is None else level)
        labels, quality = self.objects(maps[:count], foreground >= threshold)
        return predictions_of_labels(
            labels,
            foreground,
            quality,
            class_maps=maps[count:] if CLASSES in self.heads else None,
            threshold=threshold,
            limit=self.options.limit.detections_per_image if limited else None,
            soft_masks=soft_masks,
        )

    def level(self, maps: np.ndarray) -> float | None:
        """See MapSegmenter.level: the threshold, if it is the mean of the foreground probability."""
        return None if self.options.threshold else float(self.foreground(maps).mean(dtype=np.float64))

    def pixel_shares(
        self, maps: np.ndarray, layers: LabelLayers, ignore: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """See MapSegmenter.pixel_shares."""
        counts = np.ones(maps.shape[1:], bool) if ignore is None else ~ignore
        compared = self.compared_pixels(maps, flat_labels(layers))
        pairs = {f"iou_{name}": (found & true, found | true) for name, (found, true) in compared.items()}
        if len(compared) > 1:  # together with the background these are all classes
            wrong = np.logical_or.reduce([found != true for found, true in compared.values()])
            pairs["pixel_accuracy"] = ~wrong, np.True_
        return {name: np.array([np.count_nonzero(one & counts) for one in pair]) for name, pair in pairs.items()}

    def scaled(self, maps: np.ndarray, y: float, x: float) -> np.ndarray:
        """Return maps (M, H, W) that were resized by the factors y and x, with lengths in pixels rescaled."""
        return maps

    def prefer_speed(self) -> Self:
        """See Segmenter.prefer_speed."""
        for module in self.modules():
            if isinstance(module, DepthwiseConv2d):
                module.fast = True
        return super().prefer_speed()

    def _logits(self, images: Tensor) -> dict[str, Tensor]:
        features = self.decoder(self.backbone(images))
        return {name: head(features) for name, head in self.heads.items()}

    def _batch(self, arrays: Sequence[np.ndarray], size: Sequence[int]) -> Tensor:
        """Pad arrays (..., H, W) with zeros on the right and at the bottom; integers become int64."""
        padded: list[Any] = []
        for array in arrays:
            tensor = torch.from_numpy(array if array.dtype in (bool, np.float32) else array.astype(np.int64))
            padded.append(F.pad(tensor, (0, size[1] - array.shape[-1], 0, size[0] - array.shape[-2])))
        return torch.stack(padded).to(self.device)


def _share(sample: Sample, labels: np.ndarray, column: int) -> np.ndarray:
    """Return the weight (H, W) float32 of every pixel in the loss; column: of the objects' weights."""
    weights = np.append(np.float32(1), sample.weights_or_ones()[:, column])
    share = weights[labels] * np.float32(sample.weight)
    if sample.certainty is not None and column == MASK_LOSS:
        share *= sample.certainty / np.float32(255)
    if sample.ignore is not None:
        share[sample.ignore] = 0
    return share
