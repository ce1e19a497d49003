"""Which masks of an image overlap, and by how many pixels: the one place that answers this.

    shared_pixels   all overlapping pairs of masks, by a sweep over their runs: the general case
    PackedMasks     shared pixels of given pairs, 64 at a time, for many detections per object: for 24,000 detections of
                    800 cells by 24 models, the sweep takes about twice as long as a whole NMS with these, because boxes
                    and areas rule out more than half of the overlapping pairs beforehand
    meeting_boxes   the pairs of boxes that overlap
    find_regions    the image cut into regions covered by the same masks, to score many selections of masks

No mask is decoded or expanded to full size; no table of all pairs is made.

Symbols: N, M masks, P pairs, R runs, T words, E entries (a mask on a region, a box in a strip).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from detseg.structures.runs import Runs, chunks_of, spread

# Pairs of runs or boxes, and words, that are processed at once; bounds memory to some 10 MB.
AT_ONCE = 2**17


@dataclass(frozen=True)
class Pairs:
    """P pairs of masks or boxes, first[p] and second[p]: integers (P,) each."""

    first: np.ndarray
    second: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def select(self, keep: np.ndarray) -> Pairs:
        """Return a subset of the pairs, `keep`: (P,) bool or indices."""
        return dataclasses.replace(self, first=self.first[keep], second=self.second[keep])


@dataclass(frozen=True)
class Overlaps(Pairs):
    """Overlapping pairs of masks, with the number of shared pixels: pixels (P,) int64.

    first_areas (N,), second_areas (M,) int64: of all masks of either side, including those without overlap.
    """

    pixels: np.ndarray
    first_areas: np.ndarray
    second_areas: np.ndarray

    def select(self, keep: np.ndarray) -> Overlaps:
        return dataclasses.replace(self, first=self.first[keep], second=self.second[keep], pixels=self.pixels[keep])

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union (P,) float64."""
        return self.pixels / (self.first_areas[self.first] + self.second_areas[self.second] - self.pixels)

    @property
    def of_first(self) -> np.ndarray:
        """The fraction (P,) float64 of the first mask that the second covers."""
        return self.pixels / self.first_areas[self.first]

    @property
    def of_smaller(self) -> np.ndarray:
        """The fraction (P,) float64 of the smaller mask that the larger one covers."""
        return self.pixels / np.minimum(self.first_areas[self.first], self.second_areas[self.second])


def shared_pixels(masks: Runs, others: Runs | None = None) -> Overlaps:
    """Return the pairs of N masks, or of N masks and M others of the same image, that share pixels.

    Pairs are sorted by first, then second; without others, first < second.
    """
    width = max(len(masks if others is None else others), 1)
    ordered = _by_start(masks)
    if others is None:
        # Pair every run with those that come after it and start before it ends.
        meeting = _begin_inside(ordered, ordered, np.arange(1, len(ordered.starts) + 1))
        portions = ((np.minimum(one, other) * width + np.maximum(one, other), shared) for one, other, shared in meeting)
    else:
        # Of two overlapping runs, one starts inside the other; if both start together, the second is taken.
        others_ordered = _by_start(others)
        first = np.searchsorted(others_ordered.starts, ordered.starts, side="left")
        second_inside = _begin_inside(ordered, others_ordered, first)
        first = np.searchsorted(ordered.starts, others_ordered.starts, side="right")
        first_inside = _begin_inside(others_ordered, ordered, first)
        portions = itertools.chain(
            ((one * width + other, shared) for one, other, shared in second_inside),
            ((one * width + other, shared) for other, one, shared in first_inside),
        )
    keys, pixels = _totals(portions)
    first, second = np.divmod(keys, width)
    areas = masks.areas()
    return Overlaps(first, second, pixels, areas, areas if others is None else others.areas())


def are_disjoint(masks: Runs) -> bool:
    """Whether no two masks share a pixel."""
    ordered = _by_start(masks)
    return bool((ordered.ends[:-1] <= ordered.starts[1:]).all())


def covered_pixels(*masks: Runs) -> int:
    """Return the number of pixels of one image covered by any of the masks; shared pixels count once."""
    starts, ends = (np.concatenate([getattr(some, side) for some in masks]) for side in ("starts", "ends"))
    if not len(starts):
        return 0
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    reached = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    return int(np.maximum(ends - np.maximum(starts, reached), 0).sum())


def _by_start(runs: Runs) -> Runs:
    """Return the runs sorted by their starts, regardless of mask."""
    order = np.argsort(runs.starts, kind="stable")
    return Runs(runs.starts[order], runs.ends[order], runs.owners[order], runs.heights, runs.widths)


def _begin_inside(runs: Runs, others: Runs, first: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the masks of pairs of runs, and their shared pixels: run r with the runs from first[r] on that start in it.

    others: sorted by start. first: (R,) int64.
    """
    counts = np.maximum(np.searchsorted(others.starts, runs.ends) - first, 0)
    for chunk in chunks_of(counts, AT_ONCE):
        run, step = spread(counts[chunk])
        other = first[chunk][run] + step
        pixels = np.minimum(runs.ends[chunk][run], others.ends[other]) - others.starts[other]
        yield runs.owners[chunk][run], others.owners[other], pixels


def _totals(portions: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct keys of chunks of keys and values, int64, ascending, and the sum of values of each."""
    held = [(np.zeros(0, dtype=np.int64),) * 2]
    for portion in portions:
        held.append(_summed(*portion))
        # Bounds memory if very many masks overlap.
        if sum(len(keys) for keys, _ in held[1:]) > len(held[0][0]) + 4 * AT_ONCE:
            held = [_summed(*map(np.concatenate, zip(*held, strict=True)))]
    return _summed(*map(np.concatenate, zip(*held, strict=True)))


def _summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_totals` of one chunk."""
    if not len(keys):
        return keys, values
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[begins], np.add.reduceat(values[order], begins)


# Tiles of the image, one 64-bit word each.
TILE_ROWS, TILE_COLUMNS = 16, 4


class PackedMasks:
    """N masks as bits: one word for every tile of 16 rows and 4 columns that touches the tight box of a mask.

    24,000 cells of 15 pixels need 3 MB. `areas` (N,) int64 in pixels; `boxes` (N, 4) int64, tight, half-open, zeros for
    an empty mask.
    """

    def __init__(self, runs: Runs) -> None:
        runs = runs.within_columns()
        self.areas, self.boxes = runs.areas(), runs.boxes()
        tiles = np.array([TILE_COLUMNS, TILE_ROWS], dtype=np.int64)
        self._first_tile = self.boxes[:, :2] // tiles  # (N, 2): column and row of tiles
        self._end_tile = -(-self.boxes[:, 2:] // tiles)
        self._stride, down = (self._end_tile - self._first_tile).T
        ends = np.cumsum(self._stride * down)
        self._offset = ends - self._stride * down
        # Pixel (x, y) is bit 16 (x mod 4) + (y mod 16) in the word of its tile; each run sets bits of one tile.
        column, top = runs.column_and_row(runs.starts)
        bottom = top + runs.ends - runs.starts
        first_row, last_row = top // TILE_ROWS, (bottom - 1) // TILE_ROWS
        run, step = spread(last_row - first_row + 1)
        owner, column, tile_row = runs.owners[run], column[run], first_row[run] + step
        above = tile_row * TILE_ROWS
        low = np.maximum(top[run] - above, 0).astype(np.uint64)
        high = np.minimum(bottom[run] - above, TILE_ROWS).astype(np.uint64)
        one = np.uint64(1)
        bits = ((one << high) - (one << low)) << (column % TILE_COLUMNS * TILE_ROWS).astype(np.uint64)
        rows_before = tile_row - self._first_tile[owner, 1]
        columns_before = column // TILE_COLUMNS - self._first_tile[owner, 0]
        self._words = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint64)
        # Runs of one mask share no pixels, so their sum is their union.
        np.add.at(self._words, self._offset[owner] + rows_before * self._stride[owner] + columns_before, bits)

    def __len__(self) -> int:
        return len(self.areas)

    def shared_pixels(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the number of shared pixels (P,) int64 of the masks first[p] and second[p], indices (P,)."""
        start = np.maximum(self._first_tile[first], self._first_tile[second])
        sides = np.maximum(np.minimum(self._end_tile[first], self._end_tile[second]) - start, 0)
        counts = sides[:, 0] * sides[:, 1]
        shared = np.zeros(len(first), dtype=np.int64)
        touching = np.flatnonzero(counts)
        for chunk in chunks_of(counts[touching], AT_ONCE):
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


def count_bits(words: np.ndarray) -> np.ndarray:
    """Return the number of set bits (T,) uint8 of words (T,) uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    return _ones_table()[words.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)


@functools.cache
def _ones_table() -> np.ndarray:
    """The number of set bits (65536,) uint8 of every 16-bit number, for NumPy before 2."""
    return np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)


MAX_STRIPS = 2**16


def meeting_boxes(boxes: np.ndarray, groups: np.ndarray) -> Iterator[Pairs]:
    """Yield, in chunks, every pair of overlapping boxes of one group once, with first < second.

    boxes: (N, 4) XYXY. groups: (N,) int64 >= 0; boxes of different groups are not paired. The image is cut into
    horizontal strips about as high as a box, in which boxes are swept from left to right: 24,000 boxes of 800 cells
    have a million overlapping pairs, out of 288 million.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    solid = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    if len(solid) < 2:
        return
    x0, y0, x1, y1 = boxes[solid].T
    top = y0.min()
    strip_height = max(float((y1 - y0).mean()), (y1.max() - top) / MAX_STRIPS)
    lowest, highest = (((y - top) / strip_height).astype(np.int64) for y in (y0, y1))
    entry, step = spread(highest - lowest + 1)
    strip = lowest[entry] + step
    # Ranks instead of coordinates, so that strip, group and position make one exact integer key.
    places = np.sort(x0)
    begin, end = np.searchsorted(places, x0), np.searchsorted(places, x1)
    _, group = np.unique(groups[solid], return_inverse=True)
    cell = (strip * (group.max() + 1) + group[entry]) * (len(solid) + 1)
    order = np.argsort(cell + begin[entry], kind="stable")
    box, strip, key = entry[order], strip[order], (cell + begin[entry])[order]
    limit = np.searchsorted(key, (cell + end[entry])[order])
    position = np.arange(len(order))
    counts = np.maximum(limit - position - 1, 0)
    for chunk in chunks_of(counts, AT_ONCE):
        here, step = spread(counts[chunk])
        left = position[chunk][here]
        one, other = box[left], box[left + 1 + step]
        # A pair that meets in several strips counts in the upper one.
        new = strip[left] == np.maximum(lowest[one], lowest[other])
        meets = new & (np.minimum(y1[one], y1[other]) > np.maximum(y0[one], y0[other]))
        one, other = solid[one[meets]], solid[other[meets]]
        yield Pairs(np.minimum(one, other), np.maximum(one, other))


@dataclass(frozen=True)
class Regions:
    """The image cut into regions: all pixels covered by the same masks, connected or not, are one region.

    Whatever masks a setting keeps, each region has one owner, so areas and intersections are sums over a few thousand
    regions, and masks are not needed again.

    areas: pixels of each region, int64. entry_region, entry_mask: (E,) int64, pairs of a region and a mask that covers
    it, sorted by region, then mask.
    """

    areas: np.ndarray
    entry_region: np.ndarray
    entry_mask: np.ndarray


# Every mask gets a random 64-bit key; the sum of keys at a pixel identifies the masks that cover it. The probability
# that two different sets of masks of one image have equal sums is below 10^-11.
_KEYS_SEED = 20180115


def find_regions(runs: Runs) -> Regions:
    """Find the regions of N masks. Time and memory grow with the number of runs."""
    places, position = np.unique(np.concatenate([runs.starts, runs.ends]), return_inverse=True)
    if not len(places):
        nothing = np.zeros(0, dtype=np.int64)
        return Regions(nothing, nothing, nothing)
    first, end = position[: len(runs.starts)], position[len(runs.starts) :]
    key = np.random.default_rng(_KEYS_SEED).integers(1, 2**63, len(runs), dtype=np.uint64)[runs.owners]
    steps = np.zeros(len(places), dtype=np.uint64)
    np.add.at(steps, first, key)
    np.subtract.at(steps, end, key)
    begun, ended = (np.bincount(side, minlength=len(places)) for side in (first, end))
    # Segments between consecutive starts and ends of runs, and the sum of the keys of the masks on each.
    sums, lengths = np.cumsum(steps)[:-1], np.diff(places)
    sums[np.cumsum(begun - ended)[:-1] == 0] = 0
    kinds, example, region = np.unique(sums, return_index=True, return_inverse=True)
    areas = np.bincount(region, weights=lengths, minlength=len(kinds)).astype(np.int64)
    # All segments of a region have the same masks: take them from any one.
    is_example = np.zeros(len(sums), dtype=bool)
    is_example[example[kinds != 0]] = True
    examples_before = np.concatenate([[0], np.cumsum(is_example)])
    run, step = spread(examples_before[end] - examples_before[first])
    segment = np.flatnonzero(is_example)[examples_before[first][run] + step]
    entry_region, entry_mask = region[segment], runs.owners[run]
    order = np.lexsort((entry_mask, entry_region))
    return Regions(areas, entry_region[order], entry_mask[order])
