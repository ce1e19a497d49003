"""Convert settings of versions 0 and 1 of Detectron2's configuration format, in which some keys have other names.

Follows Detectron2's own upgrade (detectron2/config/compat.py): the version is that of the key VERSION; without it, 1 if
one of the names in _TELLS_VERSION_1 occurs, else 2.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detseg.errors import ConfigError, all_problems

logger = logging.getLogger(__name__)

VERSION_KEY = "VERSION"
LATEST = 2
_TELLS_VERSION_1 = ("MODEL.WEIGHT", "TEST.AUG_ON")
_ANCHORS = {
    "ANCHOR_SIZES": "MODEL.ANCHOR_GENERATOR.SIZES",
    "ANCHOR_ASPECT_RATIOS": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
}
# Anchor settings are taken over for the configured architecture only; nothing reads the strides.
_OF_RPN = {f"MODEL.RPN.{old}": new for old, new in _ANCHORS.items()}
_OF_RETINANET = {f"MODEL.RETINANET.{old}": new for old, new in _ANCHORS.items()}
_UNREAD = "MODEL.RETINANET.ANCHOR_STRIDES"
_RENAMED_IN_1 = {"MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME"}
_RENAMED_IN_2 = {
    "MODEL.WEIGHT": "MODEL.WEIGHTS",
    "MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE": "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.COMBINE_ON": "MODEL.PANOPTIC_FPN.COMBINE.ENABLED",
    "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
    "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
    "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": (
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
    ),
    "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
    "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
    "TEST.AUG_ON": "TEST.AUG.ENABLED",
    "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
    "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
    "TEST.AUG_FLIP": "TEST.AUG.FLIP",
}
OLD_KEYS = {**_RENAMED_IN_1, **_RENAMED_IN_2, **_OF_RPN, **_OF_RETINANET, _UNREAD: ""}
OLD_SECTIONS = ("MODEL.RPN_HEAD",)


@dataclass(frozen=True)
class Setting:
    """One setting of a file: dotted key, value as in YAML (not yet checked), and `file:line`."""

    key: str
    value: Any
    origin: str


def upgraded(settings: Sequence[Setting], source: str) -> list[Setting]:
    """Return the settings of a configuration, from all its files in order, with the names of the latest version.

    Raises:
        ConfigError: a name that no longer exists in the version of the files.
    """
    last = {setting.key: setting.value for setting in settings}
    version = last.get(VERSION_KEY, 1 if any(key in last for key in _TELLS_VERSION_1) else LATEST)
    if not isinstance(version, int) or not 0 <= version <= LATEST:
        return list(settings)  # refused when values are validated
    retinanet = last.get("MODEL.META_ARCHITECTURE") == "RetinaNet"
    unread = {_UNREAD, *(_OF_RPN if retinanet else _OF_RETINANET)}
    current, renamed, problems = [], [], []
    for setting in settings:
        key = setting.key
        if key == VERSION_KEY:
            setting = dataclasses.replace(setting, value=LATEST)
        elif key in OLD_KEYS:
            if version >= (1 if key in _RENAMED_IN_1 else 2):
                remedy = f"write {OLD_KEYS[key]}" if OLD_KEYS[key] else "leave it out"
                problems.append(f"{setting.origin}: {key} is not a key of version {version} any more: {remedy}")
            if key in unread:
                continue
            renamed.append(f"{key} is {OLD_KEYS[key]}")
            setting = dataclasses.replace(setting, key=OLD_KEYS[key])
        current.append(setting)
    if problems:
        raise ConfigError(all_problems(source, problems))
    if version < LATEST:
        text = "%s is of version %d of Detectron2's format and is read as version %d%s"
        logger.warning(text, source, version, LATEST, f" ({'; '.join(renamed)})" if renamed else "")
    return current
