"""How figures look: no frame, few lines, colours that stand out from light and dark pages, text in the page's own font.

Figures become SVG inside the page. Ink and lines have the page's colours, which follow the reader's light or dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from detseg.errors import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that no data has, replaced by the page's variables.
INK, LINE = "#010203", "#040506"
COLOURS = ("#3d86c6", "#e07b39", "#2a9d6f", "#c8588f", "#8c6bb1", "#a8901c", "#4fa3a8", "#a0705a")
# Of more groups than this the most frequent are drawn.
MOST_ROWS = 12
WIDTH = 9.2
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "detseg",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def new_figure(height: float, columns: int = 1, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure of `height` inches with axes side by side, `ratios` their widths."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("figures need matplotlib: pip install matplotlib") from None
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0]
    figure.patch.set_alpha(0)
    for one in axes:
        one.patch.set_alpha(0)
    return figure, list(axes)


def to_svg(figure: Figure, label: str) -> str:
    """Return a figure as an <svg> element that scales with the page. label: what readers without sight are told."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{label}"', text, count=1)
    # Ids are the page's, not the figure's: two figures must not share one.
    mark = re.sub(r"\W", "", label)[:24]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{mark}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    return text.replace(INK, "var(--ink)").replace(LINE, "var(--line)")


def log2_ticks(axis: object, low: float, high: float, unit: str = "") -> None:
    """Label an axis in octaves (its values are log2) by round numbers of two."""
    places = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1)
    step = max(int(np.ceil(len(places) / 12)), 1)
    places = places[::step]
    axis.set_ticks(places, [f"{2.0**place:g}{unit}" for place in places])  # type: ignore[attr-defined]
