"""The models by name (MODEL.META_ARCHITECTURE), imported when they are built."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from detseg.engines.engines import choose_engine
from detseg.errors import ConfigError
from detseg.models.base import Segmenter
from detseg.models.freezing import freeze_by_name

BUILDERS = {
    "GeneralizedRCNN": "detseg.models.rcnn.build:build_generalized_rcnn",
    "TorchvisionMaskRCNN": "detseg.models.torchvision:build_torchvision_mask_rcnn",
}
DETECTRON2_BUILDER = "detseg.detectron2.segmenter:build_detectron2"


def build_model(cfg: Any) -> Segmenter:
    """Build the model of a configuration by its engine, with initial weights, on the CPU and in training mode.

    Raises ConfigError for what is not known, and for patterns of MODEL.FREEZE that match nothing.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    engine = choose_engine(cfg, training=False).name
    if engine == "native" and name not in BUILDERS:
        raise ConfigError(f"MODEL.META_ARCHITECTURE is {name!r}; known are {', '.join(sorted(BUILDERS))}")
    module, function = (DETECTRON2_BUILDER if engine == "detectron2" else BUILDERS[name]).split(":")
    model = getattr(import_module(module), function)(cfg)
    freeze_by_name(model, cfg.MODEL.FREEZE)
    return model
