"""Validation of the model of a configuration for its engine, and of keys that nothing reads."""

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
    """Add problems for values that the model does not accept, and for MODEL keys that its architecture lacks.

    For an architecture of Detectron2's own or of MODEL.IMPORTS, names are checked against Detectron2's registries.

    Returns:
        the keys that the model declares, including those of parts that are switched off.
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
    """Add problems for those of `keys` that nothing declares and whose value is not the default.

    A value equal to Detectron2's default is accepted with a warning, since nobody chose it: files dumped by Detectron2
    contain all keys.
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
        if key == "TEST.EXPECTED_RESULTS":  # for Detectron2's own tests; affects neither training nor scores
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
