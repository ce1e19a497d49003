"""Which engine trains and predicts, and why: the one place that decides it."""

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
    """name: "detectron2" or "native". reason: why, on one line, for the record. is_usual: nothing had to be chosen."""

    name: str
    reason: str
    is_usual: bool = False

    def __str__(self) -> str:
        """What is printed: a missing Detectron2, which nobody needs, is no reason to show an error's text."""
        return f"{self.name} engine ({'' if self.is_usual else f'{self.reason}; '}docs/engines.md)"


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
        reason = f"MODEL.ENGINE is auto, and detectron2 does not import here ({missing})"
        return EngineChoice("native", reason, is_usual=not is_installed())
    problems = problems_with_detectron2(cfg, training=training)
    if problems:
        reason = "; ".join(problems)
        return EngineChoice("native", f"MODEL.ENGINE is auto, and detectron2 does not take this: {reason}")
    return EngineChoice(
        "detectron2", "MODEL.ENGINE is auto, and detectron2 imports, knows the architecture and implements every key"
    )


def problems_with_detectron2(cfg: Config, *, training: bool) -> list[str]:
    """Why Detectron2 would not take a configuration; where it does not import, as far as that is known without it."""
    problems = Problems(cfg, "detectron2", training=training)
    if missing_detectron2():
        note_keys(problems)
    else:
        import_module("detseg.detectron2.support").note_problems(problems)
    return problems.found


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
        return cfg, EngineChoice("detectron2", reason)  # the message about Detectron2 is the one that helps
    _logger.warning(
        "predicting with the native engine: the model was trained with detectron2, which %s here; both compute the "
        "same (docs/engines.md)",
        f"cannot be imported ({missing})" if is_installed() else "is not installed",
    )
    return native.freeze(), EngineChoice("native", reason)


def not_installed(choice: EngineChoice) -> str | None:
    """What to do where the engine does not import here; None where it does."""
    missing = missing_detectron2() if choice.name == "detectron2" else None
    return missing and (
        f"Detectron2 does not import here ({missing}); install it ({INSTALL}), or, for a new run, set MODEL.ENGINE "
        "native, which needs only torchvision"
    )


def is_installed() -> bool:
    """Whether there is a Detectron2, which may still not import: a build for another PyTorch."""
    found = find_spec("detectron2")
    return found is not None and found.origin is not None  # a folder of that name, such as a clone's, is none


@functools.cache
def missing_detectron2() -> str | None:
    """Why Detectron2 cannot be imported here, on one line; None where it can."""
    try:
        import_module("detectron2.modeling")
    except Exception as error:  # a build for another torch fails in any way
        return first_line(error)
    return None
