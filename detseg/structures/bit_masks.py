"""Many masks of one image as bits, so that the pixels that two masks share are counted 64 at a time.

The image is cut into tiles of 16 rows and 4 columns. A mask holds one 64-bit word for every tile that its tight box
touches: 24,000 cells of 15 pixels need 3 MB. Words come straight from the run-lengths; no mask is decoded.

Symbols: N masks, P pairs, T words.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.structures import rle as rle_codec

TILE_ROWS, TILE_COLUMNS = 16, 4
# Words that are compared at once; bounds the memory of `intersections` to some 30 MB.
WORDS_AT_ONCE = 2**19


@dataclass(frozen=True)
class ColumnRuns:
    """The pixels of N masks of one image as vertical runs, none longer than its column.

    column, top, bottom (half-open), owner: (R,) int64, sorted by owner, column and top.
    """

    column: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    owner: np.ndarray
    count: int

    def __len__(self) -> int:
        return self.count

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        """Where the runs of every mask begin, and the last end, (N + 1,) int64."""
        return np.searchsorted(self.owner, np.arange(self.count + 1))

    def select(self, masks: np.ndarray) -> ColumnRuns:
        """Return the runs of masks (M,) int64; the owner of a run is the place of its mask in this list."""
        counts = np.diff(self._bounds)[masks]
        owner, step = spread(counts)
        index = self._bounds[masks][owner] + step
        return ColumnRuns(self.column[index], self.top[index], self.bottom[index], owner, len(masks))

    def areas(self) -> np.ndarray:
        """Return the number of pixels (N,) int64 of every mask."""
        areas = np.zeros(self.count, dtype=np.int64)
        np.add.at(areas, self.owner, self.bottom - self.top)
        return areas

    def boxes(self) -> np.ndarray:
        """Return the tight half-open boxes (N, 4) int64 XYXY; zeros for an empty mask."""
        boxes = np.zeros((self.count, 4), dtype=np.int64)
        if len(self.owner):
            begins = np.flatnonzero(np.append(True, self.owner[1:] != self.owner[:-1]))
            filled = self.owner[begins]
            boxes[filled, 0] = np.minimum.reduceat(self.column, begins)
            boxes[filled, 1] = np.minimum.reduceat(self.top, begins)
            boxes[filled, 2] = np.maximum.reduceat(self.column, begins) + 1
            boxes[filled, 3] = np.maximum.reduceat(self.bottom, begins)
        return boxes


class BitMasks:
    """N masks; `areas` (N,) int64 in pixels and `boxes` (N, 4) int64, tight, half-open, zeros for an empty mask."""

    def __init__(self, runs: ColumnRuns) -> None:
        column, top, bottom, owner = runs.column, runs.top, runs.bottom, runs.owner
        count = len(runs)
        self.areas = runs.areas()
        self.boxes = runs.boxes()
        tiles = np.array([TILE_COLUMNS, TILE_ROWS], dtype=np.int64)
        self._first_tile = self.boxes[:, :2] // tiles  # (N, 2): column and row of tiles
        self._end_tile = -(-self.boxes[:, 2:] // tiles)
        across, down = (self._end_tile - self._first_tile).T
        self._stride = across
        ends = np.cumsum(across * down)
        self._offset = ends - across * down
        self._words = self._make_words(column, top, bottom, owner, int(ends[-1]) if count else 0)

    def _make_words(
        self, column: np.ndarray, top: np.ndarray, bottom: np.ndarray, owner: np.ndarray, size: int
    ) -> np.ndarray:
        """Set the bits of all runs (R,): bit 16 (x mod 4) + (y mod 16) of the word of the pixel's tile."""
        first_row, last_row = top // TILE_ROWS, (bottom - 1) // TILE_ROWS
        run, step = spread(last_row - first_row + 1)
        tile_row, tile_column = first_row[run] + step, column[run] // TILE_COLUMNS
        owner, above = owner[run], tile_row * TILE_ROWS
        low = np.maximum(top[run] - above, 0).astype(np.uint64)
        high = np.minimum(bottom[run] - above, TILE_ROWS).astype(np.uint64)
        one = np.uint64(1)
        shift = (column[run] % TILE_COLUMNS * TILE_ROWS).astype(np.uint64)
        bits = ((one << high) - (one << low)) << shift
        rows_before = tile_row - self._first_tile[owner, 1]
        columns_before = tile_column - self._first_tile[owner, 0]
        words = np.zeros(size, dtype=np.uint64)
        # Runs of one mask share no pixel, so that their sum is their union.
        np.add.at(words, self._offset[owner] + rows_before * self._stride[owner] + columns_before, bits)
        return words

    def __len__(self) -> int:
        return len(self.areas)

    def intersections(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the number of shared pixels (P,) int64 of the masks first[p] and second[p], indices (P,)."""
        first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
        start = np.maximum(self._first_tile[first], self._first_tile[second])
        sides = np.maximum(np.minimum(self._end_tile[first], self._end_tile[second]) - start, 0)
        counts = sides[:, 0] * sides[:, 1]
        shared = np.zeros(len(first), dtype=np.int64)
        touching = np.flatnonzero(counts)
        for chunk in chunks_of(counts[touching], WORDS_AT_ONCE):
            pair = touching[chunk]
            here, step = spread(counts[pair])
            row, column = np.divmod(step, sides[pair, 0][here])
            bits = self._words_of(first[pair], start[pair], here, row, column)
            bits &= self._words_of(second[pair], start[pair], here, row, column)
            begins = np.cumsum(counts[pair]) - counts[pair]
            shared[pair] = np.add.reduceat(count_bits(bits), begins, dtype=np.int64)
        return shared

    def _words_of(
        self, mask: np.ndarray, start: np.ndarray, here: np.ndarray, row: np.ndarray, column: np.ndarray
    ) -> np.ndarray:
        before = start - self._first_tile[mask]
        stride = self._stride[mask]
        base = self._offset[mask] + before[:, 1] * stride + before[:, 0]
        return self._words[base[here] + row * stride[here] + column]


def read_column_runs(rles: Sequence[Mapping[str, Any]]) -> ColumnRuns:
    """Read N COCO RLEs of one image. Raises DataError where one is broken."""
    runs = rle_codec.read_runs(rles)
    height = int(max(runs.heights[0], 1)) if len(rles) else 1
    first, last = runs.starts // height, (runs.ends - 1) // height
    top, bottom = runs.starts - first * height, runs.ends - last * height
    if np.array_equal(first, last):
        return ColumnRuns(first, top, bottom, runs.owners, len(rles))
    # A run that goes on at the top of the next column becomes one of every column.
    run, step = spread(last - first + 1)
    top = np.where(step == 0, top[run], 0)
    bottom = np.where(step == (last - first)[run], bottom[run], height)
    return ColumnRuns(first[run] + step, top, bottom, runs.owners[run], len(rles))


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


def count_bits(words: np.ndarray) -> np.ndarray:
    """Return the number of ones (T,) uint8 of words (T,) uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    return _ones_table()[words.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)


@functools.cache
def _ones_table() -> np.ndarray:
    """The number of ones (65536,) uint8 of every 16-bit number, for NumPy before 2."""
    return np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)
