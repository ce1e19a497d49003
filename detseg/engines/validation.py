"""Validation of configurations for training or prediction, before any data are read.

Each part of detseg declares its keys, with their valid values, as a subclass of `detseg.config.options.Options`, and
nothing else knows them. `validate` reads all options that a caller names and those of the model, and raises one message
with every problem. Later packages name theirs:

    detseg/inference/validation.py   PREDICTION: read by every use of a model; `validate_for_prediction`
    detseg/engine/validation.py      EVALUATION and TRAINING: read in addition; `validate_config`

To add a part, add its class to one of these lists or to a class in them. What only training needs is checked in `check`
if `problems.training`. A key that no options declare is read by nothing; any value but its default is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from detseg.config.loading import Imports
from detseg.config.node import Config
from detseg.config.old_versions import LATEST
from detseg.config.options import Options, Problems, key
from detseg.config.schema import default_values
from detseg.detectron2.keys import DETECTRON2_ONLY
from detseg.engines.choice import ENGINES, INSTALL, EngineChoice, choose_engine, not_installed, problems_with_detectron2
from detseg.engines.model_keys import note_ignored, note_model
from detseg.errors import ConfigError
from detseg.models.pretrained import warn_of_other_input

# MODEL.IMPORTS: user code that adds architectures and their keys to Detectron2.


def run_imports(names: Sequence[str]) -> Mapping[str, Any]:
    """Import the modules in MODEL.IMPORTS and return the keys that they add, with defaults; for
    `load_config(imports=)`.

    Only for configuration files that the user gave on the command line.

    Raises:
        ConfigError: Detectron2 or the module cannot be imported, or the function does not exist.
    """
    try:
        import_module("detectron2")
    except ImportError as error:
        raise ConfigError(
            f"MODEL.IMPORTS {list(names)} extends Detectron2, which cannot be imported here ({error}); "
            f"install it: {INSTALL}"
        ) from error
    return import_module("detseg.detectron2.config").added_keys(names)


def same_imports(cfg: Config) -> Imports:
    """Return `imports` for a stored copy of a configuration: accepts only the code that the user's `cfg` has run."""

    def imports(names: Sequence[str]) -> Mapping[str, Any]:
        if list(names) == cfg.MODEL.IMPORTS:
            return cfg.extra_keys
        raise ConfigError(
            f"MODEL.IMPORTS {list(names)} of this run names code, which runs only where a configuration file given on "
            f"the command line names the same (yours: {cfg.MODEL.IMPORTS}): give the run's own with --config FILE"
        )

    return imports


def _other_version(version: int) -> str | None:
    return None if version == LATEST else f"expected {LATEST}; files of versions 0 and 1 are upgraded as they are read"


@dataclass(frozen=True)
class EngineOptions(Options):
    """version: of Detectron2's configuration format."""

    version: int = key("VERSION", test=_other_version)
    engine: str = key("MODEL.ENGINE", choices=("auto", *ENGINES))
    imports: tuple[str, ...] = key("MODEL.IMPORTS")
    output_dir: str = key("OUTPUT_DIR", test=lambda name: None if name.strip() else "expected a folder")

    def check(self, problems: Problems) -> None:
        if self.imports and problems.engine == "native":
            problems.add("MODEL.IMPORTS", f"adds to Detectron2, leave it at []{problems.elsewhere()}")


def validate(
    cfg: Config,
    parts: Sequence[type[Options]],
    *,
    training: bool,
    honoured: Sequence[type[Options]] | None = None,
) -> EngineChoice:
    """Refuse values that a part does not accept and keys that nothing reads; return the engine.

    Args:
        parts: the options that will be read, in addition to the model's.
        training: False for prediction and evaluation with given weights, which require less.
        honoured: further options that are read elsewhere, whose values do not matter here. None: the caller knows only
            its own parts, so that among undeclared keys only those of MODEL are refused.

    Raises:
        ConfigError: all problems in one message, each with its key and origin.
    """
    choice = choose_engine(cfg, training=training)
    with_detectron2 = functools.partial(problems_with_detectron2, cfg, training=training)
    problems = Problems(cfg, choice.name, training=training, with_detectron2=with_detectron2)
    parts = (EngineOptions, *parts)
    for options in parts:
        options.read(problems)
    missing = not_installed(choice)
    if missing:
        problems.add("MODEL.ENGINE", missing)
    else:
        declared = note_model(problems)
    if honoured is not None and not missing:
        declared |= {name for options in (*parts, *honoured) for name in options.rules()}
        if choice.name == "detectron2" or not training:
            declared.update(DETECTRON2_ONLY)
        rest = [name for name in default_values() if not name.startswith("MODEL.")]
        if not training:  # how the model was trained does not affect prediction and scoring
            rest = [name for name in rest if name.startswith(("TEST.", "GLOBAL."))]
        note_ignored(problems, declared, rest)
    try:
        problems.raise_if_any()
    except ConfigError as error:
        if cfg.MODEL.ENGINE != "auto" or not problems.blames_native:
            raise
        raise ConfigError(f"{error}\n(native because {choice.reason})") from None
    if training:
        warn_of_other_input(cfg, cfg.MODEL.WEIGHTS)
    return choice
