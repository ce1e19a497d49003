"""The picture that objects are pasted upon: what each of them hides, and what is seen of all in the end.

Symbols: y, x: the target's row and column of a cutout's upper left pixel, which may lie outside the target.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

# The blurred edge of a mask is cut off so many standard deviations away.
_EDGE_REACH = 3
# The surroundings of an object: so many pixels around its box, half of its longer side between these.
_LEAST_RING, _MOST_RING = 4, 32
# With fewer pixels of background around an object, the background of the whole image stands for them.
_LEAST_BACKGROUND = 16


@dataclass(frozen=True)
class Cutout:
    """One object of another image. mask: (h, w) bool, its box; y0, x0: where that lies there. class_index: 0-based."""

    mask: np.ndarray
    y0: int
    x0: int
    class_index: int


class Source:
    """An image that objects are cut out of."""

    def __init__(self, sample: Sample) -> None:
        self.image = sample.image
        self.height, self.width = sample.height, sample.width
        self.classes = sample.classes
        self.ignore = sample.ignore
        self.layers = sample.layers if sample.layers is not None else LabelLayers.empty(sample.height, sample.width)
        self.boxes = self.layers.boxes().astype(np.int64)
        self._layer_of = self.layers.layer_index()
        self._background: np.ndarray | None = None

    @property
    def background(self) -> np.ndarray:
        """Where no object is, (H, W) bool."""
        if self._background is None:
            self._background = ~self.layers.foreground()
        return self._background

    def cut_out(self, index: int) -> Cutout:
        """Return one object (0-based), which must have pixels."""
        x0, y0, x1, y1 = (int(value) for value in self.boxes[index])
        mask = self.layers.layers[self._layer_of[index], y0:y1, x0:x1] == index + 1
        return Cutout(mask, y0, x0, int(self.classes[index]))


class Canvas:
    """A target sample upon which objects of a source are pasted; the target itself is not changed.

    kept_overlaps: pasted objects do not hide each other: they overlap as they did in their image. sigma: standard
    deviation, pixels, of the soft edge; 0 for a hard one. margin: pixels of background around an object that are painted
    along, where no object is here or there. match_gray: shift every object's intensities by the
    difference between the backgrounds around it here and there.
    """

    def __init__(
        self,
        target: Sample,
        source: Source,
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
        layers = target.layers if target.layers is not None else LabelLayers.empty(target.height, target.width)
        self._image = target.image.copy()
        self._labels = layers.layers.copy()
        self._areas = layers.areas()
        self._hidden = np.zeros(len(layers), dtype=np.int64)
        self._classes = target.classes
        self._num_before = len(layers)
        self._mean_background: np.ndarray | None = None
        self._range = _value_range(target.image, source.image)

    @property
    def num_pasted(self) -> int:
        return len(self._areas) - self._num_before

    def fits(self, cutout: Cutout, y: int, x: int, *, max_overlap: float, min_visible: float) -> bool:
        """Whether an object may be pasted at (y, x).

        It must show `min_visible` of its pixels inside the target, cover no ignored pixel, and lie upon other objects
        with at most `max_overlap` of its pixels; of none of them may pasted objects hide more than that share.
        """
        mask, rows, columns = self._visible(cutout, y, x)
        visible = int(mask.sum())
        if visible == 0 or visible < min_visible * cutout.mask.sum():
            return False
        if self._target.ignore is not None and self._target.ignore[rows, columns][mask].any():
            return False
        if max_overlap >= 1:
            return True
        covered = self._count_covered(mask, rows, columns)
        if covered.sum() > max_overlap * visible:
            return False
        return not (covered > 0)[self._hidden + covered > max_overlap * self._areas].any()

    def paste(self, cutout: Cutout, y: int, x: int) -> None:
        """Paste an object; some of it must lie inside the target."""
        mask, rows, columns = self._visible(cutout, y, x)
        self._paint(cutout, y, x)
        self._hidden += self._count_covered(mask, rows, columns)
        window = self._labels[:, rows, columns]
        window[self._can_be_hidden(window) & mask] = 0
        label = len(self._areas) + 1
        for layer in window:
            if not layer[mask].any():
                layer[mask] = label
                break
        else:
            new = np.zeros((1, *self._labels.shape[1:]), dtype=np.int32)
            new[0, rows, columns][mask] = label
            self._labels = np.concatenate([self._labels, new])
        self._areas = np.append(self._areas, mask.sum())
        self._hidden = np.append(self._hidden, 0)
        self._classes = np.append(self._classes, cutout.class_index)

    def finish(self, min_visible: float) -> Sample:
        """Return the sample; objects of which less than `min_visible` is left are dropped.

        What is left of those becomes ignored: it is neither an object that could be learnt nor background.
        """
        if not self.num_pasted:
            return self._target
        left = self._areas - self._hidden
        keep = (left > 0) & (left >= min_visible * self._areas)
        ignore = self._target.ignore
        if (left[~keep] > 0).any():
            dropped = np.concatenate([[False], ~keep])[self._labels].any(axis=0)
            ignore = dropped if ignore is None else ignore | dropped
        layers = LabelLayers(self._labels, len(keep))
        return dataclasses.replace(
            self._target,
            image=self._image,
            layers=layers if keep.all() else layers.select(keep),
            classes=self._classes[keep],
            ignore=ignore,
        )

    def _visible(self, cutout: Cutout, y: int, x: int) -> tuple[np.ndarray, slice, slice]:
        """Return the part of a mask inside the target, and the target's rows and columns that it covers."""
        height, width = cutout.mask.shape
        rows = slice(max(y, 0), max(min(y + height, self._target.height), 0))
        columns = slice(max(x, 0), max(min(x + width, self._target.width), 0))
        part = cutout.mask[rows.start - y : max(rows.stop - y, 0), columns.start - x : max(columns.stop - x, 0)]
        return part, rows, columns

    def _can_be_hidden(self, labels: np.ndarray) -> np.ndarray:
        return labels <= self._num_before if self._kept_overlaps else labels > 0

    def _count_covered(self, mask: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Return how many pixels (N,) int64 of every object here the mask would hide."""
        under = self._labels[:, rows, columns][:, mask]
        counts = np.bincount(under[under > 0], minlength=len(self._areas) + 1)[1:]
        if self._kept_overlaps:
            counts[self._num_before :] = 0
        return counts

    def _paint(self, cutout: Cutout, y: int, x: int) -> None:
        """Copy the object's pixels, and with a margin or a soft edge a little of what was around it."""
        reach = self._margin + round(_EDGE_REACH * self._sigma)
        height, width = cutout.mask.shape
        down, right = y - cutout.y0, x - cutout.x0
        # The window's rows and columns in the target, where both images have them.
        top, bottom = max(y - reach, 0, down), min(y + height + reach, self._target.height, self._source.height + down)
        left, end = max(x - reach, 0, right), min(x + width + reach, self._target.width, self._source.width + right)
        here = (slice(top, bottom), slice(left, end))
        there = (slice(top - down, bottom - down), slice(left - right, end - right))
        alpha = np.pad(cutout.mask, reach)[
            top - y + reach : bottom - y + reach, left - x + reach : end - x + reach
        ].astype(np.float32)
        if self._margin:
            ring = cv2.dilate(alpha, _disc(self._margin)) > 0
            ring &= self._source.background[there] & ~self._labels[:, here[0], here[1]].any(axis=0)
            alpha[ring] = 1
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

    def _gray_difference(self, cutout: Cutout, y: int, x: int) -> np.ndarray:
        """Return (C,) float32: the mean of the background around the object here less that around it there."""
        height, width = cutout.mask.shape
        ring = min(max(max(height, width) // 2, _LEAST_RING), _MOST_RING)
        here = _window(y - ring, x - ring, y + height + ring, x + width + ring)
        free = ~self._labels[:, here[0], here[1]].any(axis=0)
        place = _window(cutout.y0 - ring, cutout.x0 - ring, cutout.y0 + height + ring, cutout.x0 + width + ring)
        around_here = _mean(self._image[here], free)
        around_there = _mean(self._source.image[place], self._source.background[place])
        if around_here is None:
            around_here = self._overall_background()
        if around_there is None:
            around_there = _mean(self._source.image, self._source.background)
        if around_here is None or around_there is None:
            return np.zeros(self._image.shape[2], dtype=np.float32)
        return around_here - around_there

    def _overall_background(self) -> np.ndarray | None:
        if self._mean_background is None:
            layers = self._target.layers
            free = np.ones(self._image.shape[:2], bool) if layers is None else ~layers.foreground()
            self._mean_background = _mean(self._target.image, free)
        return self._mean_background


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _window(top: int, left: int, bottom: int, right: int) -> tuple[slice, slice]:
    return slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))


def _mean(image: np.ndarray, where: np.ndarray) -> np.ndarray | None:
    """Return the mean (C,) float32 of the pixels `where`, or None where these are too few to tell."""
    values = image[where]
    return values.mean(axis=0, dtype=np.float32) if len(values) >= _LEAST_BACKGROUND else None


def _value_range(*images: np.ndarray) -> tuple[float, float]:
    """Return the range of images of whole numbers, or from the least to the greatest value of float images."""
    if images[0].dtype.kind == "u":
        return 0.0, float(np.iinfo(images[0].dtype).max)
    return float(min(image.min() for image in images)), float(max(image.max() for image in images))
