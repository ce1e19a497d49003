"""Which engine trains and predicts, and why: the one place that decides it.

Names an engine's own check by module and function, imported when it is asked: this room imports neither engine.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module

from detseg.config.native_keys import check_native
from detseg.config.node import Config
from detseg.errors import ConfigError

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
    try:
        _check_detectron2(cfg, training)
    except ConfigError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines())
        return EngineChoice("native", f"MODEL.ENGINE is auto, and detectron2 does not take this: {reason}")
    return EngineChoice(
        "detectron2", "MODEL.ENGINE is auto, and detectron2 imports, knows the architecture and implements every key"
    )


def check_engine(cfg: Config, *, training: bool = True) -> EngineChoice:
    """Refuse what the engine of this configuration would have to ignore; return the engine.

    Raises:
        ConfigError: naming each such key; or the engine is not installed.
    """
    choice = choose_engine(cfg, training=training)
    if choice.name == "native":
        try:
            check_native(cfg, training=training)
        except ConfigError as error:
            if cfg.MODEL.ENGINE != "auto":
                raise
            raise ConfigError(f"{error}\n(native because {choice.reason})") from None
        return choice
    missing = missing_detectron2()
    if missing:
        raise ConfigError(
            f"MODEL.ENGINE = 'detectron2' ({cfg.origin('MODEL.ENGINE')}): Detectron2 does not import here ({missing}); "
            f"install it ({INSTALL}), or set MODEL.ENGINE native, which needs torch and torchvision alone"
        )
    if cfg.MODEL.ENGINE != "auto":  # auto has just been judged
        _check_detectron2(cfg, training)
    return choice


def fall_back_to_native(cfg: Config) -> str | None:
    """Why a model that Detectron2 trained is predicted by the native engine here; None where nothing stops Detectron2.

    For a recorded engine only: the networks, the names of their weights and the numbers are the same. Without this
    every kernel would need a compiled Detectron2.
    """
    missing = missing_detectron2() if cfg.MODEL.ENGINE == "detectron2" else None
    if missing is None:
        return None
    try:
        check_native(cfg, training=False)
    except ConfigError:
        return None  # the message about Detectron2 is the one that helps
    return f"trained by detectron2, which does not import here ({missing})"


@functools.cache
def missing_detectron2() -> str | None:
    """Why Detectron2 cannot be imported here, on one line; None where it can."""
    try:
        import_module("detectron2.modeling")
    except Exception as error:  # a build for another torch fails in any way
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _check_detectron2(cfg: Config, training: bool) -> None:
    import_module("detseg.detectron2.support").check_detectron2(cfg, training=training)
