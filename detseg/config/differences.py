"""Where detseg's default of a Detectron2 key differs from Detectron2's, each with its reason.

`docs/configuration.md` is made from this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# OUTPUT_DIR's default: <config> becomes the configuration's name, and each run takes the next free number below it
DEFAULT_OUTPUT_DIR = "runs/<config>"


@dataclass(frozen=True)
class Difference:
    """One key of Detectron2's whose default is another one here."""

    name: str
    default: Any
    reason: str


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "MODEL.DEVICE",
        "auto",
        "The best device that is there (CUDA, else the CPU), so that one file runs everywhere.",
    ),
    Difference(
        "INPUT.MASK_FORMAT",
        "bitmask",
        "Polygons and bitmasks of cells under 80 pixels agree only to IoU 0.69; touching cells need exact masks.",
    ),
    Difference(
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
        False,
        "Images without objects teach what background looks like.",
    ),
    Difference(
        "DATALOADER.ASPECT_RATIO_GROUPING",
        False,
        "The native engine does not group: the position in the sample stream alone decides a batch, which makes a "
        "resumed run repeat the uninterrupted one exactly; crops have one shape anyway.",
    ),
    Difference(
        "OUTPUT_DIR",
        DEFAULT_OUTPUT_DIR,
        "`<config>` is the name of the configuration; every run gets a numbered folder of its own below, nothing is "
        "overwritten.",
    ),
)
