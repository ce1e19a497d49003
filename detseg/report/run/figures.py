"""Figures of the page of a training: scores, curves, counts, sizes; made from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.evaluation.matches import ImageMatches
from detseg.report.html import INK, LINE, colour, new_figure, octave_ticks
from detseg.report.outcomes import FALSE, HIT, MISSED
from detseg.report.run.scores import TITLES, ScoreRow
from detseg.tuning.score_curves import ClassCurves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]
# Above this number, points are rasterized.
MANY = 1500
_HEX = {name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in (("hit", HIT), ("false", FALSE), ("missed", MISSED))}


def draw_intervals(rows: Sequence[ScoreRow]) -> Figure:
    """Object AP of all objects, of every class and group, with its interval."""
    figure, (axes,) = new_figure(0.75 + 0.27 * len(rows))
    shades = [INK if row.name == "all" else colour(0) for row in rows]
    _draw_intervals(axes, [(row.name, row.values[0], row.ends[0]) for row in rows], shades)
    axes.set_xlim(0, 1)
    axes.set_title("Object AP with 95 % interval")
    return figure


def _draw_intervals(axes: Axes, rows: Sequence[tuple[str, float, np.ndarray]], shades: Sequence[str]) -> None:
    """Draw named values with their intervals, one below the other."""
    places = np.arange(len(rows))[::-1]
    for place, (_, value, ends), shade in zip(places, rows, shades, strict=True):
        axes.plot(ends, [place, place], color=shade, linewidth=2.2, solid_capstyle="round")
        axes.plot(value, place, "o", color=shade, markersize=6)
    axes.set_yticks(places, [name for name, _, _ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", visible=False)


def draw_differences(rows: Sequence[tuple[str, float, np.ndarray]], other: str) -> Figure:
    """Difference in object AP of another run, by name, with its interval."""
    figure, (axes,) = new_figure(0.85 + 0.27 * len(rows))
    _draw_intervals(axes, rows, [colour(0) if ends[0] > 0 or ends[1] < 0 else "#9aa2ab" for _, _, ends in rows])
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_title(f"Difference in object AP of {other} (gray: the interval contains 0)")
    return figure


def draw_losses(training: Lines) -> Figure:
    """All losses by iteration, and their sum."""
    figure, (axes,) = new_figure(2.8)
    names = [name for name in training[-1] if name.startswith("loss")]
    for name, shade in [*((name, colour(i)) for i, name in enumerate(names)), ("total_loss", INK)]:
        _plot(axes, training, name, color=shade, label=name.removeprefix("loss_").replace("_", " "))
    _log_scale(axes)
    axes.set_title("Losses, means since the previous record")
    axes.set_xlabel("iteration")
    _legend_outside(axes)
    return figure


def draw_scores(evaluations: Lines) -> Figure:
    """Scores of the evaluations during the training."""
    figure, (axes,) = new_figure(2.6)
    names = [name for name in (*TITLES, "coco_segm_ap", "coco_bbox_ap") if _points(evaluations, name)[0]]
    for index, name in enumerate(names):
        title = TITLES.get(name, name.replace("_", " ").replace("coco", "COCO").replace("ap", "AP"))
        axes.plot(*_points(evaluations, name), color=colour(index), label=title, marker="o", markersize=3.5)
    axes.set_ylim(0, 1)
    axes.set_title("Scores of the evaluations during training")
    axes.set_xlabel("iteration")
    _legend_outside(axes)
    return figure


def draw_pace(training: Lines) -> Figure:
    """Learning rate, gradient norm, seconds per iteration."""
    figure, (left, middle, right) = new_figure(2.2, 3)
    _plot(left, training, "lr", color=colour(0))
    left.set_title("Learning rate")
    left.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _plot(middle, training, "gradient_norm", color=colour(4))
    middle.set_title("Gradient norm")
    _plot(right, training, "seconds", color=colour(2), label="all")
    _plot(right, training, "data_seconds", color=colour(1), label="waiting for data")
    right.set_title("Seconds per iteration")
    right.set_ylim(0, 1.45 * right.get_ylim()[1])
    right.legend(loc="upper right")
    for axes in (left, middle, right):
        axes.set_xlabel("iteration")
    return figure


def draw_runs(runs: Sequence[tuple[str, Lines, Lines]]) -> Figure:
    """Losses and object AP of several runs: name, training records, evaluation records."""
    figure, (left, right) = new_figure(3.0, 2)
    for index, (name, training, evaluations) in enumerate(runs):
        _plot(left, training, "total_loss", color=colour(index), label=name)
        right.plot(*_points(evaluations, "object_ap"), color=colour(index), label=name, marker="o", markersize=3.5)
    _log_scale(left)
    left.set_title("Sum of the losses")
    right.set_title("Object AP of the evaluations")
    right.set_ylim(0, 1)
    for axes in (left, right):
        axes.set_xlabel("iteration")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def draw_curves(named: Sequence[tuple[str, ClassCurves]], chosen: Mapping[str, float]) -> Figure:
    """Precision-recall curves, and object AP by score threshold, per class or run; chosen: thresholds in use."""
    figure, (left, right) = new_figure(3.3, 2)
    for index, (name, curves) in enumerate(named):
        shade = INK if name == "all" else colour(index - (named[0][0] == "all"))
        width = 2.4 if name == "all" else 1.5
        for iou, style in ((0.5, "-"), (0.75, ":")):
            curve = curves.by_iou[iou]
            label = name if style == "-" else None
            left.plot(*_thinned(curve.recall, curve.precision), style, color=shade, linewidth=width, label=label)
        if len(curves.object_ap):
            right.plot(*_thinned(*curves.object_ap.T), color=shade, linewidth=width)
        if name in chosen and len(curves.object_ap):
            reached = curves.object_ap[curves.object_ap[:, 0] >= chosen[name]]
            if len(reached):
                right.plot(chosen[name], reached[-1, 1], "o", color=shade, markersize=7)
    for axes in (left, right):
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.01)
    left.set_title("Precision-recall curve (dotted: IoU > 0.75)")
    left.set_xlabel("recall, IoU > 0.5")
    left.set_ylabel("precision")
    right.set_title("Object AP by score threshold")
    right.set_xlabel("score threshold")
    if len(named) > 1:
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=6)
    return figure


def draw_thresholds(curves: ClassCurves, threshold: float | None) -> Figure:
    """Precision, recall and F1 at IoU > 0.5, and object AP, by score threshold, over all objects."""
    figure, (axes,) = new_figure(2.6)
    curve = curves.by_iou[0.5]
    for index, (name, values) in enumerate(
        (("precision", curve.precision), ("recall", curve.recall), ("F1", curve.f1))
    ):
        axes.plot(*_thinned(curve.thresholds, values), color=colour(index), label=name)
    if len(curves.object_ap):
        axes.plot(*_thinned(*curves.object_ap.T), color=INK, linewidth=2.2, label="object AP")
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.annotate(f" {threshold:.3g}", (threshold, 0.02), va="bottom", fontsize=9)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    axes.set_title("All objects by score threshold (dashed: the one in use)")
    axes.set_xlabel("score threshold")
    _legend_outside(axes)
    return figure


def draw_counts(matches: Sequence[ImageMatches]) -> Figure:
    """Predicted vs true number of objects per image, and areas of true positives vs those of their objects."""
    figure, (left, right) = new_figure(3.6, 2)
    true = np.array([int((~image.crowd).sum()) for image in matches])
    found = np.array([int((~image.left_out).sum()) for image in matches])
    _by_identity(left, true, found, colour(0))
    left.set_title("Objects per image")
    left.set_xlabel("true")
    left.set_ylabel("predicted")
    areas = [(image.object_areas[image.object_of[image.is_hit]], image.areas[image.is_hit]) for image in matches]
    true, found = (np.concatenate([np.zeros(0), *side]) for side in zip(*areas, strict=True)) if areas else ([], [])
    if len(true):
        x, y = np.log2(np.maximum(true, 1)), np.log2(np.maximum(found, 1))
        right.scatter(x, y, s=5, color=colour(2), alpha=0.35, linewidths=0, rasterized=len(x) > MANY)
        low, high = min(x.min(), y.min()) - 0.3, max(x.max(), y.max()) + 0.3
        right.plot([low, high], [low, high], color=INK, linewidth=0.9)
        right.set_xlim(low, high)
        right.set_ylim(low, high)
        octave_ticks(right.xaxis, low, high, most=7)
        octave_ticks(right.yaxis, low, high, most=7)
        ratio = np.median(found / np.maximum(true, 1))
        right.set_title(f"Area of hits, pixels (median ratio {ratio:.2f})")
    else:
        right.set_title("Area of hits: no hits")
    right.set_xlabel("true")
    right.set_aspect("equal")
    left.set_aspect("equal")
    return figure


def _by_identity(axes: Axes, x: np.ndarray, y: np.ndarray, shade: str) -> None:
    top = 1.06 * max(int(x.max(initial=0)), int(y.max(initial=0)), 1)
    axes.plot([0, top], [0, top], color=INK, linewidth=0.9)
    axes.scatter(x, y, s=22, color=shade, alpha=0.6, linewidths=0, rasterized=len(x) > MANY)
    axes.set_xlim(-0.02 * top, top)
    axes.set_ylim(-0.02 * top, top)


def draw_overlaps(matches: Sequence[ImageMatches]) -> Figure:
    """IoU of true positives, and the diameters of found, missed and falsely predicted objects."""
    figure, (left, right) = new_figure(3.0, 2)
    ious = np.concatenate([np.zeros(0), *(image.iou[image.is_hit] for image in matches)])
    left.hist(ious, bins=np.linspace(0.5, 1, 26), color=_HEX["hit"])
    left.set_xlim(0.5, 1)
    if len(ious):
        left.axvline(np.median(ious), color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
    left.set_title(f"IoU of the hits (median {np.median(ious):.2f})" if len(ious) else "IoU of the hits: none")
    left.set_ylabel("hits")
    kinds = {
        "found": np.concatenate([np.zeros(0), *(one.object_areas[one.predicted_of >= 0] for one in matches)]),
        "missed": np.concatenate([np.zeros(0), *(one.object_areas[one.is_missed] for one in matches)]),
        "false": np.concatenate([np.zeros(0), *(one.areas[one.is_false] for one in matches)]),
    }
    logs = {name: np.log2(2 * np.sqrt(np.maximum(areas, 1) / np.pi)) for name, areas in kinds.items()}
    every = np.concatenate([*logs.values()])
    if len(every):
        low, high = np.floor(2 * every.min()) / 2, np.ceil(2 * every.max() + 0.01) / 2
        edges = np.linspace(low, high, int(np.clip(round(8 * (high - low)), 8, 40)) + 1)
        shades = (_HEX["hit"], _HEX["missed"])
        labels = [f"{name} ({len(logs[name]):,})" for name in ("found", "missed")]
        right.hist([logs["found"], logs["missed"]], bins=edges, stacked=True, color=shades, label=labels)
        counts, _ = np.histogram(logs["false"], edges)
        right.stairs(counts, edges, color=_HEX["false"], linewidth=1.8, label=f"false ({len(logs['false']):,})")
        octave_ticks(right.xaxis, low, high)
        right.legend()
    right.set_title("Sizes of found and missed objects")
    right.set_xlabel("diameter in pixels (disk of the same area)")
    for axes in (left, right):
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.grid(axis="x", visible=False)
    return figure


def draw_image_scores(base: np.ndarray, other: np.ndarray, names: tuple[str, str]) -> Figure:
    """Object AP of every image in two runs."""
    figure, (axes, beside) = new_figure(3.4, 2, (1, 1.2))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9)
    axes.scatter(base, other, s=24, color=colour(0), alpha=0.6, linewidths=0, rasterized=len(base) > MANY)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_title("Object AP of every image")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    beside.hist(other - base, bins=31, color=colour(0))
    beside.axvline(0, color=INK, linewidth=0.9)
    beside.set_title("Difference by image")
    beside.set_xlabel(f"{names[1]} minus {names[0]}")
    beside.set_ylabel("images")
    beside.yaxis.get_major_locator().set_params(integer=True)
    return figure


def _points(lines: Lines, name: str) -> tuple[list[int], list[float]]:
    """Return iterations and values of the records with a value of this name."""
    found = [(line["iteration"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
    return [x for x, _ in found], [y for _, y in found]


def _plot(axes: Axes, lines: Lines, name: str, **options: Any) -> None:
    points = _points(lines, name)
    axes.plot(*points, marker="o" if len(points[0]) == 1 else "", **options)  # a line with a single point is invisible


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `most` points of a line, including its ends."""
    if len(x) <= most:
        return x, y
    chosen = np.unique(np.linspace(0, len(x) - 1, most).round().astype(int))
    return x[chosen], y[chosen]


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")


def _legend_outside(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), borderaxespad=0)
