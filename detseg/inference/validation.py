"""Whether a model can be predicted with, judged before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass

from detseg.config import Config
from detseg.config.options import Options, key, part
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.engines.choice import EngineChoice
from detseg.engines.validation import validate


@dataclass(frozen=True)
class ViewSizeOptions(Options):
    """Detectron2's own views: sizes of the shorter edge, each flipped too."""

    section = "TEST.AUG"

    min_sizes: tuple[int, ...] = key("MIN_SIZES", at_least=1)
    max_size: int = key("MAX_SIZE", at_least=1)
    flip: bool = key("FLIP")


@dataclass(frozen=True)
class ViewOptions(Options):
    """The keys of test-time augmentation; see `detseg.inference.views`."""

    section = "TEST.AUG"

    enabled: bool = key("ENABLED")
    views: tuple[str, ...] = key("VIEWS")
    mode: str = key("MODE", choices=("merge_then_mask", "fuse"))
    method: str = key("METHOD", choices=("nms", "soft_nms", "wbf"))
    masks: str = key("MASKS", choices=("best", "vote", "mean"))
    threshold: float = key("THRESHOLD", at_least=0, at_most=1)
    min_views: int = key("MIN_VIEWS", at_least=1)
    sizes: ViewSizeOptions | None = part(ViewSizeOptions, when=lambda cfg: cfg.TEST.AUG.ENABLED)


# What every prediction reads, in training's evaluations too.
PREDICTION: tuple[type[Options], ...] = (ImagePreprocess, TestSizeOptions, ViewOptions)


def validate_for_prediction(cfg: Config) -> EngineChoice:
    """Refuse what the model or its prediction cannot do; what only training reads is not judged. Return the engine.

    Raises:
        ConfigError: all problems, each with its key and where it was set.
    """
    return validate(cfg, PREDICTION, training=False)
