"""The table that a reader prints when it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from detseg.data.readers.source import LabelledImage


def summary_table(
    parts: Mapping[str, Sequence[str]],
    images: Mapping[str, LabelledImage],
    groups: Mapping[str, str] | None,
    num_skipped: int,
    output: Path,
) -> str:
    """Return a table of images, objects and sizes of every part, and of every group in it, and where the files lie."""
    rows = [("part", "group", "images", "objects", "per image", "height x width", "file")]
    for part, names in parts.items():
        rows.append((part, "", *_numbers([images[name] for name in names]), f"{output / part}.json"))
        if groups is not None:
            for group in sorted({groups[name] for name in names if name in groups}):
                rows.append(("", group, *_numbers([images[name] for name in names if groups.get(name) == group]), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if num_skipped:
        lines.append(f"{num_skipped} problems: what was left out is listed in {output / 'skipped.txt'}")
    return "\n".join(lines)


def _numbers(images: Sequence[LabelledImage]) -> tuple[str, str, str, str]:
    """Return images, objects, least to most objects an image, least to greatest size."""
    if not images:
        return "0", "0", "", ""
    counts = [len(image.rles) for image in images]
    sizes = np.array([(image.height, image.width) for image in images])
    least, most = sizes.min(axis=0), sizes.max(axis=0)
    size = f"{least[0]} x {least[1]}" if (least == most).all() else f"{least[0]}-{most[0]} x {least[1]}-{most[1]}"
    return str(len(images)), str(sum(counts)), f"{min(counts)}-{max(counts)}", size
