"""The score as a function of every tuned setting, with the chosen value marked: panels by setting, lines by class."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detseg.files.atomic import written_whole
from detseg.tuning.tuning import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

# Distinguishable with any colour vision (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
COLUMNS = 3


def draw_tuning_curves(path: str | os.PathLike[str], curves: Sequence[Curve], metric: str) -> bool:
    """Write a PNG; return whether it was written. Without Matplotlib (detseg[inference]) there is only a warning."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plot of the settings is made, because it needs matplotlib: pip install matplotlib")
        return False
    settings = list(dict.fromkeys(curve.coordinate.setting for curve in curves))
    columns = min(len(settings), COLUMNS) or 1
    rows = -(-len(settings) // columns) or 1
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for panel, setting in zip(panels, settings, strict=False):
        own = [curve for curve in curves if curve.coordinate.setting == setting]
        for number, curve in enumerate(own):
            _draw(panel, curve, COLOURS[number % len(COLOURS)])
        panel.set_xlabel(setting)
        panel.set_ylabel(metric)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if any(curve.coordinate.part is not None for curve in own):
            panel.legend(frameon=False, fontsize=8)
    for panel in panels[len(settings) :]:
        panel.set_visible(False)
    with written_whole(path, "the plot of settings") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return True


def _draw(panel: Axes, curve: Curve, colour: str) -> None:
    """Draw one line; "no limit" has no position on the axis: its score is a dotted line across the whole panel."""
    points = [(value, score) for value, score in curve.points if value is not None]
    label = None if curve.coordinate.part is None else str(curve.coordinate.part)
    panel.plot(*zip(*points, strict=True) if points else ([], []), color=colour, label=label, linewidth=1.6)
    for _, score in (point for point in curve.points if point[0] is None):
        panel.axhline(score, color=colour, linewidth=1, linestyle=":")
        panel.annotate("none", (1, score), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    for value, score in curve.points:
        if value != curve.chosen:
            continue
        place = (0.97, score) if value is None else (value, score)
        transform = panel.get_yaxis_transform() if value is None else panel.transData
        panel.plot(*place, "o", color=colour, markersize=7, markeredgecolor="white", transform=transform, zorder=5)
        if value is not None:
            text = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8, "color": colour}
            panel.annotate(value if isinstance(value, str) else f"{value:g}", place, **text)
