"""Which engine trains and predicts, and why: the one place that decides it."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from importlib import import_module

from detseg.config.node import Config
from detseg.config.options import Problems
from detseg.engines.model_keys import note_model

_logger = logging.getLogger(__name__)

ENGINES = ("detectron2", "native")
INSTALL = "https://detectron2.readthedocs.io/tutorials/install.html"


@dataclass(frozen=True)
class EngineChoice:
    """name: "detectron2" or "native". reason: why, for people, on one line."""

    name: str
    reason: str


def choose_engine(cfg: Config, *, training: bool = True) -> EngineChoice:
    """The engine of a configuration: MODEL.ENGINE, where that is not `auto`.

    `auto` takes Detectron2 where it imports, knows the architecture and implements every key that differs from its
    default, else the native engine.

    Args:
        training: False leaves out what only training acts on.
    """
    asked = cfg.MODEL.ENGINE
    if asked != "auto":
        return EngineChoice(asked, f"MODEL.ENGINE is {asked}")
    missing = missing_detectron2()
    if missing:
        return EngineChoice("native", f"MODEL.ENGINE is auto, and detectron2 does not import here ({missing})")
    problems = Problems(cfg, "detectron2", training=training)
    import_module("detseg.detectron2.support").note_problems(problems)
    if problems.found:
        reason = "; ".join(problems.found)
        return EngineChoice("native", f"MODEL.ENGINE is auto, and detectron2 does not take this: {reason}")
    return EngineChoice(
        "detectron2", "MODEL.ENGINE is auto, and detectron2 imports, knows the architecture and implements every key"
    )


def as_trained(cfg: Config, engine: str | None) -> Config:
    """The configuration of a run with the engine that trained it, where it says `auto`; one asked for stays."""
    if engine is None or cfg.MODEL.ENGINE != "auto":
        return cfg
    recorded = cfg.clone()
    recorded.set("MODEL.ENGINE", engine, origin="recorded in the run")
    return recorded.freeze()


def for_prediction(cfg: Config, engine: str | None) -> tuple[Config, EngineChoice]:
    """The configuration of a trained model with the engine that predicts it, which is the one that trained it.

    What Detectron2 trained is predicted by the native engine where Detectron2 does not import: networks, names of
    weights and numbers are the same, and without this every kernel would need a compiled Detectron2. That is warned of.

    Args:
        engine: the one recorded with the weights, None where there is no record.
    """
    cfg = as_trained(cfg, engine)
    reason = f"the model was trained by {cfg.MODEL.ENGINE}"
    if cfg.MODEL.ENGINE == "auto" or cfg.origin("MODEL.ENGINE") == "command line":
        return cfg, choose_engine(cfg, training=False)
    missing = missing_detectron2() if cfg.MODEL.ENGINE == "detectron2" else None
    if missing is None:
        return cfg, EngineChoice(cfg.MODEL.ENGINE, reason)
    reason = f"{reason}, which does not import here ({missing})"
    native = cfg.clone()
    native.set("MODEL.ENGINE", "native", origin=reason)
    problems = Problems(native)
    note_model(problems)
    if problems.found:
        return cfg, EngineChoice("detectron2", reason)  # the message about Detectron2 is the one that helps
    _logger.warning("the native engine predicts: %s", reason)
    return native.freeze(), EngineChoice("native", reason)


def not_installed(choice: EngineChoice) -> str | None:
    """What to do where the engine does not import here; None where it does."""
    missing = missing_detectron2() if choice.name == "detectron2" else None
    return missing and (
        f"Detectron2 does not import here ({missing}); install it ({INSTALL}), or, for a new run, set MODEL.ENGINE "
        "native, which needs only torchvision"
    )


@functools.cache
def missing_detectron2() -> str | None:
    """Why Detectron2 cannot be imported here, on one line; None where it can."""
    try:
        import_module("detectron2.modeling")
    except Exception as error:  # a build for another torch fails in any way
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None
