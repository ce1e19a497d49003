"""Any model of Detectron2's as a Segmenter of detseg: the same samples in, the same Predictions out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage, has_event_storage
from torch import Tensor, nn

from detseg.config import Config
from detseg.detectron2.config import to_cfg_node
from detseg.detectron2.ignore import honour_ignored_regions
from detseg.errors import ConfigError, DataError
from detseg.models.answers import RegionLook, scale_boxes, to_predictions
from detseg.models.base import Look, Segmenter
from detseg.models.rcnn.box_head import Detections
from detseg.models.rcnn.mask_head import sample_masks
from detseg.models.rcnn.targets import Targets
from detseg.structures.predictions import Predictions
from detseg.structures.rle import encode_mask
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from typing_extensions import Self


# Label layers behind the interface of Detectron2's masks: targets are cut out without any full-size mask.
#
# N: objects. A region of N may be one object many times: proposals matched to it.


class LayerMasks:
    """The masks of N objects, as `gt_masks` of Detectron2's Instances.

    layers: (L, H, W) int32, shared by all selections. layer_of: (N,) int64 and ids: (N,) int32, where each object is.
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
        """Move to a device, as Tensor.to."""
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

        Equal to BitMasks.crop_and_resize.
        """
        boxes = boxes.to(self.device)
        return sample_masks(self.layers, self.layer_of, self.ids, boxes, mask_size)

    def dense(self) -> Tensor:
        """Return all masks (N, H, W) bool at full size, for architectures that insist on them."""
        return self.layers[self.layer_of] == self.ids[:, None, None]


# Samples and images as the dictionaries that Detectron2's models take.


class IgnoredRegion:
    """Where an image counts for nothing, as the field `gt_ignored` of its N objects.

    Detectron2 hands fields that begin with gt_ from objects to the proposals that they are matched to.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets.boxes)

    def __getitem__(self, item: Any) -> IgnoredRegion:
        parts = {name: getattr(self.targets, name)[item] for name in ("boxes", "classes", "ids", "layer_of", "ignored")}
        return IgnoredRegion(replace(self.targets, **parts))

    def counted(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Return (M, mask_size, mask_size) bool: the cells of boxes (M, 4) that are not ignored."""
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return ~sample_masks(self.targets.ignore[None].int(), nothing, nothing.int() + 1, boxes, mask_size)


@dataclass(frozen=True)
class InputMaker:
    """Makes the inputs of one model.

    channels: of its images. bgr: images of three channels come as RGB and are turned around. num_classes: of the
    objects. masks: "layers", "bitmasks" (N full-size masks, for architectures that insist on them) or "" for none.
    """

    channels: int
    bgr: bool
    num_classes: int
    masks: str

    def image(self, image: np.ndarray) -> Tensor:
        """Return an image (H, W, C) as a tensor (C, H, W), uint8 or float32, on the CPU.

        Raises:
            DataError: another number of channels than the model's.
        """
        if image.ndim != 3 or image.shape[2] != self.channels or 0 in image.shape:
            raise DataError(
                f"the model takes images (height, width, {self.channels}) with pixels, but got {image.shape}; "
                "MODEL.PIXEL_MEAN has one value per channel, INPUT.CHANNELS says which of a file's are taken"
            )
        if image.dtype not in (np.uint8, np.float32):
            image = image.astype(np.float32)
        if self.bgr and self.channels == 3:
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def from_image(self, image: np.ndarray, output_size: tuple[int, int]) -> dict[str, Any]:
        """Return the input of one image to predict; `output_size` (height, width) is that of the answer."""
        return {"image": self.image(image), "height": output_size[0], "width": output_size[1]}

    def from_sample(self, sample: Sample, device: torch.device) -> dict[str, Any]:
        """Return the input of one sample to train with, its objects as Instances on `device`.

        Raises:
            DataError: no annotations, or a class that the model does not know.
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
            "image": self.image(sample.image),
            "instances": objects,
            "height": sample.height,
            "width": sample.width,
            "file_name": sample.file_name,
            "image_id": sample.image_id,
        }


logger = logging.getLogger(__name__)


def build_detectron2(cfg: Config) -> Detectron2Segmenter:
    """Build the model of a configuration with Detectron2's own parts, on the CPU and in training mode.

    Raises:
        ConfigError: Detectron2 cannot build it.
    """
    node = to_cfg_node(cfg)
    try:
        network = build_model(node)
    except (AssertionError, KeyError, ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"Detectron2 cannot build {cfg.MODEL.META_ARCHITECTURE}: {type(error).__name__}: {error}"
        ) from error
    mask_head = getattr(getattr(network, "roi_heads", None), "mask_head", None)
    layers_will_do = type(network) is GeneralizedRCNN and isinstance(mask_head, BaseMaskRCNNHead)
    inputs = InputMaker(
        channels=len(cfg.MODEL.PIXEL_MEAN),
        bgr=cfg.INPUT.FORMAT == "BGR",
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        masks="" if not cfg.MODEL.MASK_ON else "layers" if layers_will_do else "bitmasks",
    )
    rpn_sees_all = set(getattr(network.backbone, "_out_features", ())) <= set(cfg.MODEL.RPN.IN_FEATURES)
    return Detectron2Segmenter(
        network,
        inputs=inputs,
        needs_classes=not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK and inputs.num_classes > 1,
        trains_everything=type(network) is GeneralizedRCNN and rpn_sees_all and not cfg.MODEL.IMPORTS,
    )


class Detectron2Segmenter(Segmenter):
    """A model of Detectron2's. Its parts are this module's own, so that the state_dict has Detectron2's names.

    network: the model, which takes and gives what Detectron2's do. inputs: makes what it takes. needs_classes: whether
    masks depend on the class. trains_everything: see Segmenter.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        inputs: InputMaker,
        needs_classes: bool = True,
        trains_everything: bool = False,
    ) -> None:
        super().__init__()
        self.__dict__["network"] = network  # beside the submodules, not one of them
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[name] = network.__dict__[name]
        self.inputs = inputs
        self.trains_everything = trains_everything
        if hasattr(getattr(network, "backbone", None), "bottom_up"):
            self.pretrained_prefix = "backbone.bottom_up."
        self._needs_classes = needs_classes
        self._honours_ignored = honour_ignored_regions(network)
        self._warned = False
        self._loss_names: tuple[str, ...] = ("loss",)

    def train(self, mode: bool = True) -> Self:
        """See nn.Module.train."""
        super().train(mode)
        self.network.training = mode
        return self

    def prefer_speed(self) -> Self:
        """See Segmenter.prefer_speed: Detectron2's models compute as Detectron2 does."""
        return self

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """See Segmenter.forward; the losses are those of the architecture."""
        if not self._honours_ignored and not self._warned and any(_has_ignored(sample) for sample in samples):
            self._warned = True
            logger.warning(
                "%s counts ignored regions of the images as background in some of its losses",
                type(self.network).__name__,
            )
        inputs = [self.inputs.from_sample(sample, self.device) for sample in samples]
        try:
            with _event_storage():
                losses = self.network(inputs)
        except FloatingPointError as error:
            # As losses it reaches all processes of a training, of which the others wait for this one's gradients.
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
        *,
        output_sizes: Sequence[tuple[int, int]] | None = None,
        boxes: Sequence[np.ndarray] | None = None,
        classes: Sequence[np.ndarray] | None = None,
        scores: Sequence[np.ndarray] | None = None,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """See Segmenter.predict."""
        if len(images) == 0:
            return []
        if boxes is not None:
            look = self.look(images, output_sizes=output_sizes)
            if not isinstance(look, RegionLook):
                raise DataError(f"{type(self.network).__name__} cannot predict masks for given boxes")
            return look.given(boxes, classes, scores, soft_masks=soft_masks)
        self._check_mode()
        sizes = [image.shape[:2] for image in images]
        output_sizes = sizes if output_sizes is None else output_sizes
        inputs = [self.inputs.from_image(*pair) for pair in zip(images, output_sizes, strict=True)]
        if not isinstance(self.network, GeneralizedRCNN):
            return self._whole_answers(inputs, soft_masks)
        answers = self.network.inference(inputs, do_postprocess=False)
        return [
            to_predictions(
                _detections(answer),
                answer.pred_masks[:, 0] if answer.has("pred_masks") else None,
                scale_boxes(answer.pred_boxes.tensor, size, output).cpu().numpy(),
                output,
                soft_masks=soft_masks,
                drop_empty=True,
            )
            for answer, size, output in zip(answers, sizes, output_sizes, strict=True)
        ]

    @torch.inference_mode()
    def look(self, images: Sequence[np.ndarray], *, output_sizes: Sequence[tuple[int, int]] | None = None) -> Look:
        """See Segmenter.look; an R-CNN's feature maps are kept."""
        if not isinstance(self.network, GeneralizedRCNN):
            return super().look(images, output_sizes=output_sizes)
        self._check_mode()
        network, sizes = self.network, [image.shape[:2] for image in images]
        inputs = [self.inputs.from_image(image, size) for image, size in zip(images, sizes, strict=True)]
        batch = network.preprocess_image(inputs)
        features = network.backbone(batch.tensor)

        def detect() -> list[Detections]:
            proposals, _ = network.proposal_generator(batch, features, None)
            found, _ = network.roi_heads(batch, features, proposals, None)
            return [_detections(one) for one in found]

        def masks(boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> list[Tensor]:
            given = [_given(*one) for one in zip(boxes, classes, sizes, strict=True)]
            return [one.pred_masks[:, 0] for one in network.roi_heads.forward_with_given_boxes(features, given)]

        return RegionLook(
            sizes=sizes,
            output_sizes=output_sizes,
            detect=detect,
            masks=masks if self.inputs.masks else None,
            needs_classes=self._needs_classes,
            device=self.device,
        )

    def _whole_answers(self, inputs: list[dict[str, Any]], soft_masks: bool) -> list[Predictions]:
        """Return the answers of an architecture that postprocesses itself, its masks (N, H, W) at the output size."""
        if soft_masks:
            raise DataError(f"{type(self.network).__name__} gives no mask probabilities: predict without soft masks")
        answers = [answer["instances"].to("cpu") for answer in self.network(inputs)]
        predictions = []
        for answer, given in zip(answers, inputs, strict=True):
            found = _detections(answer)
            boxes = found.boxes.numpy()
            prediction = to_predictions(found, None, boxes, (given["height"], given["width"]))
            if answer.has("pred_masks"):
                masks = answer.pred_masks
                masks = masks.tensor if hasattr(masks, "tensor") else masks
                prediction.rles = [encode_mask(mask.numpy() > 0.5) for mask in masks]
            keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            predictions.append(prediction.select(keep))
        return predictions

    def _check_mode(self) -> None:
        if self.training:
            raise RuntimeError("predict() needs the model in evaluation mode: call model.eval() before")

    def _load_from_state_dict(self, *args: Any) -> None:
        self.network._load_from_state_dict(*args)  # architectures convert old names of weights in it


def _detections(answer: Instances) -> Detections:
    return Detections(answer.pred_boxes.tensor, answer.scores, answer.pred_classes)


def _given(boxes: Tensor, classes: Tensor, size: tuple[int, int]) -> Instances:
    given = Instances(size)
    given.pred_boxes = Boxes(boxes)
    given.pred_classes = classes
    return given


def _has_ignored(sample: Sample) -> bool:
    return sample.ignore is not None and bool(sample.ignore.any())


def _event_storage() -> AbstractContextManager:
    """Detectron2's heads note numbers somewhere; outside of its trainer nobody asks for them."""
    return nullcontext() if has_event_storage() else EventStorage()
