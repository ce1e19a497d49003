"""Whether a model can be predicted with, judged before its weights are read."""

from __future__ import annotations

from detseg.config import Config
from detseg.config.options import Options
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.engines.choice import EngineChoice
from detseg.engines.validation import validate

# What every prediction reads, in training's evaluations too.
PREDICTION: tuple[type[Options], ...] = (ImagePreprocess, TestSizeOptions)


def validate_for_prediction(cfg: Config) -> EngineChoice:
    """Refuse what the model or its prediction cannot do; what only training reads is not judged. Return the engine.

    Raises:
        ConfigError: all problems, each with its key and where it was set.
    """
    return validate(cfg, PREDICTION, training=False)
