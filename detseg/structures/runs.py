"""Masks as runs of pixels along image columns: areas, boxes and crops without full-size masks.

Symbols: N masks, R runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detseg.errors import DataError

# The largest mask or crop that is decoded, 2 GiB: a short text can claim any size.
MAX_DECODED = 2**31


@dataclass(frozen=True)
class Runs:
    """The runs of N masks in images of heights[n] x widths[n] pixels.

    starts, ends, owners: (R,) int64; half-open positions in the column-major order of the image, and the index of the
    mask; sorted by owner and position, without empty runs. Runs of one mask share no pixels, but may touch.
    heights, widths: (N,) int64.
    """

    starts: np.ndarray
    ends: np.ndarray
    owners: np.ndarray
    heights: np.ndarray
    widths: np.ndarray

    def __len__(self) -> int:
        return len(self.heights)

    @cached_property
    def bounds(self) -> np.ndarray:
        """(N + 1,) int64: indices at which the runs of every mask start, and the end of the last."""
        return np.searchsorted(self.owners, np.arange(len(self) + 1))

    @cached_property
    def _height(self) -> int | np.ndarray:
        """The image height of every run, (R,) int64, at least 1; one number if all are equal, which divides faster."""
        heights = np.maximum(self.heights, 1)
        if (heights == heights[:1]).all():
            return int(heights[0]) if len(heights) else 1
        return heights[self.owners]

    def column_and_row(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the column and row (R,) int64 of one position per run."""
        column = positions // self._height  # np.divmod takes several times as long
        return column, positions - column * self._height

    def areas(self) -> np.ndarray:
        """Return the number of pixels (N,) int64 of every mask."""
        cumulated = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        return np.diff(cumulated[self.bounds])

    def boxes(self) -> np.ndarray:
        """Return the tight half-open boxes (N, 4) int64 XYXY; zeros for an empty mask."""
        boxes = np.zeros((len(self), 4), dtype=np.int64)
        if len(self.starts):
            first_column, top = self.column_and_row(self.starts)
            last_column, bottom = self.column_and_row(self.ends - 1)
            # A run over several columns reaches the bottom of one and the top of the next.
            wraps = last_column > first_column
            if wraps.any():
                top, bottom = np.where(wraps, 0, top), np.where(wraps, self._height - 1, bottom)
            filled = np.flatnonzero(np.diff(self.bounds))
            begins = self.bounds[filled]
            boxes[filled, 0] = np.minimum.reduceat(first_column, begins)
            boxes[filled, 1] = np.minimum.reduceat(top, begins)
            boxes[filled, 2] = np.maximum.reduceat(last_column, begins) + 1
            boxes[filled, 3] = np.maximum.reduceat(bottom, begins) + 1
        return boxes

    def select(self, masks: np.ndarray) -> Runs:
        """Return the runs of masks (M,) int64; owners become indices into this list."""
        owners, step = spread(np.diff(self.bounds)[masks])
        index = self.bounds[masks][owners] + step
        return Runs(self.starts[index], self.ends[index], owners, self.heights[masks], self.widths[masks])

    def within_columns(self) -> Runs:
        """Return the same pixels with runs cut at column borders."""
        first, last = self.starts // self._height, (self.ends - 1) // self._height
        if np.array_equal(first, last):
            return self
        run, step = spread(last - first + 1)
        owners = self.owners[run]
        height = np.maximum(self.heights, 1)[owners]
        top = (first[run] + step) * height
        starts, ends = np.maximum(self.starts[run], top), np.minimum(self.ends[run], top + height)
        return Runs(starts, ends, owners, self.heights, self.widths)

    def moved(self, x: int, y: int, height: int, width: int) -> Runs:
        """Return the masks moved to the right by x and down by y pixels, in an image of height x width."""
        runs = self.within_columns()
        column, top = runs.column_and_row(runs.starts)
        starts = (column + x) * height + top + y
        sizes = np.full(len(self), height), np.full(len(self), width)
        return Runs(starts, starts + runs.ends - runs.starts, runs.owners, *sizes)

    def within(self, box: Sequence[int]) -> Runs:
        """Return the parts of the masks in a box XYXY."""
        x0, y0, x1, y1 = box
        runs = self.within_columns()
        column, top = runs.column_and_row(runs.starts)
        first_pixel = runs.starts - top
        starts, ends = np.maximum(runs.starts, first_pixel + y0), np.minimum(runs.ends, first_pixel + y1)
        inside = (column >= x0) & (column < x1) & (starts < ends)
        return Runs(starts[inside], ends[inside], runs.owners[inside], self.heights, self.widths)


def fill_runs(starts: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Return a flat bool array of `length` that is True inside the runs of one mask.

    Raises DataError above MAX_DECODED.
    """
    if length > MAX_DECODED:
        raise DataError(f"a mask of {length} pixels exceeds the limit of {MAX_DECODED}; check the size of its RLE")
    # Two statements, because one run may start where another one ends.
    steps = np.zeros(length + 1, dtype=np.int8)
    steps[starts] += 1
    steps[ends] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).view(bool)


def spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for counts [2, 0, 3], the owners [0, 0, 2, 2, 2] and the steps [0, 1, 0, 1, 2], int64."""
    owner = np.repeat(np.arange(len(counts)), counts)
    begins = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - begins[owner]


def chunks_of(counts: np.ndarray, limit: int) -> list[slice]:
    """Cut counts (P,) into slices whose sums are about `limit`; none is empty."""
    if not len(counts):
        return []
    number = np.cumsum(counts) // limit
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(number)) + 1, [len(counts)]])
    return [slice(int(begin), int(end)) for begin, end in itertools.pairwise(bounds)]
