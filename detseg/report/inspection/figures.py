"""Figures of the page of `detseg inspect_data`, made from the report only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.report.html import INK, LINE, colour, count_ticks, new_figure, octave_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]
# Maximum number of groups; the most frequent are drawn.
MOST_ROWS = 12


def groups_of(report: Report) -> list[str]:
    """Return the groups to draw, most frequent first; in the order of the classes if the groups are classes."""
    rows = report["images"]["by_group"]
    if are_classes(report):
        return list(report["classes"])[:MOST_ROWS]
    return sorted(rows, key=lambda name: (-rows[name]["images"], name))[:MOST_ROWS]


def has_groups(report: Report) -> bool:
    return len(report["images"]["by_group"]) > 1


def are_classes(report: Report) -> bool:
    """Whether the groups have the names of the classes, as if every image has cells of one line."""
    return set(report["images"]["by_group"]) == set(report["classes"])


def kinds_of(report: Report) -> list[tuple[str, Report]]:
    """Return the sections of the report on all objects, on each class and each group, with their names."""
    objects = report["objects"]
    kinds = [("all", objects)]
    if len(report["classes"]) > 1:
        kinds += [(name, objects["classes"][name]) for name in report["classes"]]
    if has_groups(report) and not are_classes(report):
        kinds += [(f"{report['group_field']} {name}", objects["groups"][name]) for name in groups_of(report)]
    return kinds


def label_of(group: str) -> str:
    return group or "all"


def _percent_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def _dots(report: Report, rows: Sequence[Report], columns: Mapping[str, Sequence[float | None]]) -> tuple[Any, Any]:
    """Draw columns (title -> value of every row) side by side: one dot per row, by group, and a mark at the median.

    Dots are jittered vertically so that equal values are visible.
    """
    groups = groups_of(report)[::-1]
    figure, all_axes = new_figure(1.25 + 0.42 * len(groups), len(columns), (1.15, 1))
    for axes, (title, values) in zip(all_axes, columns.items(), strict=True):
        rng = np.random.default_rng(0)
        for place, group in enumerate(groups):
            own = [v for v, row in zip(values, rows, strict=True) if row["group"] == group and v is not None]
            if not own:
                continue
            shade, size = colour(len(groups) - 1 - place), float(np.clip(400 / len(own), 3, 18))
            spread = rng.uniform(-0.26, 0.26, len(own))
            # Thousands of dots are rasterized instead of thousands of SVG elements.
            many = len(own) > 1500
            axes.scatter(own, place + spread, s=size, color=shade, alpha=0.55, linewidths=0, rasterized=many)
            axes.plot([np.median(own)] * 2, [place - 0.36, place + 0.36], color=shade, linewidth=2.6)
        axes.set_yticks(range(len(groups)), [label_of(group) for group in groups])
        axes.set_ylim(-0.6, len(groups) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
    all_axes[1].set_yticklabels([])
    return figure, all_axes


def draw_objects_per_image(report: Report) -> Figure:
    """Number of objects per image, and fraction of the image that they cover."""
    rows = report["images"]["rows"]
    figure, (left, right) = _dots(
        report,
        rows,
        {
            "Objects per image": [np.log2(max(row["objects"], 0.5)) for row in rows],
            "Fraction of the image that they cover": [row["covered"] for row in rows],
        },
    )
    low, high = left.get_xlim()
    count_ticks(left.xaxis, max(low, 0), high)
    if min(row["objects"] for row in rows) == 0:
        names = [label.get_text() for label in left.get_xticklabels()]
        left.set_xticks([-1.0, *left.get_xticks()], ["none", *names])
    _percent_axis(right.xaxis)
    return figure


def _draw_distributions(axes: Axes, data: Report, rows: Mapping[str, list[int]]) -> None:
    """Draw the counts in the bins of `data` as fractions, one line each."""
    edges = np.array(data["edges"])
    for index, (name, counts) in enumerate(rows.items()):
        if total := sum(counts):
            shares = np.array(counts) / total
            axes.stairs(shares, edges, color=colour(index), linewidth=1.8, label=f"{label_of(name)} ({total:,})")
            axes.stairs(shares, edges, color=colour(index), alpha=0.12, fill=True)
    axes.set_ylim(bottom=0)
    _percent_axis(axes.yaxis)
    if len(rows) > 1:
        axes.legend(loc="upper right", ncols=1 if len(rows) < 6 else 2)


def draw_sizes(report: Report) -> Figure:
    """Diameters of objects by class, and by group if there are any; in micrometres too if known."""
    by = [("classes", ", by class" if len(report["classes"]) > 1 else "", report["classes"])]
    if has_groups(report) and not are_classes(report):
        by.append(("groups", f", by {report['group_field']}", groups_of(report)))
    data, size = report["distributions"]["diameter"], report["images"]["pixel_size"]
    figure, all_axes = new_figure(3.1, len(by))
    for axes, (key, title, names) in zip(all_axes, by, strict=True):
        _draw_distributions(axes, data, {name: data[key][name] for name in names})
        octave_ticks(axes.xaxis, data["edges"][0], data["edges"][-1])
        axes.set_title(f"Diameter{title}")
        axes.set_xlabel("pixels, disk of the same area")
        if size and size["max"] <= 1.01 * size["min"]:
            shift = np.log2(size["median"])
            low, high = axes.get_xlim()
            top = axes.secondary_xaxis("top", functions=(lambda x, by=shift: x + by, lambda x, by=shift: x - by))
            octave_ticks(top.xaxis, low + shift, high + shift, " µm")
    all_axes[0].set_ylabel("fraction of the objects")
    return figure


def draw_shapes(report: Report) -> Figure:
    """Aspect ratio of boxes, and axis ratio of the ellipse with the same moments."""
    figure, (left, right) = new_figure(2.7, 2)
    for axes, name, title in (
        (left, "aspect", "Height / width of the box"),
        (right, "elongation", "Length / width in any direction"),
    ):
        data = report["distributions"][name]
        _draw_distributions(axes, data, {key: data["classes"][key] for key in report["classes"]})
        axes.set_title(title)
    places = np.arange(-4, 5)
    left.set_xticks(places, [f"{2.0**place:g}" if place >= 0 else f"1/{2.0**-place:g}" for place in places])
    left.set_xlim(-3.2, 3.2)
    right.set_xticks(range(1, 9), [*map(str, range(1, 8)), "8+"])
    left.set_ylabel("fraction of the objects")
    return figure


def draw_neighbours(report: Report) -> Figure:
    """Number of other objects that an object touches or overlaps."""
    data = report["distributions"]["contacts"]
    counts = np.sum([data["classes"][name] for name in report["classes"]], axis=0)
    figure, (axes,) = new_figure(2.2)
    axes.bar(data["edges"][:-1], counts / max(counts.sum(), 1), color=colour(0), width=0.8)
    axes.set_title("Number of others that an object touches or overlaps")
    axes.set_xticks(range(11), [*map(str, range(10)), "10+"])
    axes.set_xlim(-0.6, max(len(counts) - 0.4, 4.6))
    axes.grid(axis="x", visible=False)
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.set_ylabel("fraction of the objects")
    _percent_axis(axes.yaxis)
    return figure


def draw_intensities(report: Report) -> Figure:
    """Range and median of every image that was read, by group."""
    groups = groups_of(report)
    rows = [row for row in report["images"]["rows"] if "median" in row]
    figure, (axes,) = new_figure(2.9)
    thickness = float(np.clip(500 / max(len(rows), 1), 0.6, 9))
    place = 0
    for index, group in enumerate(groups):
        own = sorted((row for row in rows if row["group"] == group), key=lambda row: row["median"])
        if not own:
            continue
        x, shade = place + np.arange(len(own)), colour(index)
        low, median, high = ([row[name] for row in own] for name in ("low", "median", "high"))
        axes.vlines(x, low, high, color=shade, alpha=0.35, linewidth=thickness)
        marker = "o" if len(own) == 1 else ""
        name = f"{label_of(group)} ({len(own)})"
        axes.plot(x, median, marker=marker, color=shade, linewidth=2.4, label=name)
        place += len(own) + max(len(rows) // 40, 1)
    axes.set_xticks([])
    if len(groups) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=6)
    axes.grid(axis="x", visible=False)
    axes.set_title("Intensities of every image: percentiles 0.5 to 99.5, and median (line), sorted by the median")
    axes.set_ylabel("value in the file")
    return figure


def draw_focus(report: Report) -> Figure:
    """Focus and contrast of every image that was read."""
    rows = [row for row in report["images"]["rows"] if "median" in row]
    figure, (left, right) = _dots(
        report,
        rows,
        {
            "Focus: variance of the Laplacian": [np.log2(max(row["focus"], 2**-6)) for row in rows],
            "Objects minus background, fraction of the range": [row["contrast"] for row in rows],
        },
    )
    count_ticks(left.xaxis, *left.get_xlim())
    left.set_xlabel("low: blurred or empty; high: sharp or noisy")
    right.axvline(0, color=INK, linewidth=0.8)
    right.set_xlabel("below 0: objects are darker")
    return figure


def draw_anchors(report: Report) -> Figure:
    """Boxes at network scale by width and height, with the suggested anchors; and recall by IoU."""
    figure, (left, right) = new_figure(4.0, 2, (1, 1.05))
    _draw_boxes(left, report["network"]["shapes"])
    suggested = report["anchors"]["cases"]["suggested"]
    for level, sizes in enumerate(suggested["sizes"]):
        own = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in suggested["ratios"]]
        x, y = np.log2(np.array(own)).T
        ring = {"facecolors": "none", "edgecolors": colour(level + 1), "linewidths": 1.8}
        left.scatter(x, y, s=44, label=f"p{level + 2}", **ring)
    octave_ticks(left.xaxis, *left.get_xlim())
    octave_ticks(left.yaxis, *left.get_ylim())
    left.set_aspect("equal")
    left.set_xlabel("width at network scale, pixels")
    left.set_ylabel("height")
    left.set_title("Boxes (darker: more) and anchors")
    left.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.2)

    shades = {"detectron2": "#9aa2ab", "before": colour(0), "scaled": colour(4), "suggested": colour(1)}
    for name, case in report["anchors"]["cases"].items():
        width = 2.6 if name == "suggested" else 1.7
        right.plot(
            report["anchors"]["thresholds"], case["curve"], color=shades[name], label=case["name"], linewidth=width
        )
    for threshold in (0.5, 0.7):
        right.axvline(threshold, color=INK, linewidth=0.7, linestyle=(0, (3, 3)))
    right.set_ylim(0, 1.01)
    _percent_axis(right.yaxis)
    right.set_xlabel("minimum IoU of the best anchor on the grid")
    right.set_title("Objects matched by an anchor")
    right.legend(loc="lower left")
    return figure


def _draw_boxes(axes: Axes, shapes: Report) -> None:
    """Draw a 2D histogram of boxes by width and height over their bounding square, with a margin."""
    from matplotlib.colors import LinearSegmentedColormap

    cells = np.array(shapes["cells"], dtype=np.int64).reshape(-1, 3)
    low, high = int(cells[:, :2].min()) - 2, int(cells[:, :2].max()) + 3
    grid = np.zeros((high - low, high - low))
    grid[cells[:, 1] - low, cells[:, 0] - low] = cells[:, 2]
    edges = np.arange(low, high + 1) / shapes["bins_an_octave"]
    # One hue, from faint to strong, visible on light and dark pages.
    shades = LinearSegmentedColormap.from_list("counts", ["#3d86c630", "#3d86c6ff"])
    axes.pcolormesh(edges, edges, np.ma.masked_equal(np.sqrt(grid), 0), cmap=shades, rasterized=True)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(edges[0], edges[-1])


FIGURES = {
    "objects_per_image": draw_objects_per_image,
    "sizes": draw_sizes,
    "shapes": draw_shapes,
    "neighbours": draw_neighbours,
    "intensities": draw_intensities,
    "focus": draw_focus,
    "anchors": draw_anchors,
}
