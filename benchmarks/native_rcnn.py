"""The native Mask R-CNN R50-FPN that the benchmarks compare with other implementations of the same network.

A twin holds one implementation of it with one batch of images: `infer()`, `losses()` and `answers()` are what is timed
and compared. Stem and first stage are frozen, all norms too, as in training from pretrained weights; the weights are
random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detseg.config import load_flat_config
from detseg.engines.build import build_model
from detseg.models.base import Segmenter
from detseg.structures import Predictions, Sample
from detseg.structures import rle as rle_codec

LEVELS = ("res2", "res3", "res4", "res5")
PYRAMID = ("p2", "p3", "p4", "p5", "p6")


@dataclass(frozen=True)
class Settings:
    """What both models are built with; before_nms of every level, proposals and detections of an image."""

    before_nms: int
    proposals: int
    detections: int
    num_classes: int = 3
    anchor_sides: tuple[int, ...] = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Answer:
    """What a twin found in one image: boxes (N, 4), scores (N,), classes (N,) and areas of the masks (N,), pixels."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    areas: np.ndarray


class NativeTwin:
    """detseg's own model."""

    name = "native"
    poolers = ("roi_heads.box_pooler", "roi_heads.mask_pooler")

    def __init__(self, settings: Settings, samples: Sequence[Sample], device: torch.device) -> None:
        self.samples = samples
        self.images = [sample.image for sample in samples]
        self.model: nn.Module = native_model(settings).to(device)

    def infer(self) -> list[Predictions]:
        """Images to run-lengths."""
        return self.model.predict(self.images)

    def infer_above(self, threshold: float) -> list[Predictions]:
        """As `predict` does with the score threshold of a run: what is below gets no masks."""
        return self.model.cache_features(self.images).predict(keep=lambda scores, classes: scores >= threshold)

    def answers(self) -> list[Answer]:
        """What `infer` finds."""
        return [Answer(p.boxes, p.scores, p.classes, rle_codec.area(p.rles)) for p in self.infer()]

    def losses(self) -> dict[str, Tensor]:
        """Losses of the batch."""
        return self.model(self.samples)


def keys(settings: Settings) -> dict[str, Any]:
    """Detectron2's configuration keys of the network."""
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 2,
        "MODEL.RESNETS.OUT_FEATURES": list(LEVELS),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.FPN.IN_FEATURES": list(LEVELS),
        "MODEL.ANCHOR_GENERATOR.SIZES": [[side] for side in settings.anchor_sides],
        "MODEL.RPN.IN_FEATURES": list(PYRAMID),
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": settings.before_nms,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": settings.before_nms,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": settings.proposals,
        "MODEL.RPN.POST_NMS_TOPK_TEST": settings.proposals,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": list(PYRAMID[:4]),
        "MODEL.ROI_HEADS.NUM_CLASSES": settings.num_classes,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.MASK_ON": True,
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "INPUT.FORMAT": "RGB",
        "TEST.DETECTIONS_PER_IMAGE": settings.detections,
    }


def native_model(settings: Settings) -> Segmenter:
    """The native model with random weights."""
    model = build_model(load_flat_config({"MODEL.ENGINE": "native"} | keys(settings)))
    with torch.no_grad():
        for name, module in model.named_modules():
            # Random weights without statistics: keep the sums of the blocks from growing.
            if name.endswith("conv3.norm"):
                module.weight.fill_(0.2)
    return model
