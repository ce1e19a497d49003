"""Figures of pictures: intensities, contrast and focus; and of what a detector's anchors meet."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np

from detseg.report.inspection.figures_objects import Report, groups_of, label_of, strips
from detseg.report.inspection.style import INK, colour, count_ticks, new_figure, octave_ticks, styled, to_svg


@styled
def draw_intensities(report: Report) -> str:
    """The range and the median of every picture, group by group."""
    groups = groups_of(report)
    rows = [row for row in report["images"]["rows"] if "median" in row]
    figure, (axes,) = new_figure(2.9)
    place = 0
    for number, group in enumerate(groups):
        own = sorted((row for row in rows if row["group"] == group), key=lambda row: row["median"])
        if not own:
            continue
        x = place + np.arange(len(own))
        axes.vlines(
            x,
            [row["low"] for row in own],
            [row["high"] for row in own],
            color=colour(number),
            alpha=0.35,
            linewidth=_thickness(len(rows)),
        )
        name = f"{label_of(group)} ({len(own)})"
        axes.plot(x, [row["median"] for row in own], color=colour(number), linewidth=2.4, label=name)
        if len(own) == 1:
            axes.plot(x, [own[0]["median"]], "o", color=colour(number))
        place += len(own) + max(len(rows) // 40, 1)
    axes.set_xticks([])
    if len(groups) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=6)
    axes.grid(axis="x", visible=False)
    axes.set_title("Intensities of every picture: percentiles 0.5 to 99.5, and the median (line); sorted by it")
    axes.set_ylabel("value in the file")
    return to_svg(figure, "intensities")


def _thickness(count: int) -> float:
    return float(np.clip(500 / max(count, 1), 0.6, 9))


@styled
def draw_focus(report: Report) -> str:
    """Focus and contrast, one dot a picture."""
    groups = groups_of(report)[::-1]
    rows = [row for row in report["images"]["rows"] if "median" in row]
    figure, (left, right) = new_figure(1.25 + 0.42 * len(groups), 2)
    columns = (
        (left, [np.log2(max(row["focus"], 2**-6)) for row in rows], "Focus: variance of the Laplacian"),
        (right, [row["contrast"] for row in rows], "Objects minus background, part of the range"),
    )
    for axes, values, title in columns:
        strips(
            axes, {group: [v for v, row in zip(values, rows, strict=True) if row["group"] == group] for group in groups}
        )
        axes.set_title(title)
    count_ticks(left.xaxis, *left.get_xlim())
    left.set_xlabel("low: blurred or empty; high: sharp or noisy")
    right.set_yticklabels([])
    right.axvline(0, color=INK, linewidth=0.8)
    right.set_xlabel("below 0 objects are darker")
    return to_svg(figure, "focus and contrast")


@styled
def draw_anchors(report: Report) -> str:
    """Boxes at the network by width and height with the suggested anchors; and recall by IoU."""
    figure, (left, right) = new_figure(4.0, 2, (1, 1.05))
    _draw_shapes(left, report["network"]["shapes"], report["anchors"]["cases"]["suggested"])
    _draw_recall(right, report["anchors"])
    return to_svg(figure, "anchors")


def _draw_shapes(axes: Any, shapes: Report, suggested: Report) -> None:
    _cells(axes, np.array(shapes["cells"], dtype=np.float64).reshape(-1, 3), 1 / shapes["bins_an_octave"])
    for level, sizes in enumerate(suggested["sizes"]):
        own = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in suggested["ratios"]]
        x, y = np.log2(np.array(own)).T
        shade, name = colour(level + 1), f"p{level + 2}"
        axes.scatter(x, y, s=44, facecolors="none", edgecolors=shade, linewidths=1.8, label=name)
    octave_ticks(axes.xaxis, *axes.get_xlim())
    octave_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_aspect("equal")
    axes.set_xlabel("width at the network, pixels")
    axes.set_ylabel("height")
    axes.set_title("Boxes (the more the darker) and anchors")
    axes.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.2)


def _draw_recall(axes: Any, anchors: Report) -> None:
    shades = {"detectron2": "#9aa2ab", "before": colour(0), "scaled": colour(4), "suggested": colour(1)}
    for name, case in anchors["cases"].items():
        width = 2.6 if name == "suggested" else 1.7
        axes.plot(anchors["thresholds"], case["curve"], color=shades[name], label=case["name"], linewidth=width)
    for threshold in (0.5, 0.7):
        axes.axvline(threshold, color=INK, linewidth=0.7, linestyle=(0, (3, 3)))
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("IoU of the best anchor on the grid, at least")
    axes.set_title("Objects that an anchor meets")
    axes.legend(loc="lower left")


def _cells(axes: Any, cells: np.ndarray, step: float) -> None:
    """Draw counts (n, 3) of bins x, y, count as a map over their bounding square, with some room."""
    if not len(cells):
        return
    low = int(cells[:, :2].min()) - 2
    high = int(cells[:, :2].max()) + 3
    grid = np.zeros((high - low, high - low))
    x, y = (cells[:, axis].astype(np.int64) - low for axis in (0, 1))
    grid[y, x] = cells[:, 2]
    edges = np.arange(low, high + 1) * step
    shown = np.ma.masked_equal(np.sqrt(grid), 0)
    from matplotlib.colors import LinearSegmentedColormap

    # From faint to strong in one hue, seen on light and dark pages.
    shades = LinearSegmentedColormap.from_list("counts", ["#3d86c630", "#3d86c6ff"])
    axes.pcolormesh(edges, edges, shown, cmap=shades, rasterized=True)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(edges[0], edges[-1])


@styled
def draw_problems(report: Report) -> str:
    """How many masks each kind of problem concerns."""
    found = report["problems"]["masks"]
    names = sorted(found, key=lambda name: found[name]["objects"])
    figure, (axes,) = new_figure(0.7 + 0.4 * max(len(names), 1))
    places = np.arange(len(names))
    counts = [found[name]["objects"] for name in names]
    axes.barh(places, counts, height=0.62, color=colour(1))
    total = max(report["objects"]["count"], 1)
    most = max(counts, default=1)
    for count, place in zip(counts, places, strict=True):
        axes.text(count + most * 0.01, place, f"{count:,} ({100 * count / total:.2g} %)", va="center", fontsize=9)
    axes.set_yticks(places, [fill(found[name]["title"], 44) for name in names])
    axes.set_xlim(0, most * 1.2)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)
    return to_svg(figure, "problems")
