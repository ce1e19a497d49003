"""Keys that forks of Detectron2 add to its configuration, with the values that leave Detectron2's behaviour unchanged.

Files written or dumped by a fork contain all of its keys, although most describe networks that Detectron2 itself has.
"""

from __future__ import annotations

from typing import Any

_RESNEST, _ADELAIDET, _CENTERMASK = "ResNeSt", "AdelaiDet", "CenterMask2"

# Appended to messages about unknown keys in files.
ADDED_BY_FORKS = "; keys that a fork or project adds to Detectron2 are known if MODEL.IMPORTS names its code"

# key -> (its fork, the value without effect)
FORK_KEYS: dict[str, tuple[str, Any]] = {
    "MODEL.RESNETS.BOTTLENECK_WIDTH": (_RESNEST, 64),
    "MODEL.RESNETS.DEFORM_INTERVAL": (_ADELAIDET, 1),
    "MODEL.BACKBONE.ANTI_ALIAS": (_ADELAIDET, False),
    "MODEL.MOBILENET": (_ADELAIDET, False),
    "INPUT.HFLIP_TRAIN": (_ADELAIDET, True),
    "INPUT.IS_ROTATE": (_ADELAIDET, False),
    "INPUT.CROP.CROP_INSTANCE": (_ADELAIDET, False),
    "MODEL.MASKIOU_ON": (_CENTERMASK, False),
}


def changes_nothing(key: str, value: Any) -> bool:
    """Whether this is a fork's key with the value that has no effect."""
    if key not in FORK_KEYS:
        return False
    neutral = FORK_KEYS[key][1]
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def fork_key_message(key: str, shown: str) -> str:
    """Return the message on a fork's key; `shown`: its value as text."""
    fork, neutral = FORK_KEYS[key]
    return (
        f"{key} = {shown} is a key of {fork}, a fork of Detectron2, which is not supported here; only {neutral!r}, "
        "which has no effect, is accepted. Use a network and weights of Detectron2's own, or let code of the fork "
        "add its keys to Detectron2 (MODEL.IMPORTS)"
    )
