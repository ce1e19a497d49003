"""Copy-paste (Ghiasi et al. 2020, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation").

Objects of one sample are pasted upon another; both went through the random geometry before. Made for dense images: an
object that would hide too much of others is not pasted, and none of this makes a full-size mask of one object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detseg.augment.canvas import Canvas, Cutout, Source
from detseg.errors import ConfigError, DataError
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.config import Config

PLACES = ("kept", "free")

# An object so many pixels from an edge, or less, is cut by it: masks drawn by hand often end a little before.
_CUT_WITHIN = 2
# Places that are tried for an object where it may lie anywhere.
_PLACES_TRIED = 5
# Objects that are looked at, for each that shall be pasted, until enough fit.
_OBJECTS_TRIED = 4


@dataclass(frozen=True)
class CopyPaste:
    """How objects are pasted.

    max_objects: the most in one image, 0 for as many as there are; how many is drawn evenly from 1 on. place: "kept",
    where they are in their own sample (Ghiasi et al.), or "free", each anywhere inside the target. max_overlap: share
    of an object, pasted or there before, up to which one may lie upon the other; 1 for no limit. min_visible: objects
    of which less remains are dropped, and what remains is ignored. soft_edge: standard deviation, pixels, of the
    Gaussian by which masks are blurred for blending; 0 for hard edges. margin: pixels of background around an object
    that are pasted along, such as its halo. match_gray: shift an object's intensities so
    that its background agrees with that of its new place. class_weights: how likely objects of each class are drawn,
    relative to each other; empty for equally.
    """

    max_objects: int = 50
    place: str = "kept"
    max_overlap: float = 0.3
    min_visible: float = 0.3
    soft_edge: float = 0.0
    margin: int = 0
    match_gray: bool = False
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ConfigError(f"INPUT.COPY_PASTE.PLACE is {self.place!r}; expected one of {', '.join(PLACES)}")

    @classmethod
    def from_config(cls, cfg: Config, class_weights: tuple[float, ...] = ()) -> CopyPaste:
        """Read the keys of INPUT.COPY_PASTE that say how objects are pasted."""
        keys = cfg.INPUT.COPY_PASTE
        return cls(
            max_objects=keys.MAX_OBJECTS,
            place=keys.PLACE,
            max_overlap=keys.MAX_OVERLAP,
            min_visible=keys.MIN_VISIBLE,
            soft_edge=keys.SOFT_EDGE,
            margin=keys.MARGIN,
            match_gray=keys.MATCH_GRAY,
            class_weights=class_weights,
        )

    def paste(self, target: Sample, source: Sample, rng: np.random.Generator) -> Sample:
        """Return the target with objects of the source pasted upon it; the target itself where none fits.

        Both have images of one dtype and number of channels. Of the source, objects are not taken that touch ignored
        pixels; in the target, ignored pixels stay ignored and nothing is pasted upon them. Objects that are cut by the
        edge of their own image are pasted where the target's edge cuts them alike.

        Raises DataError where the images are of different kinds.
        """
        _check_alike(target, source)
        cutouts = Source(source)
        candidates = self._draw_candidates(cutouts, rng)
        if not len(candidates):
            return target
        wanted = int(rng.integers(1, min(self.max_objects or len(candidates), len(candidates)) + 1))
        kept = self.place == "kept"
        shift = _draw_shift(target, source, rng) if kept else (0, 0)
        canvas = Canvas(
            target,
            cutouts,
            kept_overlaps=kept,
            sigma=self.soft_edge,
            margin=self.margin,
            match_gray=self.match_gray,
        )
        for index in candidates[: _OBJECTS_TRIED * wanted]:
            cutout = cutouts.cut_out(index)
            position = self._find_place(canvas, target, source, cutout, shift, rng)
            if position is not None:
                canvas.paste(cutout, *position)
                if canvas.num_pasted == wanted:
                    break
        return canvas.finish(self.min_visible)

    def _draw_candidates(self, source: Source, rng: np.random.Generator) -> np.ndarray:
        """Return the objects (0-based) that may be pasted, in random order, likely ones first."""
        usable = source.boxes[:, 2] > source.boxes[:, 0]
        if source.ignore is not None:
            touching = np.unique(source.layers.layers[:, source.ignore])
            usable[touching[touching > 0] - 1] = False
        weights = np.ones(len(usable))
        if self.class_weights:
            weights = np.asarray(self.class_weights)[source.classes]
        # Drawing one after the other without putting back is sorting by exponential times (Efraimidis and Spirakis).
        times = rng.exponential(size=len(usable)) / np.maximum(weights, 1e-12)
        order = np.argsort(times, kind="stable")
        return order[(usable & (weights > 0))[order]]

    def _find_place(
        self,
        canvas: Canvas,
        target: Sample,
        source: Sample,
        cutout: Cutout,
        shift: tuple[int, int],
        rng: np.random.Generator,
    ) -> tuple[int, int] | None:
        """Return row and column where the object may be pasted, or None."""
        height, width = cutout.mask.shape
        if self.place == "kept":
            places = [(cutout.y0 + shift[0], cutout.x0 + shift[1])]
        elif height > target.height or width > target.width:
            return None
        else:
            rows = rng.integers(target.height - height + 1, size=_PLACES_TRIED)
            columns = rng.integers(target.width - width + 1, size=_PLACES_TRIED)
            places = list(zip(rows.tolist(), columns.tolist(), strict=True))
        for y, x in places:
            shows_cut = _shows_cut(cutout, y, x, source, target)
            if not shows_cut and canvas.fits(cutout, y, x, max_overlap=self.max_overlap, min_visible=self.min_visible):
                return y, x
        return None


def _shows_cut(cutout: Cutout, y: int, x: int, source: Sample, target: Sample) -> bool:
    """Whether an edge at which its own image cuts the object would lie inside the target."""
    below, right = cutout.y0 + cutout.mask.shape[0], cutout.x0 + cutout.mask.shape[1]
    here = (y, x, target.height - (y + cutout.mask.shape[0]), target.width - (x + cutout.mask.shape[1]))
    there = (cutout.y0, cutout.x0, source.height - below, source.width - right)
    return any(near <= _CUT_WITHIN < moved for near, moved in zip(there, here, strict=True))


def _draw_shift(target: Sample, source: Sample, rng: np.random.Generator) -> tuple[int, int]:
    """Draw how far the source lies below and right of the target's corner; the smaller lies inside the larger."""
    spare = [there - here for there, here in ((target.height, source.height), (target.width, source.width))]
    return tuple(int(rng.integers(min(room, 0), max(room, 0) + 1)) for room in spare)  # type: ignore[return-value]


def _check_alike(target: Sample, source: Sample) -> None:
    kinds = [f"{sample.image.dtype} with {sample.image.shape[2]} channels" for sample in (target, source)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{source.file_name}: its objects cannot be pasted upon {target.file_name}: the images are {kinds[1]} and "
            f"{kinds[0]}; bring them to one kind with INPUT.SCALING (percentile or fixed), INPUT.GRAYSCALE or "
            "INPUT.CHANNELS, or name other INPUT.COPY_PASTE.SOURCES"
        )
