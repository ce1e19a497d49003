"""Names of the files in a run folder and in a folder of folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = "run.json"  # versions, command, seed, engine, status
CONFIG_FILE = "config.yaml"  # every key
METRIC_LINES = "metrics.jsonl"  # losses and evaluations during training
METRICS_FILE = "final_metrics.json"  # all scores
POSTPROCESS_FILE = "postprocess.yaml"  # the chosen thresholds
PREDICTIONS_FOLDER = "predictions"  # NAME.json.gz for each data set, before thresholds
REPORT_FILE = "report.html"  # a report of all of these

FOLDS_RECORD = "folds.json"  # which folds a folder holds
OUT_OF_FOLD_FILE = "oof.json.gz"  # out-of-fold predictions of all images, before thresholds
OUT_OF_FOLD_TRUTH = "oof_ground_truth.json"  # the same images with their ground truth


def advise_run(folder: Path) -> str:
    """Return a remedy for a folder that is not a run: the runs in it (of `fit`, of folds), else what is expected."""
    inside = sorted(path for path in folder.glob("*/") if (path / CONFIG_FILE).is_file()) if folder.is_dir() else []
    if inside:
        return f"did you mean {', '.join(map(str, inside[:3]))}?"
    return "name the folder that train_net printed at its end (runs/NAME/001)"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all complete lines of a metrics.jsonl; a last line that a crash has truncated is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
