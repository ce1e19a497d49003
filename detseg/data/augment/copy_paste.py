"""Copy-paste (Ghiasi et al. 2020, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation").

Objects of one sample are pasted on another; both went through the random geometry before. Made for dense images: an
object that would hide too much of others is not pasted, and none of this makes a full-size mask of one object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detseg.config.options import Options, key
from detseg.data.augment.canvas import Canvas, Cutout, SourceImage
from detseg.errors import DataError
from detseg.structures.sample import Sample

# An object so many pixels from an edge, or less, is cut by it: masks drawn by hand often end a little before.
_CUT_WITHIN = 2
# Places that are tried for an object where it may be anywhere.
_PLACES_TRIED = 5
# Objects that are looked at, for each that shall be pasted, until enough fit.
_OBJECTS_TRIED = 4


@dataclass(frozen=True)
class CopyPaste(Options):
    """How objects are pasted.

    max_objects: the most in one image, 0 for as many as there are; how many is drawn evenly from 1 on. place: "kept",
    where they are in their own sample (Ghiasi et al.), or "free", each anywhere inside the target. max_overlap: share
    of an object, pasted or there before, up to which one may cover the other; 1 for no limit. min_visible: objects of
    which less remains are dropped, and what remains is ignored. soft_edge: standard deviation, pixels, of the Gaussian
    by which masks are blurred for blending; 0 for hard edges. margin: pixels of background around an object that are
    pasted with it, such as its halo. match_gray: shift an object's intensities so that its background agrees with that
    of its new place. class_weights: how likely objects of each class are drawn, relative to each other; empty for
    equally.
    """

    section = "INPUT.COPY_PASTE"

    max_objects: int = key("MAX_OBJECTS", default=50, at_least=0)
    place: str = key("PLACE", default="kept", choices=("kept", "free"))
    max_overlap: float = key("MAX_OVERLAP", default=0.3, at_least=0, at_most=1)
    min_visible: float = key("MIN_VISIBLE", default=0.3, at_least=0, at_most=1)
    soft_edge: float = key("SOFT_EDGE", default=0.0, at_least=0, at_most=50)
    margin: int = key("MARGIN", default=0, at_least=0, at_most=50)
    match_gray: bool = key("MATCH_GRAY", default=False)
    class_weights: tuple[float, ...] = ()

    def paste(self, target: Sample, source: Sample, rng: np.random.Generator) -> Sample:
        """Return the target with objects of the source pasted on it; the target itself where none fits.

        Both have images of one dtype and number of channels. Of the source, objects are not taken that touch ignored
        pixels; in the target, ignored pixels stay ignored and nothing is pasted on them. Objects that are cut by the
        edge of their own image are pasted where the target's edge cuts them alike.

        Raises DataError where the images are of different kinds.
        """
        kinds = [f"{sample.image.dtype} with {sample.image.shape[2]} channels" for sample in (target, source)]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"{source.file_name}: its objects cannot be pasted on {target.file_name}: the images are {kinds[1]} "
                f"and {kinds[0]}; bring them to one kind with INPUT.SCALING (percentile or fixed), INPUT.GRAYSCALE or "
                "INPUT.CHANNELS, or name other INPUT.COPY_PASTE.SOURCES"
            )
        image = SourceImage(source)
        candidates = self._draw_candidates(image, rng)
        if not len(candidates):
            return target
        wanted = int(rng.integers(1, min(self.max_objects or len(candidates), len(candidates)) + 1))
        kept = self.place == "kept"
        # How far the source is below and right of the target's corner; the smaller is inside of the larger.
        spare = [there - here for there, here in ((target.height, source.height), (target.width, source.width))]
        down, right = [int(rng.integers(min(more, 0), max(more, 0) + 1)) for more in spare] if kept else (0, 0)
        canvas = Canvas(
            target,
            image,
            kept_overlaps=kept,
            sigma=self.soft_edge,
            margin=self.margin,
            match_gray=self.match_gray,
        )
        for index in candidates[: _OBJECTS_TRIED * wanted]:
            cutout = image.cut_out(index)
            places = [(cutout.y0 + down, cutout.x0 + right)] if kept else _draw_places(cutout, target, rng)
            for y, x in places:
                if not _shows_cut(cutout, y, x, image, target) and canvas.fits(
                    cutout, y, x, max_overlap=self.max_overlap, min_visible=self.min_visible
                ):
                    canvas.paste(cutout, y, x)
                    break
            if canvas.num_pasted == wanted:
                break
        return canvas.finish(self.min_visible)

    def _draw_candidates(self, source: SourceImage, rng: np.random.Generator) -> np.ndarray:
        """Return the objects (0-based) that may be pasted, in random order, likely ones first."""
        usable = source.boxes[:, 2] > source.boxes[:, 0]
        if source.ignore is not None:
            touching = np.unique(source.layers.layers[:, source.ignore])
            usable[touching[touching > 0] - 1] = False
        weights = np.ones(len(usable))
        if self.class_weights:
            weights = np.asarray(self.class_weights)[source.classes]
        # Drawing without replacement is sorting by exponential times (Efraimidis and Spirakis).
        times = rng.exponential(size=len(usable)) / np.maximum(weights, 1e-12)
        order = np.argsort(times, kind="stable")
        return order[(usable & (weights > 0))[order]]


def _draw_places(cutout: Cutout, target: Sample, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return rows and columns at which an object is inside of the target; none where it is too large."""
    height, width = cutout.mask.shape
    if height > target.height or width > target.width:
        return []
    rows = rng.integers(target.height - height + 1, size=_PLACES_TRIED)
    columns = rng.integers(target.width - width + 1, size=_PLACES_TRIED)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _shows_cut(cutout: Cutout, y: int, x: int, source: SourceImage, target: Sample) -> bool:
    """Whether an edge at which its own image cuts the object would be inside of the target."""
    below, right = cutout.y0 + cutout.mask.shape[0], cutout.x0 + cutout.mask.shape[1]
    here = (y, x, target.height - (y + cutout.mask.shape[0]), target.width - (x + cutout.mask.shape[1]))
    there = (cutout.y0, cutout.x0, source.height - below, source.width - right)
    return any(near <= _CUT_WITHIN < moved for near, moved in zip(there, here, strict=True))
