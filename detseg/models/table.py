"""The native architectures by name (MODEL.META_ARCHITECTURE): how each is built, its keys, and what it gives.

One row makes an architecture known: its keys and their legal values follow from `options`, refusals of what it cannot
do (`--boxes`, `--soft-masks`, `--tta-mode merge_then_mask`) and defaults (the mode of test-time augmentation) from the
other fields. Modules are imported when they are asked for. `detseg.engines.build` has the same answers for a
configuration that Detectron2 runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from detseg.config import Config
from detseg.config.options import Options
from detseg.errors import ConfigError
from detseg.models.base import Segmenter


@dataclass(frozen=True)
class Architecture:
    """One kind of model.

    Attributes:
        options: `module:class` of its Options, from which its keys with their legal values follow.
        build: `module:function`, which makes the model with initial weights from these options.
        finds_boxes: it finds boxes first and gives masks to boxes, its own or given ones (`--boxes`). Only then can
            test-time augmentation merge boxes before there are masks (`merge_then_mask`).
        soft_masks: it gives the probability of every pixel of an object (`--soft-masks`), not only its mask.
        limits: the keys that limit how many objects of an image can be found.
    """

    options: str
    build: str
    finds_boxes: bool = False
    soft_masks: bool = False
    limits: tuple[str, ...] = ("TEST.DETECTIONS_PER_IMAGE",)


_PROPOSALS = ("TEST.DETECTIONS_PER_IMAGE", "MODEL.RPN.POST_NMS_TOPK_TEST")

ARCHITECTURES = {
    "GeneralizedRCNN": Architecture(
        options="detseg.models.rcnn.build:RCNNOptions",
        build="detseg.models.rcnn.build:build_generalized_rcnn",
        finds_boxes=True,
        soft_masks=True,
        limits=_PROPOSALS,
    ),
    "TorchvisionMaskRCNN": Architecture(
        options="detseg.models.torchvision:TorchvisionOptions",
        build="detseg.models.torchvision:build_torchvision_mask_rcnn",
        finds_boxes=True,
        soft_masks=True,
        limits=_PROPOSALS,
    ),
}


def num_classes(cfg: Config) -> int:
    """The number of classes of objects, whatever the architecture."""
    return cfg.MODEL.ROI_HEADS.NUM_CLASSES


def options_of(name: str) -> type[Options]:
    """The options of the native architecture `name`."""
    return _imported(ARCHITECTURES[name].options)


def build_native(cfg: Config) -> Segmenter:
    """Build the native model of a configuration, with initial weights, on the CPU and in training mode.

    Raises:
        ConfigError: no such architecture, or values that it does not take.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in ARCHITECTURES:
        raise ConfigError(f"MODEL.META_ARCHITECTURE is {name!r}; known are {', '.join(sorted(ARCHITECTURES))}")
    return _imported(ARCHITECTURES[name].build)(options_of(name).from_config(cfg))


def _imported(name: str) -> Any:
    module, _, member = name.partition(":")
    return getattr(import_module(module), member)
