"""The files of a run folder, and of a folder of folds: their names for writers and readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = "run.json"  # versions, command, seed, engine, status
CONFIG_FILE = "config.yaml"  # every key
METRIC_LINES = "metrics.jsonl"  # losses and evaluations while it trains
METRICS_FILE = "final_metrics.json"  # all scores
POSTPROCESS_FILE = "postprocess.yaml"  # the chosen thresholds
PREDICTIONS_FOLDER = "predictions"  # NAME.json.gz of every data set, before thresholds
REPORT_FILE = "report.html"  # all of this for people

FOLDS_RECORD = "folds.json"  # which folds a folder holds
OUT_OF_FOLD_FILE = "oof.json.gz"  # what every image's own fold predicts for it, before thresholds
OUT_OF_FOLD_TRUTH = "oof_ground_truth.json"  # the same images with their ground truth


def advise_run(folder: Path) -> str:
    """Say what to name where a folder holds no run: those in it (of `fit`, of folds), else what is expected."""
    inside = sorted(path for path in folder.glob("*/") if (path / CONFIG_FILE).is_file()) if folder.is_dir() else []
    if inside:
        return f"did you mean {', '.join(map(str, inside[:3]))}?"
    return "name the folder that train_net printed at its end (runs/NAME/001)"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines of a metrics.jsonl; a last line that was cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
