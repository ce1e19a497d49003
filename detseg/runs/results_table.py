"""The scores of a run as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    cells = [["", *(title for _, title in COLUMNS)]]
    cells += [[name, *(format_value(values.get(key)) for key, _ in COLUMNS)] for name, values in rows]
    return text_table(cells)


def text_table(cells: Sequence[Sequence[str]]) -> str:
    """Rows of texts, the first one a heading, as a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def format_value(value: float | int | None) -> str:
    """Counts as they are, scores with four digits, a dash for what is not defined."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def contents(folder: Path, known: Mapping[str, str] = CONTENTS) -> str:
    """What lies in a run folder, of what is `known` (name -> what it is), one line each."""
    lines = []
    for name, text in known.items():
        if (folder / name).exists():
            lines.append(f"  {name:22}{text}")
    return "\n".join(lines)
