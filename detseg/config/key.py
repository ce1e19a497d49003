"""Declaration of a configuration key of detseg's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detseg.config.kinds import Kind


@dataclass(frozen=True)
class Key:
    """default: the value if no file sets it. explanation: what the key does, with units and valid values. kind: the
    type of the value; None derives it from the default.
    """

    default: Any
    explanation: str
    kind: Kind | None = None
