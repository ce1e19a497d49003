"""Detectron2's models as Segmenters: they take detseg's samples and return its Predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage, has_event_storage
from torch import Tensor, nn

from detseg.coco.pseudo_labels import PSEUDO, SOURCE_FIELD
from detseg.config import Config
from detseg.detectron2.config import to_cfg_node
from detseg.detectron2.ignore import honour_ignored_regions
from detseg.errors import ConfigError
from detseg.models.base import Segmenter, check_finite, check_image
from detseg.models.rcnn.targets import Targets, sample_masks
from detseg.models.region_segmenter import Detections, RegionMasks, RegionSegmenter
from detseg.models.table import num_classes
from detseg.structures.predictions import Predictions
from detseg.structures.rle import encode_mask
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)


class LayerMasks:
    """The masks of N objects in the role of `gt_masks` of Detectron2's Instances, without full-size masks.

    layers: (L, H, W) int32, shared by all selections. layer_of: (N,) int64 and ids: (N,) int32, the layer and id of
    each object; a selection may contain an object several times, once for each matched proposal.
    """

    def __init__(self, layers: Tensor, layer_of: Tensor, ids: Tensor) -> None:
        self.layers = layers
        self.layer_of = layer_of
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: Any) -> LayerMasks:
        """Select by an integer, a slice, or a tensor of indices or booleans."""
        if isinstance(item, int):
            item = [item]
        return LayerMasks(self.layers, self.layer_of[item], self.ids[item])

    def to(self, *args: Any, **kwargs: Any) -> LayerMasks:
        """Move to a device, like Tensor.to."""
        moved = (tensor.to(*args, **kwargs) for tensor in (self.layers, self.layer_of, self.ids))
        return LayerMasks(*moved)

    @property
    def device(self) -> torch.device:
        return self.layers.device

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.layers.shape[-2], self.layers.shape[-1]

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Return (N, mask_size, mask_size) bool: the mask of each object within its box, boxes (N, 4) XYXY pixels.

        Equal to Detectron2's BitMasks.crop_and_resize.
        """
        boxes = boxes.to(self.device)
        return sample_masks(self.layers, self.layer_of, self.ids, boxes, mask_size)

    def dense(self) -> Tensor:
        """Return all masks (N, H, W) bool at full size, for architectures that need them."""
        return self.layers[self.layer_of] == self.ids[:, None, None]


class IgnoredRegion:
    """The ignored region of an image as the field `gt_ignored` of its N objects.

    Detectron2 copies fields whose names begin with gt_ from objects to the matched proposals.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets.boxes)

    def __getitem__(self, item: Any) -> IgnoredRegion:
        return IgnoredRegion(self.targets[item])


@dataclass(frozen=True)
class InputMaker:
    """Makes the input dictionaries of Detectron2's models.

    channels: of the images. bgr: images with three channels are reversed from RGB. num_classes: of the objects. masks:
    "layers", "bitmasks" (N full-size masks, for architectures that need them) or "" for none.
    """

    channels: int
    bgr: bool
    num_classes: int
    masks: str

    def from_image(self, image: np.ndarray, output_size: tuple[int, int]) -> dict[str, Any]:
        """Return the input for an image (H, W, C), on the CPU; `output_size`: (height, width) of the prediction.

        Raises:
            DataError: the image does not have the model's number of channels.
        """
        check_image(image, self.channels)
        if image.dtype not in (np.uint8, np.float32):
            image = image.astype(np.float32)
        if self.bgr and self.channels == 3:
            image = image[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"image": tensor, "height": output_size[0], "width": output_size[1]}

    def from_sample(self, sample: Sample, device: torch.device) -> dict[str, Any]:
        """Return the input for a training sample, its objects as Instances on `device`.

        Raises:
            DataError: the sample has no annotations, or a class that the model does not have.
        """
        targets = Targets.from_sample(sample, self.num_classes, device)
        objects = Instances(targets.size)
        objects.gt_boxes = Boxes(targets.boxes)
        objects.gt_classes = targets.classes
        if self.masks:
            masks = LayerMasks(targets.layers, targets.layer_of, targets.ids)
            objects.gt_masks = BitMasks(masks.dense()) if self.masks == "bitmasks" else masks
        if targets.ignore is not None:
            objects.gt_ignored = IgnoredRegion(targets)
        return {
            **self.from_image(sample.image, (sample.height, sample.width)),
            "instances": objects,
            "file_name": sample.file_name,
            "image_id": sample.image_id,
        }


def build_detectron2(cfg: Config) -> Detectron2Segmenter:
    """Build the model of a configuration from Detectron2's parts, on the CPU in training mode.

    Raises:
        ConfigError: Detectron2 cannot build it.
    """
    try:
        network = build_model(to_cfg_node(cfg))
    except (AssertionError, KeyError, ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"Detectron2 cannot build {cfg.MODEL.META_ARCHITECTURE}: {type(error).__name__}: {error}"
        ) from error
    # Subclasses may detect objects in other ways than through regions.
    is_rcnn = type(network) is GeneralizedRCNN
    takes_layers = is_rcnn and isinstance(getattr(network.roi_heads, "mask_head", None), BaseMaskRCNNHead)
    inputs = InputMaker(
        channels=len(cfg.MODEL.PIXEL_MEAN),
        bgr=cfg.INPUT.FORMAT == "BGR",
        num_classes=num_classes(cfg),
        masks="" if not cfg.MODEL.MASK_ON else "layers" if takes_layers else "bitmasks",
    )
    rpn_sees_all = set(getattr(network.backbone, "_out_features", ())) <= set(cfg.MODEL.RPN.IN_FEATURES)
    model = (Detectron2RegionSegmenter if is_rcnn else Detectron2Segmenter)(network, inputs=inputs)
    model.trains_everything = is_rcnn and rpn_sees_all and not cfg.MODEL.IMPORTS
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    model.largest_object = max(max(level) if isinstance(level, list) else level for level in sizes)
    return model


class Detectron2Segmenter(Segmenter):
    """A Detectron2 model. It shares the model's submodules, so that its state_dict has Detectron2's names.

    network: the model, with Detectron2's inputs and outputs. inputs: makes the inputs.
    """

    def __init__(self, network: nn.Module, *, inputs: InputMaker) -> None:
        super().__init__()
        self.__dict__["network"] = network  # not registered as a submodule
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[name] = network.__dict__[name]
        self.inputs = inputs
        if hasattr(getattr(network, "backbone", None), "bottom_up"):
            self.pretrained_prefix = "backbone.bottom_up."
        self._honours_ignored = honour_ignored_regions(network)
        self._warned = False
        self._loss_names: tuple[str, ...] = ("loss",)

    def train(self, mode: bool = True) -> Self:
        """See nn.Module.train."""
        super().train(mode)
        self.network.training = mode
        return self

    def prefer_speed(self) -> Self:
        """See Segmenter.prefer_speed; has no effect on Detectron2's models."""
        return self

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """See Segmenter.forward; the losses are those of the architecture."""
        ignoring = [sample for sample in samples if sample.ignore is not None and sample.ignore.any()]
        if not self._honours_ignored and any(sample.metadata.get(SOURCE_FIELD) == PSEUDO for sample in ignoring):
            raise ConfigError(
                f"{type(self.network).__name__} counts ignored regions as background in some of its losses, so it "
                "would learn ignored pseudo-labels as background. Train a GeneralizedRCNN with StandardROIHeads or "
                "CascadeROIHeads, or ignore nothing (gates: ignore_score equal to score)"
            )
        if ignoring and not self._honours_ignored and not self._warned:
            self._warned = True
            logger.warning(
                "%s counts ignored regions as background in some of its losses",
                type(self.network).__name__,
            )
        inputs = [self.inputs.from_sample(sample, self.device) for sample in samples]
        try:
            # Detectron2's heads log to an event storage, which only its own trainer sets up.
            with nullcontext() if has_event_storage() else EventStorage():
                losses = self.network(inputs)
        except FloatingPointError as error:
            # Returned as non-finite losses, it stops all processes; the others wait for this one's gradients.
            logger.warning("Detectron2: %s", error)
            anything = sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)
            return dict.fromkeys(self._loss_names, anything * torch.nan)
        losses = losses if isinstance(losses, dict) else {"loss": losses}
        self._loss_names = tuple(losses)
        return losses

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[np.ndarray],
        output_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """See Segmenter.predict; these architectures paste their masks (N, H, W) at the output size themselves."""
        self.require_evaluation_mode()
        sizes = [image.shape[:2] for image in images] if output_sizes is None else output_sizes
        inputs = [self.inputs.from_image(image, size) for image, size in zip(images, sizes, strict=True)]
        predictions = []
        for found, size in zip(self.network(inputs) if inputs else [], sizes, strict=True):
            objects = found["instances"].to("cpu")
            rles = None
            if objects.has("pred_masks"):
                masks = getattr(objects.pred_masks, "tensor", objects.pred_masks)
                rles = [encode_mask(mask.numpy() > 0.5) for mask in masks]
            boxes = objects.pred_boxes.tensor.numpy()
            scores, classes = objects.scores.float().numpy(), objects.pred_classes.numpy()
            keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            predictions.append(Predictions(0, "", *size, boxes, scores, classes, rles).select(keep))
        return predictions

    def _load_from_state_dict(self, *args: Any) -> None:
        self.network._load_from_state_dict(*args)  # some architectures rename old weights in it


class Detectron2RegionSegmenter(RegionSegmenter, Detectron2Segmenter):
    """Detectron2's GeneralizedRCNN, with features kept between boxes and masks."""

    masks_apart = False

    @property
    def has_mask_head(self) -> bool:
        """See RegionSegmenter."""
        return bool(self.inputs.masks)

    def extract(self, images: Sequence[np.ndarray]) -> tuple[ImageList, dict[str, Tensor]]:
        """See RegionSegmenter.extract: the batch and its feature maps by name."""
        batch = self.network.preprocess_image([self.inputs.from_image(image, image.shape[:2]) for image in images])
        return batch, self.network.backbone(batch.tensor)

    def detect(self, features: tuple[ImageList, dict[str, Tensor]]) -> list[Detections]:
        """See RegionSegmenter.detect; Detectron2 also computes the masks of its detections."""
        batch, maps = features
        check_finite("feature maps (backbone)", *maps.values())
        proposals, _ = self.network.proposal_generator(batch, maps, None)
        found, _ = self.network.roi_heads(batch, maps, proposals, None)
        return [
            Detections(
                boxes=one.pred_boxes.tensor,
                scores=one.scores,
                classes=one.pred_classes,
                masks=one.pred_masks[:, 0] if one.has("pred_masks") else None,
            )
            for one in found
        ]

    def region_masks(
        self, features: tuple[ImageList, dict[str, Tensor]], boxes: list[Tensor], classes: list[Tensor]
    ) -> list[RegionMasks]:
        """See RegionSegmenter.region_masks."""
        batch, maps = features
        given = []
        for image_boxes, image_classes, size in zip(boxes, classes, batch.image_sizes, strict=True):
            given.append(Instances(size, pred_boxes=Boxes(image_boxes), pred_classes=image_classes))
        return [
            RegionMasks(one.pred_masks[:, 0]) for one in self.network.roi_heads.forward_with_given_boxes(maps, given)
        ]
