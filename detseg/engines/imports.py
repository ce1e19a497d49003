"""MODEL.IMPORTS: code of the user's that adds architectures, and their keys, to Detectron2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from detseg.config import Config
from detseg.config.loading import Imports
from detseg.engines.choice import INSTALL
from detseg.errors import ConfigError


def run_imports(names: Sequence[str]) -> Mapping[str, Any]:
    """Import what MODEL.IMPORTS names and return the keys that it adds, with defaults; the `imports` of `load_config`.

    For configuration files that the user named on the command line, and for no others.

    Raises:
        ConfigError: Detectron2 or the module cannot be imported, or there is no such function in it.
    """
    try:
        import_module("detectron2")
    except ImportError as error:
        raise ConfigError(
            f"MODEL.IMPORTS {list(names)} adds to Detectron2, which does not import here ({error}); "
            f"install it: {INSTALL}"
        ) from error
    return import_module("detseg.detectron2.config").added_keys(names)


def same_imports(cfg: Config) -> Imports:
    """For the stored copy of a configuration: the code that `cfg`, which the user named, has run already."""

    def imports(names: Sequence[str]) -> Mapping[str, Any]:
        if list(names) == cfg.MODEL.IMPORTS:
            return cfg.extra_keys
        raise ConfigError(
            f"MODEL.IMPORTS {list(names)} of this run names code, which runs only where a configuration file given on "
            f"the command line names the same (yours: {cfg.MODEL.IMPORTS}): give the run's own with --config FILE"
        )

    return imports
