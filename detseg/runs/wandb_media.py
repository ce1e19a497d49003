"""Pictures and tables in W&B's types, within its limits. Does not import PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from detseg.runs.tracker import ClassMasks, Picture, Table, as_array

# W&B's limits on pictures per name and step, and on rows of a table.
MOST_PICTURES = 108
MOST_ROWS = 10_000


def picture_row(pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """Return what to log for pictures by name, those with a common folder in their names together."""
    groups: dict[str, list[Any]] = {}
    for name, picture in pictures.items():
        folder, _, caption = name.rpartition("/")
        groups.setdefault(folder or name, []).append(_image(picture, caption))
    return {name: images[:MOST_PICTURES] for name, images in groups.items()}


def table_row(tables: Mapping[str, Table]) -> dict[str, Any]:
    """Return what to log for tables by name: the tables themselves and their plots."""
    wandb = import_module("wandb")
    row: dict[str, Any] = {}
    for name, table in tables.items():
        cells = [
            [_image(cell, "") if isinstance(cell, (Path, np.ndarray)) else cell for cell in cells]
            for cells in table.rows[:MOST_ROWS]
        ]
        row[name] = logged = wandb.Table(columns=list(table.columns), data=cells, allow_mixed_types=True)
        title = name.removeprefix("tables/").replace("/", " ").replace("_", " ")
        if table.lines is not None:
            x, y, line = table.lines
            row[f"{name}_chart"] = wandb.plot.line(logged, x=x, y=y, stroke=line, title=title)
        if table.confusion is not None:
            fields = dict(zip(("Actual", "Predicted", "nPredictions"), table.confusion, strict=True))
            row[f"{name}_chart"] = wandb.plot_table("wandb/confusion_matrix/v1", logged, fields, {"title": title})
    return row


def _image(picture: Picture, caption: str) -> Any:
    wandb = import_module("wandb")
    if not isinstance(picture, ClassMasks):
        # As PNG, a drawing of several megapixels would be ten times as large.
        return wandb.Image(as_array(picture), caption=caption, file_type="jpg")
    labels = {0: "background"} | {1 + index: name for index, name in enumerate(picture.class_names)}
    masks = {name: {"mask_data": mask, "class_labels": labels} for name, mask in picture.masks.items()}
    return wandb.Image(picture.image, caption=caption, masks=masks)
