"""How alike the parts of a split are, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from detseg.data.coco import CocoDataset

# Values of a column that get a column of the table each; more would not be read.
_MOST_VALUES = 12


def balance_rows(
    dataset: CocoDataset,
    parts: Sequence[str],
    part_of: np.ndarray,
    groups: np.ndarray,
    strata: Mapping[str, Sequence[str]],
) -> list[tuple[str, ...]]:
    """Return a heading and a row for every part and for all: images, groups, objects, of classes, images of kinds.

    part_of, groups: (N,) of every image. strata: column -> its value of every image.
    """
    objects = dataset.objects_per_image()
    with_classes = objects.shape[1] > 1
    heading = ["part", "images", "groups", "objects", "per image"]
    heading += [f"class {name}" for name in dataset.class_names] if with_classes else []
    kinds = [
        (column, value) for column, values in strata.items() for value, _ in Counter(values).most_common(_MOST_VALUES)
    ]
    heading += [f"{column} {value}" for column, value in sorted(kinds)]
    rows = [tuple(heading)]
    selections = [(name, np.flatnonzero(part_of == number)) for number, name in enumerate(parts)]
    for name, chosen in [*selections, ("all", np.arange(len(dataset)))]:
        counts = objects[chosen].sum(axis=1)
        spread = f"{counts.min()}-{int(np.median(counts))}-{counts.max()}" if len(chosen) else ""
        row = [name, str(len(chosen)), str(len(set(groups[chosen].tolist()))), str(counts.sum()), spread]
        row += [str(count) for count in objects[chosen].sum(axis=0)] if with_classes else []
        row += [str(sum(strata[column][index] == value for index in chosen)) for column, value in sorted(kinds)]
        rows.append(tuple(row))
    return rows


def table_of(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
