"""What is wrong with the model of a configuration, for the engine that runs it; and keys that nothing reads."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from importlib import import_module

from detseg.config.detectron2_defaults import SWITCHED_PARTS
from detseg.config.options import Problems
from detseg.config.schema import default_values, detectron2_defaults
from detseg.detectron2.keys import DETECTRON2_ONLY
from detseg.models.table import ARCHITECTURES, ModelOptions, options_of

_logger = logging.getLogger(__name__)


def note_model(problems: Problems) -> set[str]:
    """Note values that the model does not take, and keys of MODEL that its architecture does not have.

    Of an architecture of Detectron2's own, or of MODEL.IMPORTS, Detectron2's registries judge the names.

    Returns:
        the keys that the model declares, those of parts that are switched off included.
    """
    options = [ModelOptions]
    name = problems.cfg.MODEL.META_ARCHITECTURE
    detectron2 = problems.engine == "detectron2"
    known = name in ARCHITECTURES and (ARCHITECTURES[name].in_detectron2 or not detectron2)
    if known:
        options.append(options_of(name))
    for each in options:
        each.read(problems)
    declared = {"MODEL.ENGINE", "MODEL.IMPORTS"} | {key for each in options for key in each.rules()}
    if detectron2:
        import_module("detseg.detectron2.support").note_problems(problems)
    elif known:
        note_ignored(problems, declared, [key for key in default_values() if key.startswith("MODEL.")])
    return declared


def note_ignored(problems: Problems, declared: Collection[str], keys: Iterable[str]) -> None:
    """Note those of `keys` that nothing declares, where their value is not the default.

    One that says what Detectron2's default is (a file that Detectron2 dumped holds them all) is accepted with a
    warning, since nobody chose it.
    """
    cfg = problems.cfg
    ours, theirs = default_values(), detectron2_defaults()
    for key in keys:
        value = cfg[key]
        if key in declared or value == ours[key] or key.startswith(SWITCHED_PARTS):
            continue
        if value == theirs.get(key, ours[key]):
            text = "%s = %r (%s) is Detectron2's default, which is not followed here: it does %r"
            _logger.warning(text, key, value, cfg.origin(key), ours[key])
            continue
        if key == "TEST.EXPECTED_RESULTS":  # of Detectron2's own tests; it changes no training and no score
            _logger.warning("%s (%s) is not compared with the scores here", key, cfg.origin(key))
            continue
        architecture = ARCHITECTURES.get(cfg.MODEL.META_ARCHITECTURE)
        if not key.startswith("MODEL.") and key not in DETECTRON2_ONLY:
            problems.add(key, f"neither engine supports this key; leave it at {ours[key]!r}")
        elif architecture is not None and not architecture.in_detectron2:
            problems.add(key, f"{cfg.MODEL.META_ARCHITECTURE} does not have this key; leave it at {ours[key]!r}")
        else:
            expected = f"the native engine does not honour this key; leave it at {ours[key]!r}"
            problems.add(key, expected + problems.elsewhere())
