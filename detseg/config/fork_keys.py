"""Keys that forks of Detectron2 add to its configuration, with the values at which they change nothing.

Files that a fork wrote or dumped hold them all, and most describe networks that Detectron2 itself has.
"""

from __future__ import annotations

from typing import Any

_RESNEST, _ADELAIDET, _CENTERMASK = "ResNeSt", "AdelaiDet", "CenterMask2"

# Behind an unknown key of a file: what a fork or project adds is known with its code.
ADDED_BY_FORKS = "; what a fork or project adds to Detectron2 is known where MODEL.IMPORTS names its code"

# key -> (where it comes from, the value at which it changes nothing)
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
    """Whether this is a fork's key at the value that leaves Detectron2 as it is."""
    if key not in FORK_KEYS:
        return False
    neutral = FORK_KEYS[key][1]
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def fork_key_message(key: str, shown: str) -> str:
    """Say that a key is a fork's; `shown`: its value."""
    fork, neutral = FORK_KEYS[key]
    return (
        f"{key} = {shown} is a key of {fork}, a fork of Detectron2, which is not known here; only {neutral!r}, at "
        "which it changes nothing, is taken. Use a network and weights of Detectron2's own, or let code of the fork "
        "add its keys to Detectron2 (MODEL.IMPORTS)"
    )
