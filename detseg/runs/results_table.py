"""The scores of a run as a table for people, and what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detseg.files.table import text_table

COLUMNS = (
    ("object_ap", "object AP"),
    ("object_ap50", "AP50"),
    ("object_ap75", "AP75"),
    ("mean_f1", "mean F1"),
    ("coco_segm_ap", "COCO mask AP"),
    ("coco_bbox_ap", "COCO box AP"),
    ("objects", "objects"),
    ("predictions", "predictions"),
)

CONTENTS = {
    "final_metrics.json": "all scores",
    "checkpoints/best.pth": "the weights of the best evaluation",
    "checkpoints/last.pth": "the state at the end, to resume from",
    "overlays": "ground truth and prediction side by side",
    "predictions": "everything that was found, before thresholds",
    "postprocess.yaml": "the chosen score threshold, used by predict",
    "metrics.jsonl": "losses and evaluations by iteration",
    "tensorboard": "the same for TensorBoard",
    "config.yaml": "every setting",
    "run.json": "command, versions, seed",
    "log.txt": "the log",
}


def results_table(metrics: Mapping[str, Any]) -> str:
    """A table of final_metrics.json: one row over all objects, one for each class, group and further data set."""
    rows = [("all", metrics)]
    if len(metrics.get("per_class", {})) > 1:
        rows += [(f"class {name}", values) for name, values in metrics["per_class"].items()]
    rows += [(f"group {name}", values) for name, values in metrics.get("per_group", {}).items()]
    rows += [(f"set {name}", values) for name, values in metrics.get("datasets", {}).items()]
    return table_of_scores(rows)


def table_of_scores(rows: Sequence[tuple[str, Mapping[str, Any]]], columns: Sequence[tuple[str, str]] = COLUMNS) -> str:
    """Named scores as a table. Counts as they are, scores with four digits, a dash for what is not defined."""
    cells = [["", *(title for _, title in columns)]]
    for name, scores in rows:
        values = [scores.get(key) for key, _ in columns]
        texts = ["-" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}" for value in values]
        cells.append([name, *texts])
    heading, *lines = text_table(cells).splitlines()
    return "\n".join([heading, "-" * len(heading), *lines])


def contents(folder: Path, known: Mapping[str, str] = CONTENTS) -> str:
    """What a run folder holds of what is `known` (name -> what it is), one line each."""
    return "\n".join(f"  {name:22}{text}" for name, text in known.items() if (folder / name).exists())
