"""Plots of a sweep: importance of parameters, score by each parameter, and parallel coordinates."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.files.atomic import written_whole
from detseg.report.tuning_curves import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
_LONGEST = 22  # characters of a choice next to an axis
COMPLETE, PRUNED = "complete", "pruned"


@dataclass(frozen=True)
class SweptParameter:
    """choices: in order, None for numbers. log: whether its axis is logarithmic."""

    name: str
    choices: tuple[Any, ...] | None
    log: bool = False

    def place(self, value: Any) -> float:
        """Return the position of a value on its axis: the number, or the index of the choice."""
        return float(value) if self.choices is None else float(self.choices.index(value))


@dataclass(frozen=True)
class SweptTrial:
    """state: "complete" or "pruned". value: final value; for a pruned trial the last one reported."""

    number: int
    state: str
    value: float
    values: Mapping[str, Any]


def draw_slices(
    path: str | os.PathLike[str], parameters: Sequence[SweptParameter], trials: Sequence[SweptTrial], metric: str
) -> None:
    """Write a PNG: a panel per parameter, a dot per trial; early trials pale, pruned ones hollow, the best marked."""
    rows = -(-len(parameters) // COLUMNS)
    columns = min(len(parameters), COLUMNS)
    figure = _figure(4.0 * columns, 3.1 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).reshape(-1)
    best = _best(trials)
    shade = {trial.number: index for index, trial in enumerate(sorted(trials, key=lambda trial: trial.number))}
    for panel, parameter in zip(panels, parameters, strict=False):
        for state, hollow in ((PRUNED, True), (COMPLETE, False)):
            own = [trial for trial in trials if trial.state == state]
            colours = [_pale(shade[trial.number], len(trials)) for trial in own]
            panel.scatter(
                [parameter.place(trial.values[parameter.name]) for trial in own],
                [trial.value for trial in own],
                s=38,
                facecolors="none" if hollow else colours,
                edgecolors=colours if hollow else "white",
                linewidths=1.3 if hollow else 0.6,
            )
        if best is not None:
            place = parameter.place(best.values[parameter.name])
            panel.scatter([place], [best.value], s=110, facecolors="none", edgecolors=COLOURS[1], linewidths=1.8)
        _label_axis(panel, parameter)
        panel.set_xlabel(parameter.name)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(parameters) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel(metric)
    said = "one dot per trial, later ones darker; the best has a ring"
    if any(trial.state == PRUNED for trial in trials):
        said += "; hollow: stopped early, with the last value"
    figure.suptitle(said, fontsize=9)
    _save(figure, path)


def draw_importance(path: str | os.PathLike[str], shares: Mapping[str, float], metric: str) -> None:
    """Write a PNG with a bar per parameter; shares: contributions to the variance between trials, adding up to 1."""
    figure = _figure(6.4, 0.9 + 0.42 * len(shares))
    panel = figure.subplots()
    ordered = sorted(shares.items(), key=lambda item: item[1])
    bars = panel.barh([name for name, _ in ordered], [share for _, share in ordered], color=COLOURS[0], height=0.6)
    panel.bar_label(bars, [f"{share:.2f}" for _, share in ordered], padding=4, fontsize=9)
    panel.set_xlim(0, 1.08)
    panel.set_xlabel(f"contribution to the variance of {metric}")
    panel.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_parallel(
    path: str | os.PathLike[str], parameters: Sequence[SweptParameter], trials: Sequence[SweptTrial], metric: str
) -> None:
    """Write a PNG of parallel coordinates: a line per trial through its values to its score, coloured by score."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    axes = [*parameters, SweptParameter(metric, None)]
    figure = _figure(max(6.0, 1.9 * len(axes)), 4.6)
    panel = figure.subplots()
    scores = [trial.value for trial in trials]
    colour_of = Normalize(min(scores), max(scores) if max(scores) > min(scores) else min(scores) + 1)
    scales = [_Scale.of(axis, [_value_on(axis, trial, metric) for trial in trials]) for axis in axes]
    best = _best(trials)
    for trial in sorted(trials, key=lambda trial: trial.value):
        heights = [scale.height(_value_on(axis, trial, metric)) for axis, scale in zip(axes, scales, strict=True)]
        panel.plot(
            range(len(axes)),
            heights,
            color=colormaps["viridis"](0.95 * colour_of(trial.value)),
            linewidth=3.0 if trial is best else 1.4,
            linestyle="-" if trial.state == COMPLETE else (0, (3, 2)),
            alpha=0.9,
            zorder=3 if trial is best else 2,
        )
    for place, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        panel.axvline(place, color="0.3", linewidth=0.9, zorder=1)
        for height, text in scale.ticks(axis):
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
            panel.text(place + 0.03, height, text, fontsize=8, va="center", zorder=4, bbox=box)
    panel.set_xticks(range(len(axes)), [_broken(axis.name) for axis in axes], fontsize=9)
    panel.set_xlim(-0.15, len(axes) - 1 + 0.45)
    panel.set_ylim(-0.06, 1.06)
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    said = "one line per trial, the best one thick"
    figure.suptitle(said + ("; broken: stopped early" if any(t.state == PRUNED for t in trials) else ""), fontsize=9)
    _save(figure, path)


@dataclass(frozen=True)
class _Scale:
    """Heights from 0 to 1 on an axis of parallel coordinates."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, axis: SweptParameter, values: Sequence[float]) -> _Scale:
        if axis.choices is not None:
            return cls(0.0, float(len(axis.choices) - 1), False)
        return cls(min(values), max(values), axis.log and min(values) > 0)

    def height(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = np.log(low), np.log(high), np.log(value)
        return 0.5 if high <= low else float((value - low) / (high - low))

    def ticks(self, axis: SweptParameter) -> list[tuple[float, str]]:
        if axis.choices is not None:
            return [(self.height(index), _short(choice)) for index, choice in enumerate(axis.choices)]
        if self.high <= self.low:
            return [(0.5, f"{self.low:.3g}")]
        spaced = np.geomspace if self.log else np.linspace
        return [(self.height(value), f"{value:.3g}") for value in spaced(self.low, self.high, 5)]


def _value_on(axis: SweptParameter, trial: SweptTrial, metric: str) -> float:
    return trial.value if axis.name == metric else axis.place(trial.values[axis.name])


def _best(trials: Sequence[SweptTrial]) -> SweptTrial | None:
    """Return the first complete trial; trials are sorted, best first."""
    return next((trial for trial in trials if trial.state == COMPLETE), None)


def _label_axis(panel: Axes, parameter: SweptParameter) -> None:
    if parameter.choices is not None:
        labels = [_short(choice) for choice in parameter.choices]
        turned = {"rotation": 20, "ha": "right"} if max(map(len, labels)) > 8 and len(labels) > 2 else {}
        panel.set_xticks(range(len(labels)), labels, fontsize=8, **turned)
        panel.set_xlim(-0.5, len(labels) - 0.5)
    elif parameter.log:
        panel.set_xscale("log")


def _pale(index: int, count: int) -> tuple[float, float, float]:
    """A blue that is darker for later trials."""
    share = 0.35 + 0.65 * (index + 1) / count
    blue = np.array([0.0, 0.447, 0.698])
    return tuple(1 - share * (1 - blue))


def _short(choice: Any) -> str:
    text = str(choice)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _broken(name: str) -> str:
    """Put line breaks into a dotted name, so that neighbours do not overlap."""
    return name.replace(".", ".\n").replace("/", "/\n")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with written_whole(path, "the picture of a sweep") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
