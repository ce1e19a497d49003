"""Figures of objects: how many, how large, of which shape, how near each other. Each makes SVG of the report."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np

from detseg.report.inspection.page import (
    INK,
    LINE,
    MOST_ROWS,
    colour,
    count_ticks,
    new_figure,
    octave_ticks,
    styled,
    to_svg,
)

Report = Mapping[str, Any]


def groups_of(report: Report) -> list[str]:
    """Return the groups to draw, the most frequent first; in the order of the classes where the classes are groups."""
    rows = report["images"]["by_group"]
    if are_classes(report):
        return list(report["classes"])[:MOST_ROWS]
    return sorted(rows, key=lambda name: (-rows[name]["images"], name))[:MOST_ROWS]


def has_groups(report: Report) -> bool:
    return len(report["images"]["by_group"]) > 1


def are_classes(report: Report) -> bool:
    """Whether the groups have the names of the classes, as where every image holds cells of one line."""
    return set(report["images"]["by_group"]) == set(report["classes"])


def label_of(group: str) -> str:
    return group or "all"


@styled
def draw_counts(report: Report) -> str:
    """Images and objects of every group, the objects by class."""
    groups = groups_of(report)[::-1]
    rows = report["images"]["by_group"]
    figure, (left, right) = new_figure(0.9 + 0.34 * len(groups) + 0.2 * (len(report["classes"]) > 1), 2, (1, 1.6))
    places = np.arange(len(groups))
    images = [rows[group]["images"] for group in groups]
    left.barh(places, images, height=0.62, color="#8a929c")
    _write_values(left, images, places)
    left.set_yticks(places, [label_of(group) for group in groups])
    start = np.zeros(len(groups))
    for number, name in enumerate(report["classes"]):
        widths = np.array([rows[group]["objects"][name] for group in groups], dtype=np.float64)
        right.barh(places, widths, left=start, height=0.62, color=colour(number), label=name)
        start += widths
    _write_values(right, start, places)
    right.set_yticks(places, [""] * len(groups))
    for axes in (left, right):
        axes.set_ylim(-0.7, max(len(groups) - 0.3, 1.3))
    left.set_title("Images")
    right.set_title("Objects")
    if len(report["classes"]) > 1:
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=6)
    for axes in (left, right):
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
    return to_svg(figure, "images and objects")


def _write_values(axes: Any, values: Any, places: np.ndarray) -> None:
    most = max(max(values, default=1), 1)
    axes.set_xlim(0, most * 1.15)
    for value, place in zip(values, places, strict=True):
        axes.text(value + most * 0.012, place, f"{int(value):,}", va="center", fontsize=9)


@styled
def draw_objects_per_image(report: Report) -> str:
    """How many objects images have, and how much of an image they cover, one dot an image."""
    groups = groups_of(report)[::-1]
    rows = report["images"]["rows"]
    figure, (left, right) = new_figure(1.15 + 0.42 * len(groups), 2, (1.25, 1))
    columns = (
        (left, [np.log2(max(row["objects"], 0.5)) for row in rows], "Objects an image"),
        (right, [row["covered"] for row in rows], "Part of the image that they cover"),
    )
    for axes, values, title in columns:
        strips(
            axes, {group: [v for v, row in zip(values, rows, strict=True) if row["group"] == group] for group in groups}
        )
        axes.set_title(title)
    low, high = left.get_xlim()
    count_ticks(left.xaxis, max(low, 0), high)
    if min(row["objects"] for row in rows) == 0:
        names = [label.get_text() for label in left.get_xticklabels()]
        left.set_xticks([-1.0, *left.get_xticks()], ["none", *names])
    right.set_yticklabels([])
    right.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    return to_svg(figure, "objects per image")


def strips(axes: Any, values: Mapping[str, list[float]], first: int = 0) -> None:
    """Draw one dot a value in a row a group, moved up and down so that equal ones show, and a mark at the median."""
    rng = np.random.default_rng(0)
    for place, column in enumerate(values.values()):
        shown = np.array([value for value in column if value is not None], dtype=np.float64)
        if not len(shown):
            continue
        spread = rng.uniform(-0.26, 0.26, len(shown))
        size = float(np.clip(400 / len(shown), 3, 18))
        own = colour(first + len(values) - 1 - place)
        axes.scatter(shown, place + spread, s=size, color=own, alpha=0.55, linewidths=0, rasterized=len(shown) > 1500)
        axes.plot([np.median(shown)] * 2, [place - 0.36, place + 0.36], color=own, linewidth=2.6)
    axes.set_yticks(range(len(values)), [label_of(group) for group in values])
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.grid(axis="y", visible=False)


@styled
def draw_sizes(report: Report) -> str:
    """Diameters of objects by class, and by group where there are some."""
    several = len(report["classes"]) > 1
    by = [("classes", ", by class" if several else "", report["classes"])]
    if has_groups(report) and not are_classes(report):
        by.append(("groups", f", by {report['group_field']}", groups_of(report)))
    data = report["distributions"]["diameter"]
    figure, all_axes = new_figure(3.1, len(by))
    for axes, (key, title, names) in zip(all_axes, by, strict=True):
        _steps(axes, data, {name: data[key][name] for name in names})
        octave_ticks(axes.xaxis, data["edges"][0], data["edges"][-1])
        axes.set_title(f"Diameter{title}")
        axes.set_xlabel("pixels, of a disc of the same area")
        _add_micrometres(axes, report)
    all_axes[0].set_ylabel("part of the objects")
    return to_svg(figure, "sizes of objects")


def _steps(axes: Any, data: Report, rows: Mapping[str, list[int]]) -> None:
    """Draw distributions as shares, one line each."""
    edges = np.array(data["edges"])
    for number, (name, counts) in enumerate(rows.items()):
        total = sum(counts)
        if not total:
            continue
        shares = np.array(counts) / total
        axes.stairs(shares, edges, color=colour(number), linewidth=1.8, label=f"{label_of(name)} ({total:,})")
        axes.stairs(shares, edges, color=colour(number), alpha=0.12, fill=True)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    if len(rows) > 1:
        axes.legend(loc="upper right", ncols=1 if len(rows) < 6 else 2)


def _add_micrometres(axes: Any, report: Report) -> None:
    size = report["images"]["pixel_size"]
    if not size or size["max"] > 1.01 * size["min"]:
        return
    shift = np.log2(size["median"])
    top = axes.secondary_xaxis("top", functions=(lambda value: value + shift, lambda value: value - shift))
    low, high = axes.get_xlim()
    octave_ticks(top.xaxis, low + shift, high + shift, " µm")


@styled
def draw_shapes(report: Report) -> str:
    """Height by width of boxes, and the ratio of the axes of the ellipse of the same moments."""
    figure, (left, right) = new_figure(2.7, 2)
    for axes, name, title in (
        (left, "aspect", "Height by width of the box"),
        (right, "elongation", "Length by width, whatever the direction"),
    ):
        data = report["distributions"][name]
        _steps(axes, data, {key: data["classes"][key] for key in report["classes"]})
        axes.set_title(title)
    places = np.arange(-4, 5)
    left.set_xticks(places, [f"{2.0**place:g}" if place >= 0 else f"1/{2.0**-place:g}" for place in places])
    left.set_xlim(-3.2, 3.2)
    right.set_xticks(range(1, 9), [*map(str, range(1, 8)), "8+"])
    left.set_ylabel("part of the objects")
    return to_svg(figure, "shapes of objects")


@styled
def draw_contacts(report: Report) -> str:
    """How many objects overlap, touch, or nearly do, by class and group; and how many others one touches."""
    numbers = report["objects"]
    rows = [("all", numbers)]
    if len(report["classes"]) > 1:
        rows += [(name, numbers["classes"][name]) for name in report["classes"]]
    if has_groups(report) and not are_classes(report):
        rows += [(f"{report['group_field']} {name}", numbers["groups"][name]) for name in groups_of(report)]
    rows = [row for row in rows if row[1]["objects"]][::-1]
    figure, (left, right) = new_figure(max(1.1 + 0.36 * len(rows), 2.5), 2, (1.6, 1))
    places = np.arange(len(rows))
    for key, name, shade in (
        ("near", "at most 2 pixels apart", "#c9d3dd"),
        ("touching", "touching or overlapping", colour(0)),
        ("overlapping", "overlapping", colour(1)),
    ):
        height = 0.62 if key != "overlapping" else 0.3
        left.barh(places, [row[key] for _, row in rows], height=height, color=shade, label=name)
    left.set_yticks(places, [name for name, _ in rows])
    room = max(2.4 - len(rows), 0) / 2  # a single bar is not to fill the figure
    left.set_ylim(-0.6 - room, len(rows) - 0.4 + room)
    left.set_xlim(0, 1)
    left.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    left.grid(axis="y", visible=False)
    left.set_title("Objects with others so near")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    data = report["distributions"]["contacts"]
    counts = np.sum([data["classes"][name] for name in report["classes"]], axis=0)
    right.bar(data["edges"][:-1], counts / max(counts.sum(), 1), color=colour(0), width=0.8)
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    right.set_title("Neighbours touched")
    right.set_xticks(range(0, 11, 2), ["0", "2", "4", "6", "8", "10+"])
    right.set_xlim(-0.6, max(len(counts) - 0.4, 4.6))
    right.grid(axis="x", visible=False)
    right.axhline(0, color=LINE, linewidth=0.8)
    return to_svg(figure, "contacts")


# Figures of pictures: intensities, contrast and focus; and of what a detector's anchors meet.


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
