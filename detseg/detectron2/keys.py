"""Keys that the Detectron2 engine supports, in addition to the names in Detectron2's registries.

Data, augmentation, evaluation and prediction are detseg's own with either engine, and so are their keys. Network and
training loop are Detectron2's: all of Detectron2's MODEL keys are supported, and of detseg's own MODEL, SOLVER and SEMI
keys those listed here. This module does not import Detectron2.
"""

from __future__ import annotations

import fnmatch
from typing import Any

from detseg.config.options import Problems
from detseg.config.schema import default_values, detectron2_defaults
from detseg.models.table import LABEL_WEIGHTS

# Detectron2's keys outside MODEL that only this engine supports.
DETECTRON2_ONLY = ("VIS_PERIOD", "TEST.PRECISE_BN.ENABLED", "TEST.PRECISE_BN.NUM_ITER")

# detseg's own MODEL, SOLVER and SEMI keys that this engine supports, by hooks and builders; others must have their
# default.
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

# Values for which detseg has no data or cannot use the predictions, with the reason.
_ELSEWHERE = "Detectron2's own tools/train_net.py trains it"
_NO_BOXES_WITH_ANGLES = "the data have no rotated boxes"
_NO_SEMANTIC_LABELS = f"the data here are objects without semantic labels; {_ELSEWHERE}"
_NO_PROPOSALS = f"proposals from files are not read; {_ELSEWHERE}"
REFUSED: dict[str, dict[Any, str]] = {
    "MODEL.KEYPOINT_ON": {True: f"the data here are masks and boxes without keypoints; {_ELSEWHERE}"},
    "MODEL.LOAD_PROPOSALS": {True: _NO_PROPOSALS},
    "MODEL.META_ARCHITECTURE": {
        "PanopticFPN": _NO_SEMANTIC_LABELS,
        "SemanticSegmentor": _NO_SEMANTIC_LABELS,
        "ProposalNetwork": f"it finds boxes without classes; {_ELSEWHERE}",
    },
    "MODEL.PROPOSAL_GENERATOR.NAME": {
        "RRPN": _NO_BOXES_WITH_ANGLES,
        "PrecomputedProposals": _NO_PROPOSALS,
    },
    "MODEL.ANCHOR_GENERATOR.NAME": {"RotatedAnchorGenerator": _NO_BOXES_WITH_ANGLES},
    "MODEL.ROI_HEADS.NAME": {"RROIHeads": _NO_BOXES_WITH_ANGLES},
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": {True: "it needs classes' frequencies of data registered with Detectron2"},
}


def implements(key: str) -> bool:
    """Whether this engine supports a key of the model or the loop; keys of MODEL.IMPORTS are included.

    Keys that both engines share (data, evaluation, prediction) are declared by their parts.
    """
    if key not in default_values() or key in DETECTRON2_ONLY:
        return True
    if key in detectron2_defaults():
        return key.startswith("MODEL.")
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in OWN_KEYS)


def note_keys(problems: Problems) -> None:
    """Add a problem for every key of the model and the loop that this engine would ignore, and for refused values."""
    ours = default_values()
    for key, plain in LABEL_WEIGHTS.items() if problems.training else ():
        if problems.cfg[key] != plain:
            expected = f"Detectron2's losses count all labels alike; leave it at {plain}, or set MODEL.ENGINE native"
            problems.add(key, expected)
    for key, value in problems.cfg.flatten().items():
        judged = key.startswith("MODEL.") or (key.startswith(("SOLVER.", "SEMI.")) and problems.training)
        if judged and key not in detectron2_defaults() and not implements(key) and value != ours[key]:
            expected = "the detectron2 engine does not implement this key"
            problems.add(key, f"{expected}; leave it at {ours[key]!r}, or set MODEL.ENGINE native")
        elif not isinstance(value, list) and value in REFUSED.get(key, {}):
            problems.add(key, REFUSED[key][value])
