"""Whether a configuration can be trained or predicted with, judged before any data is read.

Every part of detseg declares its keys, with their legal values, as a class of `detseg.config.options.Options`. Nothing
else knows them. Here they come together: `validate` reads all options that a caller names, and those of the model, and
raises one message with every problem. Packages that stand after this one name theirs:

    detseg/inference/validation.py   PREDICTION: what every use of a model reads; `validate_for_prediction`
    detseg/engine/validation.py      EVALUATION and TRAINING: what comes with them; `validate_config`

A part joins by adding its class to one of these lists, or to a class that is in them. What only training needs is
judged in `check` where `problems.training` says so. A key that no options declare is one that nothing reads: with
another value than its default it is refused by name.
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

# MODEL.IMPORTS: code of the user's that adds architectures, and their keys, to Detectron2.


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
            f"MODEL.IMPORTS {list(names)} extends Detectron2, which cannot be imported here ({error}); "
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


def _other_version(version: int) -> str | None:
    return None if version == LATEST else f"expected {LATEST}; files of versions 0 and 1 are upgraded as they are read"


@dataclass(frozen=True)
class EngineOptions(Options):
    """version: of Detectron2's format of configurations."""

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
    """Refuse values that a part does not take and keys that nothing reads; return the engine.

    Args:
        parts: the options that will be read, beside those of the model.
        training: False for prediction and evaluation with given weights, which need less.
        honoured: further options whose keys are read elsewhere, whose values do not matter here. With None the caller
            knows only its own parts: of the keys that no part has only those of MODEL are refused.

    Raises:
        ConfigError: all problems in one message, each with its key and where it was set.
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
        if not training:  # a model predicts, and is scored, however it was trained
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
