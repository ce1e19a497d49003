"""The choice of the engine that trains and predicts, with its reason: the one place that decides it."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from detseg.config.node import Config
from detseg.config.options import Problems
from detseg.detectron2.keys import note_keys
from detseg.engines.model_keys import note_model
from detseg.errors import first_line

_logger = logging.getLogger(__name__)

ENGINES = ("detectron2", "native")
INSTALL = "https://detectron2.readthedocs.io/tutorials/install.html"


@dataclass(frozen=True)
class EngineChoice:
    """name: "detectron2" or "native". reason: on one line, for the record. is_usual: there was no choice to make."""

    name: str
    reason: str
    is_usual: bool = False

    def __str__(self) -> str:
        """Text for people; without the reason if Detectron2 is missing and not needed."""
        return f"{self.name} engine ({'' if self.is_usual else f'{self.reason}; '}docs/engines.md)"


def choose_engine(cfg: Config, *, training: bool = True) -> EngineChoice:
    """Return the engine of a configuration: MODEL.ENGINE, unless that is `auto`.

    `auto` chooses Detectron2 if it can be imported, knows the architecture and implements every key that differs from
    its default, else the native engine.

    Args:
        training: False ignores keys that matter only for training.
    """
    asked = cfg.MODEL.ENGINE
    if asked != "auto":
        return EngineChoice(asked, f"MODEL.ENGINE is {asked}")
    missing = missing_detectron2()
    if missing:
        reason = f"MODEL.ENGINE is auto, and detectron2 does not import here ({missing})"
        return EngineChoice("native", reason, is_usual=not is_installed())
    problems = problems_with_detectron2(cfg, training=training)
    if problems:
        reason = "; ".join(problems)
        return EngineChoice(
            "native", f"MODEL.ENGINE is auto, and detectron2 does not accept this configuration: {reason}"
        )
    return EngineChoice(
        "detectron2", "MODEL.ENGINE is auto, and detectron2 imports, knows the architecture and implements every key"
    )


def problems_with_detectron2(cfg: Config, *, training: bool) -> list[str]:
    """List why Detectron2 would not take a configuration; without Detectron2, as far as that can be told."""
    problems = Problems(cfg, "detectron2", training=training)
    if missing_detectron2():
        note_keys(problems)
    else:
        import_module("detseg.detectron2.support").note_problems(problems)
    return problems.found


def as_trained(cfg: Config, engine: str | None) -> Config:
    """Return a run's configuration with `auto` replaced by the engine that trained it; an explicit engine stays."""
    if engine is None or cfg.MODEL.ENGINE != "auto":
        return cfg
    recorded = cfg.clone()
    recorded.set("MODEL.ENGINE", engine, origin="recorded in the run")
    return recorded.freeze()


def for_prediction(cfg: Config, engine: str | None) -> tuple[Config, EngineChoice]:
    """Return the configuration of a trained model with its engine for prediction, which is the one that trained it.

    If Detectron2 trained it but cannot be imported, the native engine predicts, with a warning: networks, weight names
    and numbers are the same, and otherwise every Kaggle notebook would need a compiled Detectron2.

    Args:
        engine: recorded with the weights, None without a record.
    """
    cfg = as_trained(cfg, engine)
    reason = f"the model was trained with {cfg.MODEL.ENGINE}"
    if cfg.MODEL.ENGINE == "auto" or cfg.origin("MODEL.ENGINE") == "command line":
        return cfg, choose_engine(cfg, training=False)
    missing = missing_detectron2() if cfg.MODEL.ENGINE == "detectron2" else None
    if missing is None:
        return cfg, EngineChoice(cfg.MODEL.ENGINE, reason)
    reason = f"{reason}, which cannot be imported here ({missing})"
    native = cfg.clone()
    native.set("MODEL.ENGINE", "native", origin=reason)
    problems = Problems(native)
    note_model(problems)
    if problems.found:
        return cfg, EngineChoice("detectron2", reason)  # its error message about Detectron2 is the helpful one
    _logger.warning(
        "predicting with the native engine: the model was trained with detectron2, which %s here; both compute the "
        "same (docs/engines.md)",
        f"cannot be imported ({missing})" if is_installed() else "is not installed",
    )
    return native.freeze(), EngineChoice("native", reason)


def not_installed(choice: EngineChoice) -> str | None:
    """Return the remedy if the engine cannot be imported here, else None."""
    missing = missing_detectron2() if choice.name == "detectron2" else None
    return missing and (
        f"Detectron2 does not import here ({missing}); install it ({INSTALL}), or, for a new run, set MODEL.ENGINE "
        "native, which needs only torchvision"
    )


def is_installed() -> bool:
    """Whether Detectron2 is installed; it may still fail to import, if built for another PyTorch."""
    found = find_spec("detectron2")
    return found is not None and found.origin is not None  # a plain folder of that name, such as a clone, has no origin


@functools.cache
def missing_detectron2() -> str | None:
    """Return why Detectron2 cannot be imported here, on one line; None if it can."""
    try:
        import_module("detectron2.modeling")
    except Exception as error:  # a build for another torch fails in various ways
        return first_line(error)
    return None
