"""Whether a configuration can be trained or evaluated with, judged before any data is read."""

from __future__ import annotations

from detseg.config import Config
from detseg.config.options import Options
from detseg.data.folds import DataSetOptions
from detseg.engine.plan import ComputeOptions, EvaluationOptions, TrainingPlan
from detseg.engines.choice import EngineChoice
from detseg.engines.validation import validate
from detseg.inference.validation import PREDICTION
from detseg.runs.trackers import TrackingOptions

# What scoring reads, and what only training reads.
EVALUATION: tuple[type[Options], ...] = (DataSetOptions, EvaluationOptions)
TRAINING: tuple[type[Options], ...] = (TrainingPlan, ComputeOptions, TrackingOptions)


def validate_config(cfg: Config, *, training: bool = True) -> EngineChoice:
    """Check everything that can be checked without data; return the engine.

    Args:
        training: False for evaluation with given weights, which needs less.

    Raises:
        ConfigError: all problems, each with its key and where it was set.
    """
    if training:
        return validate(cfg, (*PREDICTION, *EVALUATION, *TRAINING), training=True, honoured=())
    return validate(cfg, (*PREDICTION, *EVALUATION), training=False, honoured=TRAINING)
