"""How figures look: no frame, few lines, colours that stand out from light and dark pages, text in the page's own font.

Figures become SVG inside the page. Ink and lines have the page's colours, light or dark as the reader's theme.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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


def styled(draw: Callable[..., str]) -> Callable[..., str]:
    """Make a function that draws do so in this style, whatever style matplotlib has been given elsewhere."""

    @functools.wraps(draw)
    def drawn(*arguments: Any) -> str:
        try:
            import matplotlib
        except ImportError:
            raise RunError("figures need matplotlib: pip install matplotlib") from None
        with matplotlib.rc_context(
            {**matplotlib.rcParamsDefault, **_SETTINGS, "backend": matplotlib.rcParams["backend"]}
        ):
            return draw(*arguments)

    return drawn


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def new_figure(height: float, columns: int = 1, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure of `height` inches with axes side by side, `ratios` their widths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0]
    figure.patch.set_alpha(0)
    for one in axes:
        one.patch.set_alpha(0)
    return figure, list(axes)


def to_svg(figure: Figure, label: str) -> str:
    """Return a figure as an <svg> element that scales with the page. label: what readers without sight are told."""
    stream = io.StringIO()
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


def octave_ticks(axis: Any, low: float, high: float, unit: str = "") -> None:
    """Label an axis whose values are log2 by powers of two: lengths, which a feature pyramid doubles."""
    places = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1)
    places = places[:: max(int(np.ceil(len(places) / 12)), 1)]
    axis.set_ticks(places, [f"{2.0**place:g}{unit}" for place in places])


def count_ticks(axis: Any, low: float, high: float) -> None:
    """Label an axis whose values are log2 by round decimal numbers, as many as help."""
    for digits in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 4, 5, 6, 8),
        (1, 1.2, 1.4, 1.6, 1.8, *np.arange(2, 10, 0.5)),
    ):
        values = np.array(sorted(digit * 10.0**power for power in range(-3, 8) for digit in digits))
        places = np.log2(values)
        inside = (places >= low - 1e-9) & (places <= high + 1e-9)
        if inside.sum() >= 4:
            break
    axis.set_ticks(places[inside], [f"{value:,.10g}" for value in values[inside]])
