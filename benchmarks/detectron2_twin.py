"""Detectron2's own Mask R-CNN R50-FPN with the settings and the weights of the native model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from native_rcnn import Answer, NativeTwin, Settings, keys
from torch import Tensor, nn

from detseg.structures import Sample


class Detectron2Twin:
    """Detectron2's model as its trainer and predictor use it; it ends in full-size masks, on the processor."""

    name = "detectron2"
    poolers = ("roi_heads.box_pooler", "roi_heads.mask_pooler")

    def __init__(self, settings: Settings, native: NativeTwin, device: torch.device) -> None:
        self.model = detectron2_model(settings, native.model.state_dict(), device)
        self.inputs = [{"image": torch.from_numpy(image).permute(2, 0, 1).contiguous()} for image in native.images]
        self.targets = [_instances(sample) for sample in native.samples]

    def infer(self) -> list[Instances]:
        """Images to masks."""
        with torch.inference_mode():
            return [answer["instances"].to("cpu") for answer in self.model(self.inputs)]

    def answers(self) -> list[Answer]:
        """What `infer` finds."""
        return [
            Answer(
                answer.pred_boxes.tensor.numpy(),
                answer.scores.numpy(),
                answer.pred_classes.numpy(),
                # One by one: the sum of all of them at once makes eight bytes of every pixel first.
                np.array([int(mask.sum()) for mask in answer.pred_masks]),
            )
            for answer in self.infer()
        ]

    def losses(self) -> dict[str, Tensor]:
        """Losses of the batch."""
        batch = [inputs | {"instances": target} for inputs, target in zip(self.inputs, self.targets, strict=True)]
        with EventStorage():
            return self.model(batch)


def detectron2_model(settings: Settings, weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    """Detectron2's model; `weights` has the native model's names, which are Detectron2's."""
    cfg = get_cfg()
    for name, value in keys(settings).items():
        cfg.merge_from_list([name, value])
    cfg.MODEL.DEVICE = str(device)
    model = build_model(cfg)
    wrong = model.load_state_dict(weights, strict=False)
    known = {name for name, _ in model.named_parameters()}
    if wrong.unexpected_keys or known & set(wrong.missing_keys):
        raise SystemExit(f"the weights do not fit Detectron2's model: {wrong}")
    return model


def _instances(sample: Sample) -> Instances:
    """The objects of a sample as Detectron2's mapper makes them with INPUT.MASK_FORMAT bitmask."""
    fields: dict[str, Any] = {
        "gt_boxes": Boxes(torch.from_numpy(sample.layers.boxes())),
        "gt_classes": torch.from_numpy(sample.classes),
        "gt_masks": BitMasks(torch.from_numpy(sample.layers.masks())),
    }
    return Instances((sample.height, sample.width), **fields)
