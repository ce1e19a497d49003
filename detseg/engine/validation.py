"""Validation of configurations for training or evaluation, before any data are read."""

from __future__ import annotations

from detseg.config import Config
from detseg.config.options import Options
from detseg.data.folds import DataSetOptions
from detseg.engine.plan import ComputeOptions, EvaluationOptions, TrainingPlan
from detseg.engines.choice import EngineChoice
from detseg.engines.validation import validate
from detseg.inference.validation import PREDICTION
from detseg.runs.trackers import TrackingOptions

# Options that scoring reads; below, those that only training reads.
EVALUATION: tuple[type[Options], ...] = (DataSetOptions, EvaluationOptions)
TRAINING: tuple[type[Options], ...] = (TrainingPlan, ComputeOptions, TrackingOptions)


def validate_config(cfg: Config, *, training: bool = True) -> EngineChoice:
    """Check everything that can be checked without data; return the engine.

    Args:
        training: False for evaluation with given weights, which requires less.

    Raises:
        ConfigError: all problems, each with its key and origin.
    """
    if training:
        return validate(cfg, (*PREDICTION, *EVALUATION, *TRAINING), training=True, honoured=())
    return validate(cfg, (*PREDICTION, *EVALUATION), training=False, honoured=TRAINING)
