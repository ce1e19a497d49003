"""`train_net --eval-only`: score weights without training and without changing the files of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.config import load_config
from detseg.engine.data_sets import load_test_sets
from detseg.engine.evaluation import evaluate_weights
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.engines.choice import EngineChoice, for_prediction
from detseg.engines.validation import same_imports
from detseg.errors import ConfigError, WeightsError
from detseg.files.run_files import CONFIG_FILE, METRICS_FILE
from detseg.models.weights import resolve_weights
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.distributed import SINGLE, Processes
from detseg.runs.interrupt import StopRequest
from detseg.runs.run_folder import RunFolder, find_run, next_number, open_run
from detseg.runs.session import Session

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)

# Preprocessing keys: weights are valid only with those of their training.
INPUT_KEYS = ("INPUT.CHANNELS", "INPUT.GRAYSCALE", "INPUT.SCALING", "INPUT.INVERT", "INPUT.FORMAT", "MODEL.PIXEL")


def evaluate_only(
    cfg: Config, overrides: Sequence[str] = (), processes: Processes = SINGLE
) -> tuple[Path, dict[str, Any]]:
    """Evaluate MODEL.WEIGHTS if set on the command line or without a run; else the run's best weights.

    Results of a run's own weights go into its folder, or if that has results already, into evaluations/001 and so on;
    those of other weights into a new run folder, or into evaluations/ of the run in OUTPUT_DIR.

    Args:
        cfg: the requested configuration.
        overrides: command-line arguments, which override the run's own settings.
        processes: those that predict together.

    Returns:
        the folder, and the content of its final_metrics.json.

    Raises:
        ConfigError: there is nothing to evaluate, or no images. WeightsError: the weights do not fit.
    """
    cfg, engine, weights, folder, classes = processes.from_main(lambda: _choose(cfg, overrides))
    session = Session(cfg, engine, RunFolder(folder, locked=False), processes)
    session.stop = StopRequest(patient=processes.count > 1)
    with processes.together():
        test_sets = load_test_sets(cfg, classes)
        classes = classes or next(iter(test_sets.values())).class_names
        model = build_model(cfg).to(processes.device(cfg.MODEL.DEVICE)).prefer_speed()
    logger.info("evaluating %s", weights)
    with session.stop:
        return folder, evaluate_weights(session, model, weights, test_sets, classes)


def _choose(cfg: Config, overrides: Sequence[str]) -> tuple[Config, EngineChoice, Path, Path, list[str] | None]:
    """Return the configuration, engine, weights, output folder, and the classes stored with the weights."""
    run = find_run(cfg)
    own = None if run is None else run / "checkpoints" / "best.pth"
    trained_by = None
    if own is not None and own.is_file() and cfg.origin("MODEL.WEIGHTS") != "command line":
        weights, saved = own, load_checkpoint(own)
        if (run / CONFIG_FILE).is_file():
            cfg = load_config(run / CONFIG_FILE, overrides, imports=same_imports(cfg))
        cfg, trained_by = for_prediction(cfg, saved.get("engine", "native"))
        parent = run / "evaluations" if (run / METRICS_FILE).exists() else None
    elif not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "--eval-only has nothing to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to a run with checkpoints/best.pth"
        )
    else:
        weights = resolve_weights(cfg.MODEL.WEIGHTS)
        try:
            saved = load_checkpoint(weights)
        except WeightsError:  # not a checkpoint of detseg
            saved = {}
        parent = run / "evaluations" if run is not None and cfg.origin("OUTPUT_DIR") != "default" else None
        run = None if parent is None else run
    judged = validate_config(cfg, training=False)
    if not cfg.DATASETS.TEST and cfg.DATASETS.FOLD < 0:
        raise ConfigError("--eval-only needs images: set DATASETS.TEST")
    trained, present = saved.get("config", {}), cfg.flatten()
    for key, value in trained.items():
        if key.startswith(INPUT_KEYS) and present.get(key, value) != value:
            logger.warning("%s is %r, but these weights were trained with %r", key, present[key], value)
    if parent is not None:
        folder = next_number(parent)
    elif run is not None:
        folder = run
    else:
        with open_run(cfg) as new:
            folder = new.path
    return cfg, trained_by or judged, weights, folder, saved.get("classes")
