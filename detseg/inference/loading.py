"""Load models for prediction from run folders and weights files."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detseg.config import Config, config_hash, load_flat_config
from detseg.data.folds import FOLD
from detseg.data.intensity_range import IntensityRange
from detseg.data.trained_images import TrainedImages
from detseg.engines.build import build_model
from detseg.engines.choice import choose_engine, for_prediction
from detseg.errors import RunError, WeightsError
from detseg.files.hashing import hash_file
from detseg.files.reading import check_regular
from detseg.files.run_files import CONFIG_FILE, advise_run
from detseg.inference.validation import InferenceOptions, validate_for_prediction
from detseg.models.base import Segmenter
from detseg.models.devices import choose_device
from detseg.models.table import num_classes
from detseg.models.weights import load_state, load_weights, resolve_weights
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.run_folder import last_numbered

logger = logging.getLogger(__name__)


def find_run_folder(folder: Path) -> Path:
    """Return the run in a folder: the folder itself, or the newest of its runs (runs/NAME/001, 002, ...), with a
    message.

    Raises:
        RunError: it is neither.
    """
    if (folder / CONFIG_FILE).is_file():
        return folder
    newest = last_numbered(folder) if folder.is_dir() else None
    if newest is not None and (newest / CONFIG_FILE).is_file():
        logger.info("%s holds several runs: the newest is used, %s", folder, newest)
        return newest
    reason = "does not exist" if not folder.exists() else f"holds no run: there is no {CONFIG_FILE} in it"
    raise RunError(f"{folder} {reason}; {advise_run(folder)}")


def find_checkpoint(run: Path, checkpoint: str = "best") -> Path:
    """Return the file of a run's "best" or "last" checkpoint, or a file given by its path or its name in the run.

    Raises:
        RunError: there is no such file.
    """
    folder = run / "checkpoints"
    best, last = folder / "best.pth", folder / "last.pth"
    if checkpoint == "best" and not best.is_file() and last.is_file():
        logger.warning("%s has no best checkpoint (no evaluation yet): the last one is used", run)
        return last
    named = {"best": best, "last": last}.get(checkpoint)
    for candidate in [named] if named else [Path(checkpoint), folder / checkpoint]:
        check_regular(candidate)
        if candidate.is_file():
            return candidate
    there = sorted(path.name for path in folder.glob("*.pth"))
    raise RunError(
        f"{run} has no checkpoint {checkpoint!r}; there is: {', '.join(there) or 'none at all, train it first'}"
    )


def load_model(
    weights: str | os.PathLike[str], cfg: Config | None = None, *, device: str = "auto", is_of_run: bool = False
) -> dict[str, Any]:
    """Load the model of a weights file in evaluation mode on its device; return arguments for Predictor.from_model.

    Args:
        weights, cfg, device: see `Predictor.from_checkpoint`.
        is_of_run: `cfg` is the configuration of the training, not one given by the user.

    Raises:
        WeightsError: the file cannot be read, does not fit, or has no configuration and none was given.
        ConfigError: the configuration is not valid for prediction here.
    """
    path = resolve_weights(weights)
    state = _stored_state(path, cfg)
    if cfg is None:
        if "config" not in state:
            raise WeightsError(
                f"{path} holds weights without a configuration; give the one it was trained with (--config)"
            )
        cfg, is_of_run = load_flat_config(state["config"]), True
    engine = choose_engine(cfg, training=False)
    fold = {FOLD: cfg.DATASETS.FOLD} if cfg.DATASETS.FOLD >= 0 else {}
    if is_of_run:
        cfg, engine = for_prediction(cfg, state.get("engine", "native" if state else None))
    validate_for_prediction(cfg)
    classes = _class_names(cfg, state.get("classes"), path)
    target = choose_device(cfg.MODEL.DEVICE if device == "auto" else device)
    model = build_model(cfg)
    _load(model, state, path, cfg)
    intensities = IntensityRange.from_plain(state.get("intensities"))
    if intensities is None:  # not stored in the file: derived from the normalization
        intensities = IntensityRange.of_normalization(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    return {
        "model": model.to(target).prefer_speed().eval(),
        "options": InferenceOptions.from_config(cfg),
        "classes": classes,
        "provenance": {
            "engine": engine.name,
            "engine_reason": engine.reason,
            "architecture": cfg.MODEL.META_ARCHITECTURE,
            "config_hash": config_hash(cfg),
            "checkpoint_hash": hash_file(path),
            **fold,
        },
        "intensities": intensities,
        "typical_diameter": state.get("object_diameter"),
        "trained_images": TrainedImages.from_stored(state.get("trained_images")),
    }


def _stored_state(path: Path, cfg: Config | None) -> dict[str, Any]:
    """Return the content of a detseg checkpoint; {} if a configuration is given and the file is another program's,
    which `load_weights` reads.
    """
    try:
        return load_checkpoint(path)
    except WeightsError:
        if cfg is None or not path.is_file():
            raise
        return {}


def _load(model: Segmenter, state: Mapping[str, Any], path: Path, cfg: Config) -> None:
    # last.pth of a run with SOLVER.EMA: use the averaged weights, which are also evaluated and kept as the best.
    stored = state["ema"]["model"] if state.get("ema") else state.get("model")
    if stored is None:
        load_weights(model, path, cfg=cfg)
    else:
        load_state(model, stored, source=str(path))


def _class_names(cfg: Config, stored: Sequence[str] | None, path: Path) -> list[str]:
    """Return the class names of the checkpoint, else of the configuration, else "class 1" and so on.

    Raises:
        WeightsError: their number does not match the model.
    """
    number = num_classes(cfg)
    names = list(stored or cfg.DATASETS.CLASSES) or [f"class {index + 1}" for index in range(number)]
    if len(names) != number:
        raise WeightsError(
            f"{path} was trained for the classes {', '.join(names)}, but MODEL.ROI_HEADS.NUM_CLASSES is {number}; "
            "use the configuration that it was trained with"
        )
    return names
