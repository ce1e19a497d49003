"""True positives, false positives and missed objects of a prediction, in three colours over the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detseg.evaluation.matches import ImageMatches
from detseg.report.drawing import (
    CROWD_COLOUR,
    draw_objects,
    fitting_line_width,
    resize_display,
    to_display,
    typical_thickness,
)
from detseg.report.layout import LegendEntry

# Distinguishable with any colour vision, on dark, gray and stained images; see `drawing.PALETTE`.
HIT, FALSE, MISSED = (64, 190, 255), (255, 176, 0), (240, 50, 140)

Rles = Sequence[Mapping[str, Any]]


def draw_outcomes(
    image: np.ndarray, truth: Rles, predicted: Rles, matches: ImageMatches, *, scale: float
) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 RGB with contours of true positives, false positives and missed objects.

    image: (H, W, C) of any dtype, or (H, W, 3) uint8 from `to_display`. truth, predicted: masks of its size, matched by
    `matches`. scale: of the picture. Ignored regions, and predictions in them, are gray.
    """
    groups = (
        ([rle for rle, is_crowd in zip(truth, matches.crowd, strict=True) if is_crowd], CROWD_COLOUR),
        ([rle for rle, is_left_out in zip(predicted, matches.left_out, strict=True) if is_left_out], CROWD_COLOUR),
        ([rle for rle, is_hit in zip(predicted, matches.is_hit, strict=True) if is_hit], HIT),
        ([rle for rle, is_missed in zip(truth, matches.is_missed, strict=True) if is_missed], MISSED),
        ([rle for rle, is_false in zip(predicted, matches.is_false, strict=True) if is_false], FALSE),
    )
    rles = [rle for group, _ in groups for rle in group]
    colours = [colour for group, colour in groups for _ in group]
    line_width = fitting_line_width(typical_thickness([*truth, *predicted]), scale)
    return draw_objects(resize_display(to_display(image), scale), rles, colours, scale, line_width)


def outcome_note(matches: ImageMatches) -> str:
    """Return the counts of an image as text: "12 hit, 1 false, 3 missed"."""
    parts = (("hit", matches.is_hit), ("false", matches.is_false), ("missed", matches.is_missed))
    return ", ".join(f"{int(which.sum()):,} {name}" for name, which in parts)


def outcome_legend() -> list[LegendEntry]:
    """Return the legend of the colours."""
    texts = ("hit (IoU > 0.5)", "false prediction", "missed object")
    return [LegendEntry(text, colour) for text, colour in zip(texts, (HIT, FALSE, MISSED), strict=True)]
