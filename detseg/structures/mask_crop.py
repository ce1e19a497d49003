"""A mask as a crop of its image, so that time and memory grow with the object, not the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from detseg.errors import DataError
from detseg.structures.runs import Runs, fill_runs


class MaskCrop(NamedTuple):
    """A mask (h, w) bool with its upper left pixel at x0, y0 of the image."""

    mask: np.ndarray
    x0: int
    y0: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The half-open box XYXY of the array; for a tight crop that of the pixels."""
        return self.x0, self.y0, self.x0 + self.mask.shape[1], self.y0 + self.mask.shape[0]

    @property
    def window(self) -> tuple[slice, slice]:
        """Slices of the array in its image: `image[crop.window]`."""
        return slice(self.y0, self.y0 + self.mask.shape[0]), slice(self.x0, self.x0 + self.mask.shape[1])

    @property
    def area(self) -> int:
        """The number of pixels."""
        return int(np.count_nonzero(self.mask))

    def moved(self, x: int, y: int) -> MaskCrop:
        """Return the mask moved to the right by x and down by y pixels."""
        return MaskCrop(self.mask, self.x0 + x, self.y0 + y)

    def within(self, box: Sequence[int]) -> MaskCrop:
        """Return the part of the mask in a box XYXY, which may be empty."""
        x0, y0, x1, y1 = (max(side - start, 0) for side, start in zip(box, (self.x0, self.y0) * 2, strict=True))
        return MaskCrop(self.mask[y0:y1, x0:x1], self.x0 + x0, self.y0 + y0)

    def shared_pixels(self, other: MaskCrop) -> int:
        """Return the number of pixels shared by two masks of one image; for many masks use `overlaps.shared_pixels`."""
        window = self.within(other.box)
        return int(np.count_nonzero(window.mask & other.within(window.box).mask))

    def tight(self) -> MaskCrop:
        """Return the smallest crop with all pixels; of shape (0, 0) at (0, 0) if there are none."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return EMPTY
        mask = self.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return MaskCrop(mask, self.x0 + int(columns[0]), self.y0 + int(rows[0]))


EMPTY = MaskCrop(np.zeros((0, 0), dtype=bool), 0, 0)


def boxes_of_crops(crops: Iterable[MaskCrop]) -> np.ndarray:
    """Return the boxes (N, 4) int64 XYXY of the arrays of crops."""
    return np.array([crop.box for crop in crops], dtype=np.int64).reshape(-1, 4)


def union_of(crops: Sequence[MaskCrop]) -> MaskCrop:
    """Return the union of crops of one image, with the size of the box around all of them."""
    if len(crops) < 2:
        return crops[0] if crops else EMPTY
    boxes = boxes_of_crops(crops)
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    union = np.zeros((bottom - top, right - left), dtype=bool)
    for crop, (x0, y0, x1, y1) in zip(crops, boxes.tolist(), strict=True):
        union[y0 - top : y1 - top, x0 - left : x1 - left] |= crop.mask
    return MaskCrop(union, left, top)


def paint(
    crops: Sequence[MaskCrop], order: Iterable[int], height: int, width: int, *, least: int = 1, fraction: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Assign pixels to masks in `order`: each mask gets those that earlier ones left.

    A mask with fewer than `least` free pixels, or less than the fraction `fraction` of its own, gets none.

    Returns:
        labels (H, W) int32, n + 1 for mask n, 0 elsewhere; the number of pixels of each mask, (N,) int64.
    """
    labels = np.zeros((height, width), dtype=np.int32)
    areas = np.zeros(len(crops), dtype=np.int64)
    for index in order:
        window = labels[crops[index].window]
        visible = crops[index].mask & (window == 0)
        area = np.count_nonzero(visible)
        if area >= least and area >= fraction * crops[index].area:
            window[visible] = index + 1
            areas[index] = area
    return labels, areas


def crops_of_runs(runs: Runs) -> list[MaskCrop]:
    """Return the tight crops of masks given as runs. Raises DataError if one is too large for memory."""
    crops = []
    for index, (x0, y0, x1, y1) in enumerate(runs.boxes().tolist()):
        if x1 <= x0:
            crops.append(EMPTY)
            continue
        inside = slice(runs.bounds[index], runs.bounds[index + 1])
        column, row = np.divmod(runs.starts[inside], runs.heights[index])
        starts = (column - x0) * (y1 - y0) + row - y0
        flat = fill_runs(starts, starts + (runs.ends[inside] - runs.starts[inside]), (y1 - y0) * (x1 - x0))
        crops.append(MaskCrop(flat.reshape(x1 - x0, y1 - y0).T, x0, y0))
    return crops


def runs_of_crops(crops: Sequence[tuple[np.ndarray, int, int]], height: int, width: int) -> Runs:
    """Return the runs of masks (crop, x0, y0), tight or not, of an image of height x width.

    Raises DataError if a crop extends beyond the image.
    """
    starts, ends = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for crop, x0, y0 in crops:
        crop_height, crop_width = crop.shape
        if x0 < 0 or y0 < 0 or x0 + crop_width > width or y0 + crop_height > height:
            raise DataError(
                f"a crop of {crop_height} x {crop_width} pixels at x {x0}, y {y0} extends beyond the image of "
                f"{height} x {width}"
            )
        # A row of zeros below every column separates runs of neighbouring columns; one zero precedes the first.
        flat = np.zeros(crop_width * (crop_height + 1) + 1, dtype=bool)
        flat[1:].reshape(crop_width, crop_height + 1)[:, :crop_height] = crop.T
        column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), crop_height + 1)
        positions = (column + x0) * height + row + y0
        starts.append(positions[0::2])
        ends.append(positions[1::2])
    owners = np.repeat(np.arange(len(crops)), [len(positions) for positions in starts[1:]])
    count = len(crops)
    return Runs(np.concatenate(starts), np.concatenate(ends), owners, np.full(count, height), np.full(count, width))
