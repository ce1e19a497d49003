"""The target image of copy-paste: what each pasted object hides, and what is visible in the end.

Symbols: y, x: the target's row and column of a cutout's upper left pixel, which may be outside the target.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import cv2
import numpy as np

from detseg.data.augment.intensities import natural_range
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

# The blurred edge of a mask is cut off at this many standard deviations.
_EDGE_REACH = 3
# Width of the surroundings of an object: half of its box's longer side, within these limits in pixels.
_LEAST_RING, _MOST_RING = 4, 32
# With fewer background pixels around an object, the background of the whole image is used.
_LEAST_BACKGROUND = 16

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Cutout:
    """One object of a source image. mask: (h, w) bool, within its box; y0, x0: position of the box there. class_index:
    0-based.

    weights: (3,) float32, see Sample.object_weights. certainty: (h, w) uint8 as there, or None.
    """

    mask: np.ndarray
    y0: int
    x0: int
    class_index: int
    weights: np.ndarray
    certainty: np.ndarray | None = None


class SourceImage:
    """An image from which objects are cut."""

    def __init__(self, sample: Sample) -> None:
        self.image = sample.image
        self.height, self.width = sample.height, sample.width
        self.classes = sample.classes
        self.ignore = sample.ignore
        self._weights, self._certainty = sample.weights_or_ones(), sample.certainty
        self.layers = sample.layers_or_empty()
        self.boxes = self.layers.boxes().astype(np.int64)
        self._layer_of = self.layers.layer_index()

    @functools.cached_property
    def background(self) -> Background:
        return Background(self.image, ~self.layers.foreground())

    def cut_out(self, index: int) -> Cutout:
        """Return one object (0-based), which must have pixels."""
        x0, y0, x1, y1 = self.boxes[index].tolist()
        mask = self.layers.layers[self._layer_of[index], y0:y1, x0:x1] == index + 1
        certainty = None if self._certainty is None else self._certainty[y0:y1, x0:x1]
        return Cutout(mask, y0, x0, int(self.classes[index]), self._weights[index], certainty)


class Background:
    """The background of an image (H, W, C) and its brightness. where: (H, W) bool, no object; may be changed."""

    def __init__(self, image: np.ndarray, where: np.ndarray) -> None:
        self._image = image
        self.where = where

    def mean_around(self, y: int, x: int, height: int, width: int) -> np.ndarray | None:
        """Return the mean (C,) of the background around a box, or else of all background; None if there is none."""
        ring = min(max(max(height, width) // 2, _LEAST_RING), _MOST_RING)
        window = (
            slice(max(y - ring, 0), max(y + height + ring, 0)),
            slice(max(x - ring, 0), max(x + width + ring, 0)),
        )
        mean = _mean(self._image[window], self.where[window])
        return self._overall if mean is None else mean

    @functools.cached_property
    def _overall(self) -> np.ndarray | None:
        return _mean(self._image, self.where)


class Canvas:
    """A target sample on which objects of a source image are pasted; the target itself is not changed.

    kept_overlaps: pasted objects do not hide each other, but overlap as in their image. sigma: standard deviation of
    the soft edge in pixels; 0 for a hard one. margin: pixels of background around an object that are copied with it, if
    there is no object in either image. match_gray: shift every object's intensities by the difference between the
    backgrounds around it in both images.
    """

    def __init__(
        self,
        target: Sample,
        source: SourceImage,
        *,
        kept_overlaps: bool = False,
        sigma: float = 0.0,
        margin: int = 0,
        match_gray: bool = False,
    ) -> None:
        self._target = target
        self._source = source
        self._kept_overlaps = kept_overlaps
        self._sigma = sigma
        self._margin = margin
        self._match_gray = match_gray
        layers = target.layers_or_empty()
        self._image = target.image.copy()
        self._labels = layers.layers.copy()
        self._certainty = target.certainty
        self._background = Background(self._image, ~layers.foreground())
        self._num_before = len(layers)
        self._pasted: list[Cutout] = []
        # For all objects, pasted ones last: their original number of pixels, and how many of these are hidden now.
        self._areas = layers.areas()
        self._hidden = np.zeros(len(layers), dtype=np.int64)
        lows, highs = zip(natural_range(target.image), natural_range(source.image), strict=True)
        self._range = min(lows), max(highs)

    @property
    def num_pasted(self) -> int:
        return len(self._pasted)

    def fits(self, cutout: Cutout, y: int, x: int, *, max_overlap: float, min_visible: float) -> bool:
        """Whether an object may be pasted at (y, x).

        It must have `min_visible` of its pixels inside the target, cover no ignored pixel, and cover other objects with
        at most `max_overlap` of its pixels; pasted objects must not hide a larger fraction of any of them.
        """
        mask, window = self._visible(cutout, y, x)
        visible = np.count_nonzero(mask)
        if visible == 0 or (mask is not cutout.mask and visible < min_visible * np.count_nonzero(cutout.mask)):
            return False
        if self._target.ignore is not None and self._target.ignore[window][mask].any():
            return False
        if max_overlap >= 1:
            return True
        covered = self._count_covered(mask, window)
        if covered is None:
            return True
        too_much = self._hidden + covered > max_overlap * self._areas
        return covered.sum() <= max_overlap * visible and not (covered > 0)[too_much].any()

    def paste(self, cutout: Cutout, y: int, x: int) -> None:
        """Paste an object; part of it must be inside the target."""
        mask, window = self._visible(cutout, y, x)
        self._copy_pixels(cutout, y, x)
        covered = self._count_covered(mask, window)
        labels = self._labels[:, window[0], window[1]]
        if covered is not None:
            self._hidden += covered
            can_be_hidden = labels <= self._num_before if self._kept_overlaps else labels > 0
            labels[can_be_hidden & mask] = 0
        self._background.where[window] &= ~mask
        self._paste_certainty(cutout, y, x)
        self._pasted.append(cutout)
        self._areas = np.append(self._areas, np.count_nonzero(mask))
        self._hidden = np.append(self._hidden, 0)
        # The label goes into the first layer in which its pixels are free.
        free = next((layer for layer in labels if not layer[mask].any()), None)
        if free is None:
            new = np.zeros((1, *self._labels.shape[1:]), dtype=np.int32)
            self._labels = np.concatenate([self._labels, new])
            free = self._labels[-1][window]
        free[mask] = len(self._areas)

    def finish(self, min_visible: float) -> Sample:
        """Return the sample; objects of which less than `min_visible` is left are dropped.

        Their remaining pixels are ignored: they are neither an object to be learnt nor background.
        """
        if not self._pasted:
            return self._target
        left = self._areas - self._hidden
        keep = (left > 0) & (left >= min_visible * self._areas)
        ignore = self._target.ignore
        if (left[~keep] > 0).any():
            dropped = np.append(False, ~keep)[self._labels].any(axis=0)
            ignore = dropped if ignore is None else ignore | dropped
        layers = LabelLayers(self._labels, len(keep))
        pasted, weights = self._pasted, self._target.object_weights
        if weights is not None or any((cutout.weights != 1).any() for cutout in pasted):
            weights = np.concatenate([self._target.weights_or_ones(), [cutout.weights for cutout in pasted]])
        together = dataclasses.replace(
            self._target,
            image=self._image,
            layers=layers,
            classes=np.append(self._target.classes, [cutout.class_index for cutout in pasted]),
            ignore=ignore,
            object_weights=weights,
            certainty=self._certainty,
        )
        return together if keep.all() else together.with_objects(layers.select(keep), keep)

    def _visible(self, cutout: Cutout, y: int, x: int) -> tuple[np.ndarray, Window]:
        """Return the part of a mask inside the target, and its window there."""
        height, width = cutout.mask.shape
        if y >= 0 and x >= 0 and y + height <= self._target.height and x + width <= self._target.width:
            return cutout.mask, (slice(y, y + height), slice(x, x + width))
        rows = slice(max(y, 0), max(min(y + height, self._target.height), 0))
        columns = slice(max(x, 0), max(min(x + width, self._target.width), 0))
        part = cutout.mask[rows.start - y : max(rows.stop - y, 0), columns.start - x : max(columns.stop - x, 0)]
        return part, (rows, columns)

    def _count_covered(self, mask: np.ndarray, window: Window) -> np.ndarray | None:
        """Return how many pixels (N,) int64 of every object the mask would hide; None if it has no pixels."""
        if not (mask & ~self._background.where[window]).any():
            return None
        under = self._labels[:, window[0], window[1]][:, mask]
        counts = np.bincount(under[under > 0], minlength=len(self._areas) + 1)[1:]
        if self._kept_overlaps:
            counts[self._num_before :] = 0
        return counts

    def _paste_certainty(self, cutout: Cutout, y: int, x: int) -> None:
        """Copy the certainty of the object's pixels from their image."""
        if self._certainty is None and cutout.certainty is None:
            return
        mask, window = self._visible(cutout, y, x)
        if self._certainty is None:
            self._certainty = np.full(self._image.shape[:2], 255, dtype=np.uint8)
        elif self._certainty is self._target.certainty:
            self._certainty = self._certainty.copy()
        top, left = window[0].start - y, window[1].start - x
        known = np.full(cutout.mask.shape, 255, dtype=np.uint8) if cutout.certainty is None else cutout.certainty
        self._certainty[window][mask] = known[top : top + mask.shape[0], left : left + mask.shape[1]][mask]

    def _copy_pixels(self, cutout: Cutout, y: int, x: int) -> None:
        """Copy the object's pixels, and with a margin or a soft edge some of its surroundings."""
        reach = self._margin + round(_EDGE_REACH * self._sigma)
        height, width = cutout.mask.shape
        down, right = y - cutout.y0, x - cutout.x0
        # The window's rows and columns in the target, where both images have pixels.
        top, bottom = max(y - reach, 0, down), min(y + height + reach, self._target.height, self._source.height + down)
        left, end = max(x - reach, 0, right), min(x + width + reach, self._target.width, self._source.width + right)
        here = (slice(top, bottom), slice(left, end))
        there = (slice(top - down, bottom - down), slice(left - right, end - right))
        padded = np.zeros((height + 2 * reach, width + 2 * reach), dtype=np.float32)
        padded[reach : reach + height, reach : reach + width] = cutout.mask
        alpha = padded[top - y + reach : bottom - y + reach, left - x + reach : end - x + reach]
        if self._margin:
            around = cv2.dilate(alpha, _disc(self._margin))
            np.maximum(alpha, around * self._source.background.where[there] * self._background.where[here], out=alpha)
        if self._sigma:
            alpha = cv2.GaussianBlur(alpha, (0, 0), self._sigma, borderType=cv2.BORDER_REPLICATE)
        new = self._source.image[there]
        if self._match_gray or self._sigma:
            before = self._image[here].astype(np.float32)
            shift = self._gray_difference(cutout, y, x) if self._match_gray else 0.0
            mixed = np.clip(before + alpha[:, :, None] * (new + (shift - before)), *self._range)
            self._image[here] = np.rint(mixed) if self._image.dtype.kind == "u" else mixed
        else:
            self._image[here][alpha > 0] = new[alpha > 0]

    def _gray_difference(self, cutout: Cutout, y: int, x: int) -> np.ndarray | float:
        """Return (C,) float32: mean of the background around the object in the target minus that in the source."""
        here = self._background.mean_around(y, x, *cutout.mask.shape)
        there = self._source.background.mean_around(cutout.y0, cutout.x0, *cutout.mask.shape)
        return 0.0 if here is None or there is None else here - there


@functools.cache
def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _mean(image: np.ndarray, where: np.ndarray) -> np.ndarray | None:
    """Return the mean (C,) float32 of the pixels `where`, or None if these are too few."""
    count = np.count_nonzero(where)
    if count < _LEAST_BACKGROUND:
        return None
    if image.shape[2] <= 4:  # several times as fast
        return np.array(cv2.mean(image, where.view(np.uint8))[: image.shape[2]], dtype=np.float32)
    return image[where].mean(axis=0, dtype=np.float32)
