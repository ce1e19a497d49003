"""--eval-only: score weights that are there, without training and without touching what a run has written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.config import load_config, validate_config
from detseg.engine.checkpoint import load_checkpoint
from detseg.engine.data_sets import load_test_sets
from detseg.engine.evaluation import METRICS_FILE
from detseg.engine.interrupt import StopRequest
from detseg.engine.run_folder import find_run, next_number, open_run
from detseg.engine.session import evaluate_weights
from detseg.errors import ConfigError, WeightsError
from detseg.inference.loading import choose_device
from detseg.models.table import build_model

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationTarget:
    """What is evaluated and where the results go."""

    cfg: Config
    weights: Path
    folder: Path


def evaluate_only(cfg: Config, overrides: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
    """Evaluate MODEL.WEIGHTS of the command line, or where there is no run; else the run's best weights.

    Results of a run's weights go into its folder where it has none yet, else into its evaluations/001 and so on; those
    of other weights into a new run folder, or into evaluations/ of the run in OUTPUT_DIR.

    Args:
        cfg: the configuration as it was asked for.
        overrides: the words of the command line, which go before the run's own settings.

    Returns:
        the folder, and what its final_metrics.json holds.

    Raises:
        ConfigError: nothing to evaluate with, or on. WeightsError: the weights do not fit.
    """
    target = _target(cfg, overrides)
    cfg = target.cfg
    validate_config(cfg, training=False)
    if not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only needs images: set DATASETS.TEST")
    classes = stored_classes(target.weights)
    test_sets = load_test_sets(cfg, classes)
    classes = classes or next(iter(test_sets.values())).class_names
    warn_about_other_input(cfg, target.weights)
    model = build_model(cfg).to(choose_device(cfg.MODEL.DEVICE)).prefer_speed()
    logger.info("evaluating %s", target.weights)
    with StopRequest() as stop:
        return target.folder, evaluate_weights(cfg, model, target.weights, test_sets, classes, target.folder, stop)


def stored_classes(weights: Path) -> list[str] | None:
    """The class names of a checkpoint of detseg, None for weights of another origin."""
    try:
        return load_checkpoint(weights).get("classes")
    except WeightsError:
        if not weights.is_file():
            raise
        return None


def warn_about_other_input(cfg: Config, weights: Path) -> list[str]:
    """Warn of INPUT keys that differ from those that the weights were trained with; return their names."""
    try:
        trained = load_checkpoint(weights).get("config", {})
    except WeightsError:
        return []
    image_keys = ("INPUT.CHANNELS", "INPUT.GRAYSCALE", "INPUT.SCALING", "INPUT.INVERT", "INPUT.FORMAT", "MODEL.PIXEL")
    present = cfg.flatten()
    different = [k for k, value in trained.items() if k.startswith(image_keys) and present.get(k, value) != value]
    for key in different:
        logger.warning("%s is %r, but these weights were trained with %r", key, present[key], trained[key])
    return different


def _target(cfg: Config, overrides: Sequence[str]) -> EvaluationTarget:
    run = find_run(cfg)
    own = None if run is None else run / "checkpoints" / "best.pth"
    given = cfg.origin("MODEL.WEIGHTS") == "command line"
    if not given and own is not None and own.is_file():
        config = run / "config.yaml"
        cfg = load_config(config, overrides) if config.is_file() else cfg
        folder = next_number(run / "evaluations") if (run / METRICS_FILE).exists() else run
        return EvaluationTarget(cfg, own, folder)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "--eval-only has nothing to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to a run with checkpoints/best.pth"
        )
    weights = Path(cfg.MODEL.WEIGHTS)
    if run is not None and cfg.origin("OUTPUT_DIR") != "default":
        return EvaluationTarget(cfg, weights, next_number(run / "evaluations"))
    with open_run(cfg) as new:
        return EvaluationTarget(cfg, weights, new.path)
