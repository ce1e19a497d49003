"""Size distributions: percentiles, and cumulative curves as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from detseg.files.atomic import written_whole
from detseg.report.tuning_curves import COLOURS

PERCENTILES = (10, 50, 90)


def size_percentiles(sizes: np.ndarray) -> dict[str, float]:
    """Return D10, D50 and D90 of sizes (N,): that percentage of the objects is smaller. NaN without objects."""
    values = np.percentile(sizes, PERCENTILES) if len(sizes) else np.full(len(PERCENTILES), np.nan)
    return {f"D{percent}": float(value) for percent, value in zip(PERCENTILES, values, strict=True)}


def draw_size_distributions(path: Path, sizes: Mapping[str, np.ndarray], title: str) -> None:
    """Write a PNG with the cumulative distribution of sizes (N,) for every name, and its D10, D50 and D90.

    title: of the axis, with the unit. Names without sizes are left out. An existing file is replaced.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and may need a display

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    drawn = [(name, np.sort(values)) for name, values in sizes.items() if len(values)]
    for number, (name, values) in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        points = size_percentiles(values)
        said = ", ".join(f"{key} {value:.3g}" for key, value in points.items())
        share = np.arange(1, len(values) + 1) / len(values) * 100
        panel.step(values, share, where="post", color=colour, label=f"{name} ({len(values):,}): {said}")
        panel.plot(list(points.values()), PERCENTILES, "o", color=colour, markersize=5)
    if drawn and min(values[0] for _, values in drawn) > 0:
        panel.set_xscale("log")
        for axis_ticks in (panel.xaxis.set_major_formatter, panel.xaxis.set_minor_formatter):
            axis_ticks("{x:g}")
    panel.set_xlabel(title)
    panel.set_ylabel("percentage of objects that are smaller")
    panel.set_ylim(0, 100)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    if drawn:
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    with written_whole(path, "the picture of sizes") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
