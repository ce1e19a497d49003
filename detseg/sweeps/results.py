"""The results of a sweep: a table, plots, and the best configuration."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detseg.config.command_line import parse_overrides
from detseg.config.kinds import coerce
from detseg.config.node import nested
from detseg.config.schema import schema
from detseg.files.atomic import write_text
from detseg.files.table import text_table, write_csv
from detseg.report.sweep_plots import (
    COMPLETE,
    PRUNED,
    SweptParameter,
    SweptTrial,
    draw_importance,
    draw_parallel,
    draw_slices,
)
from detseg.sweeps.parameters import label
from detseg.sweeps.search import VALUES, Search, import_optuna

logger = logging.getLogger(__name__)

TABLE, BEST = "trials.csv", "best.yaml"
IMPORTANCE, SLICES, PARALLEL = "importance.png", "slices.png", "parallel.png"
# Fewest complete trials for which importance is computed.
_FEWEST = 4


def write_results(search: Search) -> tuple[str, bool]:
    """Write all results into the folder of the sweep.

    Returns:
        the table as text, best trial first; and whether any trial is complete.
    """
    rows = _rows(search)
    names = [parameter.name for parameter in search.sweep.parameters]
    metric = search.sweep.metric.name
    heading = ["trial", "state", metric, "seconds", *names, "note"]
    cells = [
        [row["number"], row["state"], row["value"], row["seconds"], *map(row["values"].get, names), row["note"]]
        for row in rows
    ]
    as_text = [["" if cell is None else label(cell) for cell in line] for line in cells]
    write_csv(search.folder / TABLE, [heading, *as_text], "the table of trials")
    _draw(search, rows)
    best = next((row for row in rows if row["state"] == COMPLETE), None)
    if best is not None:
        _write_best(search, best)
    shown = [heading, *([*map(_cell, line[:-1]), line[-1][:60]] for line in cells)]
    if not any(line[-1] for line in shown[1:]):
        shown = [line[:-1] for line in shown]
    return text_table(shown, left=(1, *range(4, len(shown[0])))), best is not None


def swept(search: Search, rows: Sequence[dict[str, Any]]) -> tuple[list[SweptParameter], list[SweptTrial]]:
    """Return the data of the plots: the searched parameters, and the trials with a value, best first."""
    parameters = [
        SweptParameter(
            parameter.name,
            None if parameter.choices is None else tuple(map(label, parameter.choices)),
            parameter.kind == "log",
        )
        for parameter in search.sweep.searched
    ]
    trials = [
        SweptTrial(row["number"], row["state"], row["value"], {key: label(v) for key, v in row["values"].items()})
        for row in rows
        if row["value"] is not None and row["state"] in (COMPLETE, PRUNED)
    ]
    return parameters, trials


def _rows(search: Search) -> list[dict[str, Any]]:
    """Return the trials as plain values, the best first, then those that were stopped early, then the others."""
    rows = []
    for trial in search.study.get_trials(deepcopy=False):
        state = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": "failed"}.get(trial.state.name, "unfinished")
        last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
        rows.append(
            {
                "number": trial.number,
                "state": state,
                "value": trial.value if state == COMPLETE else last,
                "seconds": trial.user_attrs.get("seconds"),
                "values": trial.user_attrs.get(VALUES, {}),
                "note": trial.user_attrs.get("note", ""),
            }
        )
    order = (COMPLETE, PRUNED, "unfinished", "failed")
    sign = -1 if search.sweep.metric.maximize else 1
    return sorted(rows, key=lambda row: (order.index(row["state"]), sign * (row["value"] or 0), row["number"]))


def _draw(search: Search, rows: Sequence[dict[str, Any]]) -> None:
    parameters, trials = swept(search, rows)
    metric = search.sweep.metric.name
    if not parameters or not trials:
        return
    draw_slices(search.folder / SLICES, parameters, trials, metric)
    draw_parallel(search.folder / PARALLEL, parameters, trials, metric)
    if shares := importance(search):
        complete = sum(trial.state == COMPLETE for trial in trials)
        draw_importance(search.folder / IMPORTANCE, shares, f"{metric} of {complete} complete trials")


def importance(search: Search) -> dict[str, float]:
    """Return how much each parameter contributes to the variance of complete trials; {} if that cannot be computed.

    By functional ANOVA of a random forest if scikit-learn is installed, else by Optuna's PED-ANOVA.
    """
    optuna = import_optuna()
    complete = [trial for trial in search.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(complete) < _FEWEST or len({trial.value for trial in complete}) < 2:
        return {}
    try:
        evaluator: Any = optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
    except ImportError:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        return dict(optuna.importance.get_param_importances(search.study, evaluator=evaluator))
    except (ValueError, RuntimeError) as error:  # for example if a parameter has one value in all trials
        logger.warning("the importance of parameters cannot be computed: %s", error)
        return {}


def _write_best(search: Search, row: dict[str, Any]) -> None:
    sweep, target = search.sweep, search.folder / BEST
    folder = search.trial_folder(row["number"])
    said = f"# The best of a sweep ({sweep.path.name}): trial {row['number']}, {sweep.metric.name} {row['value']:.4f}\n"
    if sweep.program == "tune_thresholds":
        for path in (folder / "tuned.yaml", folder / "tuned_fusion.yaml"):
            if path.is_file():
                shutil.copyfile(path, target.with_name(target.name.replace("best", path.stem.replace("tuned", "best"))))
        return
    values = {tuple(parameter.path): row["values"][parameter.name] for parameter in sweep.parameters}
    base, overrides = _config_and_overrides(sweep.command(values, search.json_file(row["number"])))
    kinds = schema().kinds
    tree = nested(
        {
            tuple(setting.key.split(".")): coerce(kinds[setting.key], setting.value, decode=True)
            for setting in parse_overrides(overrides)
        }
    )
    head = {} if base is None else {"_BASE_": _beside(base, search.folder)}
    write_text(target, said + yaml.safe_dump({**head, **tree}, sort_keys=False, default_flow_style=None))


def _config_and_overrides(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the arguments of train_net into its configuration, and the keys with their values."""
    from_options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    from_options.add_argument("--config", "--config-file")
    for name in ("--fold", "--num-gpus", "--num-threads"):
        from_options.add_argument(name)
    for name in ("--resume", "--overwrite"):
        from_options.add_argument(name, action="store_true")
    known, rest = from_options.parse_known_args(list(words))
    return known.config, rest


def _beside(config: str, folder: Path) -> str:
    """Return the path of a configuration relative to the folder of the sweep; names of detseg's own are kept."""
    return Path(os.path.relpath(config, folder)).as_posix() if os.path.isfile(config) else config


def _cell(value: Any) -> str:
    """Format a value, with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(label(value))
