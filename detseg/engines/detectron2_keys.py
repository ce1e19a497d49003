"""Which keys the Detectron2 engine implements, beside all that is written in the registries of Detectron2 itself.

Data, augmentation, evaluation and prediction are detseg's own with either engine: INPUT, DATASETS, DATALOADER and TEST
keys are honoured as the native engine honours them, and those of DETECTRON2_ALONE besides. The network and the loop are
Detectron2's: of Detectron2's MODEL keys all are honoured, of detseg's own MODEL and SOLVER keys those listed here.
"""

from __future__ import annotations

import fnmatch
import functools
import logging
from typing import Any

from detseg.config.node import Config
from detseg.config.problems import Problems
from detseg.config.schema import default_values, detectron2_defaults
from detseg.engines.native_keys import (
    DETECTRON2_ALONE,
    IMPLEMENTED_VALUES,
    TRAINING_ONLY,
    inactive_patterns,
    is_honoured,
)

_logger = logging.getLogger(__name__)

_ADVICE = "or set MODEL.ENGINE native"

# detseg's own MODEL and SOLVER keys that this engine implements, by hooks and builders; others stay at their default
OWN_KEYS = (
    "MODEL.ENGINE",
    "MODEL.IMPORTS",
    "MODEL.FREEZE",
    "SOLVER.OPTIMIZER",
    "SOLVER.BETAS",
    "SOLVER.BACKBONE_MULTIPLIER",
    "SOLVER.HEAD_WARMUP_ITERS",
    "SOLVER.ACCUMULATE",
    "SOLVER.EMA.*",
    "SOLVER.AMP.DTYPE",
    "SOLVER.CHECKPOINT_KEEP",
    "SOLVER.LOG_PERIOD",
)

# values that detseg has no data for, or no way to use the answer of, each with what is missing
_NO_BOXES_WITH_ANGLES = "the data have no rotated boxes"
REFUSED: dict[str, dict[Any, str]] = {
    "MODEL.KEYPOINT_ON": {True: "the data have no keypoints"},
    "MODEL.LOAD_PROPOSALS": {True: "proposals from files are not read"},
    "MODEL.META_ARCHITECTURE": {
        "PanopticFPN": "the data have no semantic labels",
        "SemanticSegmentor": "the data have no semantic labels",
        "ProposalNetwork": "it finds no classes",
    },
    "MODEL.PROPOSAL_GENERATOR.NAME": {
        "RRPN": _NO_BOXES_WITH_ANGLES,
        "PrecomputedProposals": "proposals from files are not read",
    },
    "MODEL.ANCHOR_GENERATOR.NAME": {"RotatedAnchorGenerator": _NO_BOXES_WITH_ANGLES},
    "MODEL.ROI_HEADS.NAME": {"RROIHeads": _NO_BOXES_WITH_ANGLES},
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": {True: "it asks for classes' frequencies of data registered with Detectron2"},
}


def implements(key: str) -> bool:
    """Whether the Detectron2 engine acts on this key, be it Detectron2's, detseg's own or one of MODEL.IMPORTS."""
    if key not in default_values():
        return True  # of MODEL.IMPORTS
    if key not in detectron2_defaults():
        shared = not key.startswith(("MODEL.", "SOLVER."))
        return shared or _matches(key, OWN_KEYS)
    return _matches(key, DETECTRON2_ALONE) or is_honoured(key)


def check_keys(cfg: Config, problems: Problems, *, training: bool) -> None:
    """Note every key that this engine would have to ignore; `training` False leaves out what only training acts on.

    One that says what Detectron2's default is (a file that Detectron2 dumped holds them all) is accepted with a
    warning, since nobody chose it.
    """
    ours, theirs = _defaults(), detectron2_defaults()
    patterns = [*inactive_patterns(cfg), *(() if training else TRAINING_ONLY)]
    for key, value in cfg.flatten().items():
        if _matches(key, patterns):
            continue
        if not implements(key) and value != ours[key]:
            if value == theirs.get(key, ours[key]):
                where = cfg.origin(key)
                _logger.warning("%s = %r (%s) is Detectron2's default, which is not followed here", key, value, where)
            else:
                expected = f"the detectron2 engine does not implement this key; leave it at {ours[key]!r}, {_ADVICE}"
                problems.add(key, expected)
        elif not key.startswith("MODEL.") and key in IMPLEMENTED_VALUES and value not in IMPLEMENTED_VALUES[key]:
            problems.add(key, f"expected {' or '.join(map(repr, IMPLEMENTED_VALUES[key]))}, with either engine")
        elif not isinstance(value, list) and value in REFUSED.get(key, {}):
            problems.add(key, f"not with the detectron2 engine: {REFUSED[key][value]}")


def _matches(key: str, patterns: tuple[str, ...] | list[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


@functools.cache
def _defaults() -> dict[str, Any]:
    return default_values()
