"""The native architectures by name (MODEL.META_ARCHITECTURE): how each is built, its keys, and its outputs.

One row registers an architecture: its keys and their legal values follow from `options`; refusals of unsupported
options (`--boxes`, `--soft-masks`, `--tta-mode merge_then_mask`) and defaults (the mode of test-time augmentation)
follow from the other fields. Modules are imported when they are needed. `detseg.engines.build.architecture_of` returns
the same information for configurations that Detectron2 runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from detseg.config import Config
from detseg.config.options import Options, Problems, Rule, key, part
from detseg.errors import ConfigError
from detseg.models.base import Segmenter
from detseg.models.options import ImageInputOptions, LimitOptions
from detseg.models.pretrained import is_named, is_torchvision_address, note_named_weights, note_torchvision_input


@dataclass(frozen=True)
class Architecture:
    """One kind of model.

    Attributes:
        options: `module:class` of its Options, from which its keys with their legal values follow.
        build: `module:function`, which builds the model, randomly initialized, from these options.
        finds_boxes: it detects boxes first and predicts masks for boxes, its own or given ones (`--boxes`). Only then
            can test-time augmentation merge boxes before masks are computed (`merge_then_mask`).
        averages_maps: it predicts maps of the image that can be averaged over views and models before objects are
            formed (`average_maps`).
        soft_masks: it predicts the probability of every pixel of an object (`--soft-masks`), not only its mask.
        limits: the keys that limit the number of objects per image.
        in_detectron2: Detectron2 has this architecture too, with the same keys.
        weighs_labels: its losses use label weights (Sample.weight, object_weights, certainty).
    """

    options: str
    build: str
    finds_boxes: bool = False
    averages_maps: bool = False
    soft_masks: bool = False
    limits: tuple[str, ...] = ("TEST.DETECTIONS_PER_IMAGE",)
    in_detectron2: bool = False
    weighs_labels: bool = False


_PROPOSALS = ("TEST.DETECTIONS_PER_IMAGE", "MODEL.RPN.POST_NMS_TOPK_TEST")

ARCHITECTURES = {
    "GeneralizedRCNN": Architecture(
        options="detseg.models.rcnn.build:RCNNOptions",
        build="detseg.models.rcnn.build:build_generalized_rcnn",
        finds_boxes=True,
        soft_masks=True,
        limits=_PROPOSALS,
        in_detectron2=True,
        weighs_labels=True,
    ),
    "TorchvisionMaskRCNN": Architecture(
        options="detseg.models.torchvision:TorchvisionOptions",
        build="detseg.models.torchvision:build_torchvision_mask_rcnn",
        finds_boxes=True,
        soft_masks=True,
        limits=_PROPOSALS,
    ),
    "PromptedSAM": Architecture(
        options="detseg.models.prompted.segmenter:PromptedOptions",
        build="detseg.models.prompted.segmenter:build_prompted_sam",
        soft_masks=True,
    ),
    **{
        name: Architecture(
            options=f"detseg.models.bottom_up.{options}",
            build=f"detseg.models.bottom_up.{options.partition(':')[0]}:{name}",
            averages_maps=True,
            soft_masks=True,
        )
        for name, options in {
            "BinaryUNet": "binary:BinaryOptions",
            "BoundaryUNet": "boundary:BoundaryOptions",
            "InstanceUNet": "instance:InstanceOptions",
            "DistanceUNet": "instance:InstanceOptions",
            "PixelEmbedding": "embedding:EmbeddingOptions",
        }.items()
    },
}


# Keys of label weights, for architectures that support them, and the values that disable them.
LABEL_WEIGHTS = {"DATASETS.LOSS_WEIGHTS": [], "DATASETS.PSEUDO_CONFIDENCE": [], "DATASETS.PSEUDO_BACKGROUND": 1.0}

_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?")


def _no_device(name: str) -> str | None:
    return None if _DEVICE.fullmatch(name) else "expected auto, cpu, cuda, cuda:0 (any number), mps or xpu"


@dataclass(frozen=True)
class ModelOptions(Options):
    """Options of every model, with either engine."""

    section = "MODEL"

    architecture: str = key("META_ARCHITECTURE", choices=tuple(ARCHITECTURES), registry=True)
    device: str = key("DEVICE", test=_no_device)
    weights: str = key("WEIGHTS")
    freeze: tuple[str, ...] = key("FREEZE")
    compile: bool = key("COMPILE")
    num_classes: int = key("ROI_HEADS.NUM_CLASSES", at_least=1)
    image_input: ImageInputOptions = part(ImageInputOptions)
    limit: LimitOptions = part(LimitOptions)

    def check(self, problems: Problems) -> None:
        named = len(problems.cfg.DATASETS.CLASSES)
        if named and named != self.num_classes:
            expected = f"MODEL.ROI_HEADS.NUM_CLASSES is {self.num_classes}: make them agree"
            problems.add("DATASETS.CLASSES", expected)
        if not problems.training:
            return
        architecture = ARCHITECTURES.get(self.architecture)
        if problems.engine == "native" and architecture is not None and not architecture.weighs_labels:
            for name, plain in LABEL_WEIGHTS.items():
                if problems.cfg[name] != plain:
                    problems.add(name, f"{self.architecture} does not support label weights; leave it at {plain}")
        keys = model_rules(problems.cfg)
        if not self.weights:
            self._check_from_scratch(problems, keys)
        elif is_torchvision_address(self.weights):
            note_torchvision_input(problems, self.weights, keys)
        elif is_named(self.weights):
            note_named_weights(problems, self.weights, keys)

    def _check_from_scratch(self, problems: Problems, keys: Mapping[str, Rule]) -> None:
        for name in keys:
            if name.endswith(".NORM") and problems.cfg[name] == "FrozenBN":
                problems.add(name, "frozen statistics need pretrained MODEL.WEIGHTS; from scratch use BN or GN")
        freeze_at = "MODEL.BACKBONE.FREEZE_AT"
        if freeze_at in keys and problems.cfg[freeze_at] > 0:
            problems.add(freeze_at, "frozen layers need pretrained MODEL.WEIGHTS; from scratch set 0")
        if self.freeze:
            problems.add("MODEL.FREEZE", "what is frozen needs pretrained MODEL.WEIGHTS; from scratch set []")


def num_classes(cfg: Config) -> int:
    """Return the number of object classes, for any architecture."""
    return cfg.MODEL.ROI_HEADS.NUM_CLASSES


def options_of(name: str) -> type[Options]:
    """Return the options of the native architecture `name`."""
    return _imported(ARCHITECTURES[name].options)


def model_rules(cfg: Config) -> dict[str, Rule]:
    """Return the keys that the model of a configuration uses, with their rules.

    For an architecture that only Detectron2 has, only the keys of its backbone are known.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    backbone = ("MODEL.BACKBONE.FREEZE_AT", "MODEL.RESNETS.NORM", "MODEL.FPN.NORM")
    return options_of(name).rules(cfg) if name in ARCHITECTURES else {key: Rule(key) for key in backbone}


def build_native(cfg: Config) -> Segmenter:
    """Build the native model of a configuration, randomly initialized, on the CPU and in training mode.

    Raises:
        ConfigError: no such architecture, or invalid values.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in ARCHITECTURES:
        raise ConfigError(f"MODEL.META_ARCHITECTURE is {name!r}; known are {', '.join(sorted(ARCHITECTURES))}")
    return _imported(ARCHITECTURES[name].build)(options_of(name).from_config(cfg))


def _imported(name: str) -> Any:
    module, _, member = name.partition(":")
    return getattr(import_module(module), member)
