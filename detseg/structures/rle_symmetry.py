"""Run-lengths turned and mirrored exactly, without full-size masks.

Symbols as in rle.py: runs lie in the column-major order of an image of height x width, half-open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detseg.structures.rle import RLE, Runs, crops_of, encode_crops, encode_runs, read_runs


def mirror_rles(
    rles: Sequence[Mapping[str, Any]], height: int, width: int, *, flip_x: bool = False, flip_y: bool = False
) -> list[RLE]:
    """Mirror N masks of one image, height x width: left and right are exchanged by flip_x, top and bottom by flip_y.

    Runs are moved, no pixel is looked at: time grows with the number of runs. Raises DataError for a broken RLE.
    """
    if not rles:
        return []
    columns = _by_columns(read_runs(rles))
    column, first = np.divmod(columns.starts, height)
    length = columns.ends - columns.starts
    if flip_x:
        column = width - 1 - column
    if flip_y:
        first = height - first - length
    starts = column * height + first
    order = np.argsort(columns.owners * (height * width) + starts, kind="stable")
    starts, length = starts[order], length[order]
    return encode_runs(Runs(starts, starts + length, columns.owners, columns.heights, columns.widths), height, width)


def transpose_rles(rles: Sequence[Mapping[str, Any]], height: int, width: int) -> list[RLE]:
    """Exchange x and y of N masks of one image, height x width; the answer is of width x height."""
    crops = crops_of(read_runs(rles)) if rles else []
    return encode_crops([(crop.T, y0, x0) for crop, x0, y0 in crops], width, height)


def _by_columns(runs: Runs) -> Runs:
    """Cut runs that go on from one column into the next, so that every run lies in one column."""
    height = runs.heights[runs.owners]
    first, last = runs.starts // height, (runs.ends - 1) // height
    pieces = last - first + 1
    if (pieces == 1).all():
        return runs
    number = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    top = (np.repeat(first, pieces) + number) * np.repeat(height, pieces)
    starts = np.maximum(np.repeat(runs.starts, pieces), top)
    ends = np.minimum(np.repeat(runs.ends, pieces), top + np.repeat(height, pieces))
    return Runs(starts, ends, np.repeat(runs.owners, pieces), runs.heights, runs.widths)
