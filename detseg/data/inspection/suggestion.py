"""One piece of advice: settings or a command, the reason, and the numbers that it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Round numbers for limits.
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


@dataclass(frozen=True)
class Suggestion:
    """topic: scale, crop, anchors, limits, balance, intensities, split or augmentation. what: the advice in a sentence.

    reason: why, with its numbers. keys: configuration keys. command: what to run. base: file of configs/_base_ to build
    on.
    """

    topic: str
    what: str
    reason: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    base: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "topic": self.topic,
            "what": self.what,
            "reason": self.reason,
            "keys": dict(self.keys),
            "command": self.command,
            "base": self.base,
        }


def round_up(value: float, least: int = 1) -> int:
    """Return a round number that is not below `value` and `least`: 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    value = max(value, least, 1)
    power = 10 ** math.floor(math.log10(value) + 1e-12)
    return next(round(step * power) for step in _STEPS if step * power >= value - 1e-9)


def percent(share: float) -> str:
    """Return a share as a short text: 7 %, 0.4 %."""
    value = 100 * share
    if 0 < value < 0.05:
        return "under 0.1 %"
    if 99.5 <= value < 100:
        return f"{value:.1f} %"
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"
