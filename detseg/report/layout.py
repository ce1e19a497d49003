"""Panels side by side with titles, and a legend below: text by Pillow's own font, so that no font file is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (255, 255, 255)
INK = (28, 31, 36)
FAINT = (112, 118, 128)
MARGIN = 16
GAP = 12
HEADER = 36
LINE = 30
TITLE_SIZE = 19
TEXT_SIZE = 16


@dataclass(frozen=True)
class Panel:
    """A picture (h, w, 3) uint8 with a title above it and, behind that, a note in a fainter colour."""

    picture: np.ndarray
    title: str
    note: str = ""


@dataclass(frozen=True)
class LegendEntry:
    """A coloured square and its text; colour None is text alone."""

    text: str
    colour: tuple[int, int, int] | None = None


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # Pillow before 10.1 has one small font only.
        return ImageFont.load_default()


def _text_width(draw: ImageDraw.ImageDraw, text: str, size: int) -> int:
    return int(np.ceil(draw.textlength(text, font=_font(size))))


def compose(panels: Sequence[Panel], footer: str, legend: Sequence[LegendEntry]) -> np.ndarray:
    """Return one picture (h, w, 3) uint8: the panels in a row, below them the legend and, at the left, `footer`."""
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = 2 * MARGIN + sum(panel.picture.shape[1] for panel in panels) + GAP * (len(panels) - 1)
    rows = _wrap(measure, legend, width - 2 * MARGIN)
    footer_lines = 1 if footer else 0
    height = MARGIN + HEADER + max(panel.picture.shape[0] for panel in panels) + GAP
    height += LINE * (len(rows) + footer_lines) + MARGIN // 2
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    x = MARGIN
    for panel in panels:
        _draw_panel(canvas, draw, panel, x)
        x += panel.picture.shape[1] + GAP
    y = height - MARGIN // 2 - LINE * (len(rows) + footer_lines)
    for row in rows:
        _draw_row(draw, row, y)
        y += LINE
    if footer:
        text = _shorten(draw, footer, TEXT_SIZE, width - 2 * MARGIN)
        draw.text((MARGIN, y + LINE // 2), text, fill=FAINT, font=_font(TEXT_SIZE), anchor="lm")
    return np.asarray(canvas).copy()


def _draw_panel(canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, x: int) -> None:
    width = panel.picture.shape[1]
    middle = MARGIN + HEADER // 2 - 4
    title = _shorten(draw, panel.title, TITLE_SIZE, width)
    draw.text((x, middle), title, fill=INK, font=_font(TITLE_SIZE), anchor="lm")
    start = _text_width(draw, title, TITLE_SIZE) + GAP
    if panel.note and start + _text_width(draw, panel.note, TEXT_SIZE) <= width:
        draw.text((x + start, middle + 1), panel.note, fill=FAINT, font=_font(TEXT_SIZE), anchor="lm")
    canvas.paste(Image.fromarray(panel.picture), (x, MARGIN + HEADER))


def _shorten(draw: ImageDraw.ImageDraw, text: str, size: int, room: int) -> str:
    """Cut the middle out of a text that is too wide: names of images differ at their ends."""
    if _text_width(draw, text, size) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
        if _text_width(draw, short, size) <= room:
            return short
    return ""


def _entry_width(draw: ImageDraw.ImageDraw, entry: LegendEntry) -> int:
    return _text_width(draw, entry.text, TEXT_SIZE) + (24 if entry.colour else 0) + 24


def _wrap(draw: ImageDraw.ImageDraw, legend: Sequence[LegendEntry], room: int) -> list[list[LegendEntry]]:
    rows: list[list[LegendEntry]] = []
    used = room + 1
    for entry in legend:
        needed = _entry_width(draw, entry)
        if used + needed > room:
            rows.append([])
            used = 0
        rows[-1].append(entry)
        used += needed
    return rows


def _draw_row(draw: ImageDraw.ImageDraw, row: Sequence[LegendEntry], y: int) -> None:
    x = MARGIN
    for entry in row:
        start = x
        if entry.colour is not None:
            draw.rounded_rectangle((x, y + 8, x + 14, y + 22), radius=3, fill=entry.colour)
            x += 24
        colour = INK if entry.colour is not None else FAINT
        draw.text((x, y + LINE // 2), entry.text, fill=colour, font=_font(TEXT_SIZE), anchor="lm")
        x = start + _entry_width(draw, entry)
