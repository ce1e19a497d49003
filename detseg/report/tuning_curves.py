"""How the score changes with every tuned setting, the chosen value marked: one panel a setting, one line a class."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detseg.errors import RunError
from detseg.fusion.tuning import Curve
from detseg.structures.atomic_write import written_whole

# Told apart with any colour vision (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
COLUMNS = 3


def draw_tuning_curves(path: str | os.PathLike[str], curves: Sequence[Curve], metric: str) -> None:
    """Write a PNG; values of None ("no limit") stand at the left, or, as the largest area, at the right."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("the plot needs matplotlib: pip install matplotlib") from None
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


def _draw(panel: object, curve: Curve, colour: str) -> None:
    numbers = [value for value, _ in curve.points if value is not None]
    step = (max(numbers) - min(numbers)) / 8 if len(numbers) > 1 else 1.0
    at_right = curve.coordinate.setting == "max_area"
    edge = (max(numbers) + step if at_right else min(numbers) - step) if numbers else 0.0
    points = sorted((edge if value is None else value, score) for value, score in curve.points)
    label = None if curve.coordinate.part is None else str(curve.coordinate.part)
    panel.plot([x for x, _ in points], [score for _, score in points], color=colour, label=label, linewidth=1.6)
    chosen = [(edge if value is None else value, score) for value, score in curve.points if value == curve.chosen]
    if chosen:
        panel.plot(*chosen[0], "o", color=colour, markersize=7, markeredgecolor="white")
        text = "none" if curve.chosen is None else f"{curve.chosen:g}"
        panel.annotate(
            text, chosen[0], xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
