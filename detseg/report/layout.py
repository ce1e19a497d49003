"""Panels side by side with titles, and a legend below; text in Pillow's built-in font, so no font file is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (255, 255, 255)
INK = (28, 31, 36)
FAINT = (112, 118, 128)
# Panel width for which the sizes below are meant; text grows with larger panels.
USUAL_WIDTH = 760


@dataclass(frozen=True)
class Panel:
    """A picture (h, w, 3) uint8 with a title above it, followed by a note in a fainter colour."""

    picture: np.ndarray
    title: str
    note: str = ""


@dataclass(frozen=True)
class LegendEntry:
    """A coloured square and its text."""

    text: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Sizes:
    """Lengths in pixels; `title` and `text` are font heights."""

    margin: int
    gap: int
    header: int
    line: int
    title: int
    text: int
    square: int

    @classmethod
    def for_panels(cls, width: int) -> Sizes:
        factor = min(max(width / USUAL_WIDTH, 0.8), 2.2)
        return cls(*(round(length * factor) for length in (16, 12, 36, 30, 19, 16, 14)))


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # Pillow before 10.1 has only one small font
        return ImageFont.load_default()


class _Pen:
    """Draws and measures text on one canvas."""

    def __init__(self, canvas: Image.Image) -> None:
        self.draw = ImageDraw.Draw(canvas)

    def width(self, text: str, size: int) -> int:
        return int(np.ceil(self.draw.textlength(text, font=font(size))))

    def write(self, x: int, middle: int, text: str, size: int, colour: tuple[int, int, int]) -> None:
        """Write text vertically centred at `middle`."""
        top, bottom = self.draw.textbbox((0, 0), "Agpy", font=font(size))[1::2]
        self.draw.text((x, middle - (top + bottom) // 2), text, fill=colour, font=font(size))

    def shorten(self, text: str, size: int, width: int) -> str:
        """Remove the middle of a text that is too wide: names of images differ at their ends."""
        if self.width(text, size) <= width:
            return text
        for kept in range(len(text) - 1, 1, -1):
            short = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
            if self.width(short, size) <= width:
                return short
        return ""


def compose(panels: Sequence[Panel], footer: str, legend: Sequence[LegendEntry]) -> np.ndarray:
    """Return one picture (h, w, 3) uint8: panels in a row, then the legend, then `footer`."""
    sizes = Sizes.for_panels(max(panel.picture.shape[1] for panel in panels))
    width = 2 * sizes.margin + sum(panel.picture.shape[1] for panel in panels) + sizes.gap * (len(panels) - 1)
    inner = width - 2 * sizes.margin
    measuring = _Pen(Image.new("RGB", (1, 1)))
    # Legend rows: each entry with its x position.
    rows: list[list[tuple[int, LegendEntry]]] = []
    used = inner + 1
    for entry in legend:
        needed = sizes.square + sizes.gap * 3 + measuring.width(entry.text, sizes.text)
        if used + needed > inner:
            rows.append([])
            used = 0
        rows[-1].append((sizes.margin + used, entry))
        used += needed
    top = sizes.margin // 2 + sizes.header
    below = top + max(panel.picture.shape[0] for panel in panels) + sizes.gap // 2
    lines = len(rows) + (1 if footer else 0)
    canvas = Image.new("RGB", (width, below + sizes.line * lines + sizes.gap), BACKGROUND)
    pen = _Pen(canvas)
    x = sizes.margin
    for panel in panels:
        _write_title(pen, panel, x, top - sizes.header // 2, sizes)
        canvas.paste(Image.fromarray(panel.picture), (x, top))
        x += panel.picture.shape[1] + sizes.gap
    middle = below + sizes.line // 2
    for row in rows:
        for x, entry in row:
            upper = middle - sizes.square // 2
            square = (x, upper, x + sizes.square, upper + sizes.square)
            pen.draw.rounded_rectangle(square, radius=sizes.square // 4, fill=entry.colour)
            pen.write(x + sizes.square + sizes.gap, middle, entry.text, sizes.text, INK)
        middle += sizes.line
    if footer:
        pen.write(sizes.margin, middle, pen.shorten(footer, sizes.text, inner), sizes.text, FAINT)
    return np.array(canvas)


def _write_title(pen: _Pen, panel: Panel, x: int, middle: int, sizes: Sizes) -> None:
    width = panel.picture.shape[1]
    title = pen.shorten(panel.title, sizes.title, width)
    pen.write(x, middle, title, sizes.title, INK)
    start = pen.width(title, sizes.title) + sizes.gap
    if panel.note and start + pen.width(panel.note, sizes.text) <= width:
        pen.write(x + start, middle + 1, panel.note, sizes.text, FAINT)
