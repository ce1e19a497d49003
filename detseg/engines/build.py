"""Build the model of a configuration with its engine, and describe its architecture."""

from __future__ import annotations

from importlib import import_module

from detseg.config import Config
from detseg.engines.choice import choose_engine
from detseg.models.base import Segmenter
from detseg.models.freezing import freeze_by_name
from detseg.models.table import ARCHITECTURES, Architecture, build_native

DETECTRON2_BUILDER = "detseg.detectron2.segmenter:build_detectron2"


def architecture_of(cfg: Config) -> Architecture:
    """Return what the model of a configuration provides, with either engine.

    Detectron2's GeneralizedRCNN provides what the native one does; its other architectures provide only whole masks.
    """
    return ARCHITECTURES.get(cfg.MODEL.META_ARCHITECTURE, Architecture(options="", build=DETECTRON2_BUILDER))


def build_model(cfg: Config) -> Segmenter:
    """Build the model of a configuration with its engine: initial weights, on the CPU, in training mode.

    Raises:
        ConfigError: the engine cannot build it, or a pattern of MODEL.FREEZE matches no parameter.
    """
    if choose_engine(cfg, training=False).name == "detectron2":
        module, function = DETECTRON2_BUILDER.split(":")
        model = getattr(import_module(module), function)(cfg)
    else:
        model = build_native(cfg)
    freeze_by_name(model, cfg.MODEL.FREEZE)
    return model
