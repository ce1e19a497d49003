"""--eval-only: score weights that are there, without training and without touching what a run has written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.config import load_config
from detseg.engine.data_sets import load_test_sets
from detseg.engine.evaluation import METRICS_FILE
from detseg.engine.session import evaluate_weights
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.engines.choice import choose_engine, for_prediction
from detseg.engines.imports import same_imports
from detseg.errors import ConfigError, WeightsError
from detseg.models.weights import resolve_weights
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.distributed import ALONE, Processes
from detseg.runs.interrupt import StopRequest
from detseg.runs.run_folder import find_run, next_number, open_run

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationTarget:
    """What is evaluated, where the results go, and why this engine evaluates it."""

    cfg: Config
    weights: Path
    folder: Path
    reason: str


def evaluate_only(
    cfg: Config, overrides: Sequence[str] = (), processes: Processes = ALONE
) -> tuple[Path, dict[str, Any]]:
    """Evaluate MODEL.WEIGHTS of the command line, or where there is no run; else the run's best weights.

    Results of a run's weights go into its folder where it has none yet, else into its evaluations/001 and so on; those
    of other weights into a new run folder, or into evaluations/ of the run in OUTPUT_DIR.

    Args:
        cfg: the configuration as it was asked for.
        overrides: the words of the command line, which go before the run's own settings.
        processes: those that predict together.

    Returns:
        the folder, and what its final_metrics.json holds.

    Raises:
        ConfigError: nothing to evaluate with, or on. WeightsError: the weights do not fit.
    """
    target = processes.from_main(lambda: _checked_target(cfg, overrides))
    cfg, weights, folder = target.cfg, target.weights, target.folder
    classes = processes.from_main(lambda: stored_classes(weights))
    with processes.together():
        test_sets = load_test_sets(cfg, classes)
        classes = classes or next(iter(test_sets.values())).class_names
        model = build_model(cfg).to(processes.device(cfg.MODEL.DEVICE)).prefer_speed()
    processes.from_main(lambda: warn_about_other_input(cfg, weights))
    logger.info("evaluating %s", weights)
    with StopRequest(patient=processes.count > 1) as stop:
        about = {"processes": processes, "reason": target.reason}
        return folder, evaluate_weights(cfg, model, weights, test_sets, classes, folder, stop, **about)


def _checked_target(cfg: Config, overrides: Sequence[str]) -> EvaluationTarget:
    target = _target(cfg, overrides)
    validate_config(target.cfg, training=False)
    if not target.cfg.DATASETS.TEST and target.cfg.DATASETS.FOLD < 0:
        raise ConfigError("--eval-only needs images: set DATASETS.TEST")
    return target


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
        cfg = load_config(config, overrides, imports=same_imports(cfg)) if config.is_file() else cfg
        cfg, engine = for_prediction(cfg, load_checkpoint(own).get("engine", "native"))
        folder = next_number(run / "evaluations") if (run / METRICS_FILE).exists() else run
        return EvaluationTarget(cfg, own, folder, engine.reason)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "--eval-only has nothing to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to a run with checkpoints/best.pth"
        )
    weights = resolve_weights(cfg.MODEL.WEIGHTS)
    reason = choose_engine(cfg, training=False).reason
    if run is not None and cfg.origin("OUTPUT_DIR") != "default":
        return EvaluationTarget(cfg, weights, next_number(run / "evaluations"), reason)
    with open_run(cfg) as new:
        return EvaluationTarget(cfg, weights, new.path, reason)
