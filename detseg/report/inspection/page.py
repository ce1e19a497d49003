"""The HTML page: one file, nothing from outside, light or dark as the reader's system is."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.errors import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# How figures look: no frame, few lines, colours that stand out from light and dark pages, text in the page's own font.
#
# Figures become SVG inside the page. Ink and lines have the page's colours, light or dark as the reader's theme.

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


_STYLE = """
:root { --paper: #ffffff; --ink: #23272e; --faint: #6b7280; --line: #dfe3e8; --panel: #f5f7f9;
  --accent: #2f74b5; --warn: #b4530f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181d; --ink: #dde1e6; --faint: #98a1ad; --line: #343b45; --panel: #1e232a;
    --accent: #79b4ea; --warn: #f0a868; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 28px 28px 80px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 26px 0 4px; } p { margin: 6px 0 12px; max-width: 78ch; }
.faint, figcaption { color: var(--faint); } .warn { color: var(--warn); } a { color: var(--accent); }
nav a { margin-right: 16px; text-decoration: none; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0; }
.tile { flex: 1 1 140px; background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; }
.tile span { color: var(--faint); font-size: 13px; }
figure { margin: 14px 0 22px; } figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: 13px; }
svg text { font-family: inherit; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 8px 0 18px; font-size: 14px; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--faint); } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; } .pictures figure { margin: 0; width: 160px; }
.pictures.wide figure { width: 330px; } .pictures img { width: 100%; border-radius: 4px; display: block; }
.pictures figcaption { font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; margin-top: 3px; }
code, pre { font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--panel); padding: 14px 16px; border-radius: 8px; overflow-x: auto; }
.advice { border-left: 3px solid var(--accent); padding: 2px 0 2px 14px; margin: 14px 0; }
.advice p { margin: 2px 0 6px; max-width: 90ch; }
.advice b { font-size: 15px; }
.topic { color: var(--faint); font-size: 12px; text-transform: uppercase; letter-spacing: .05em; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return the page of its parts, HTML each."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    return f'<h2 id="{name}">{escape(title)}</h2>\n' + "\n".join(part for part in parts if part)


def text(words: str, kind: str = "") -> str:
    """Return a paragraph of plain words."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def figure(svg: str, caption: str = "") -> str:
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{note}</figure>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return large numbers with what they count below."""
    cells = "".join(
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(name)}</span></div>' for number, name in values
    )
    return f'<div class="tiles">{cells}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table; `numbers` are the columns set to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f'<{tag} class="n">' if number in numbers else f"<{tag}>" for number in range(len(cells)))
        return "<tr>" + "".join(f"{m}{escape(c)}</{tag}>" for m, c in zip(marked, cells, strict=True)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def pictures(items: Sequence[tuple[str, str, str]], *, wide: bool = False) -> str:
    """Return pictures (address, name, note) in rows."""
    cells = "".join(
        f'<figure><img src="{address}" alt="{escape(name, quote=True)}">'
        f"<figcaption>{escape(name)}<br>{escape(note)}</figcaption></figure>"
        for address, name, note in items
    )
    return f'<div class="pictures{" wide" if wide else ""}">{cells}</div>' if items else ""
