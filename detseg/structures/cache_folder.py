"""Where files are kept that can be had again: downloads, decoded samples."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "DETSEG_CACHE"


def cache_folder() -> Path:
    """Return $DETSEG_CACHE, else .cache/detseg in the home folder. It need not be there yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "detseg"
