"""HTML pages from templates: self-contained files, with figures as SVG in the page's colours."""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.errors import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
# As in page.mplstyle.
INK, LINE = "#010203", "#040506"
COLOURS = ("#3d86c6", "#e07b39", "#2a9d6f", "#c8588f", "#8c6bb1", "#a8901c", "#4fa3a8", "#a0705a")
WIDTH = 9.2


def render(template: str, **values: Any) -> str:
    """Render a template to a page; strings are escaped. Filters: `number`, `share`. Raises RunError without Jinja."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise RunError("pages need Jinja: pip install jinja2") from None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": share}
    return environment.get_template(template).render(values)


def number(value: float | None) -> str:
    """Format a number for readers, a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def share(value: float | None) -> str:
    """Format a fraction in percent, a dash for None."""
    return "-" if value is None else f"{100 * value:.1f} %" if 0 < value < 0.1 else f"{100 * value:.0f} %"


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def new_figure(height: float, columns: int = 1, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure of `height` inches with axes side by side; ratios: their widths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0])


def svg(draw: Callable[..., Figure], *arguments: Any, label: str) -> str:
    """Return the figure made by `draw(*arguments)` as an <svg> element that scales with the page, safe HTML.

    label: text for screen readers, unique within the page. Raises RunError if matplotlib is not installed.
    """
    try:
        import matplotlib.style
    except ImportError:
        raise RunError("figures need matplotlib: pip install matplotlib") from None
    from markupsafe import Markup, escape

    stream = io.StringIO()
    # In this style, regardless of matplotlib's global style.
    with matplotlib.style.context(["default", TEMPLATES / "page.mplstyle"]):
        draw(*arguments).savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    said = f'role="img" aria-label="{escape(label)}"'
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', lambda found: f"{found[1]} {said}", text, count=1)
    # Element ids are global in the page: two figures must not share any.
    mark = f"f{zlib.crc32(label.encode()):08x}"
    text = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{mark}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    return Markup(text.replace(INK, "var(--ink)").replace(LINE, "var(--line)"))


def jpeg_url(picture: np.ndarray, quality: int = 84) -> str:
    """Return a picture (h, w, 3) uint8 as a data URL."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def octave_ticks(axis: Any, low: float, high: float, unit: str = "", most: int = 12) -> None:
    """Label an axis whose values are log2 by `most` powers of two: lengths, which a feature pyramid doubles."""
    places = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1)
    places = places[:: max(int(np.ceil(len(places) / most)), 1)]
    axis.set_ticks(places, [f"{2.0**place:g}{unit}" for place in places])


def count_ticks(axis: Any, low: float, high: float) -> None:
    """Label an axis of log2 values with a suitable number of round decimal numbers."""
    fine = (1, 1.2, 1.4, 1.6, 1.8, *np.arange(2, 10, 0.5))
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), fine):
        values = np.array(sorted(digit * 10.0**power for power in range(-3, 8) for digit in digits))
        values = values[(np.log2(values) >= low - 1e-9) & (np.log2(values) <= high + 1e-9)]
        if len(values) >= 4:
            break
    axis.set_ticks(np.log2(values), [f"{value:,.10g}" for value in values])
