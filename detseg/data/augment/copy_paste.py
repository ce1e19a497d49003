"""Copy-paste (Ghiasi et al. 2020, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation").

Objects of one sample are pasted on another; both have been through the random geometry before. Made for dense images:
an object that would hide too much of others is not pasted, and no full-size mask of an object is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detseg.config.options import Options, key
from detseg.data.augment.canvas import Canvas, Cutout, SourceImage
from detseg.errors import DataError
from detseg.structures.sample import Sample

# An object within this many pixels of an edge is considered cut by it: manual masks often end a little before.
_CUT_WITHIN = 2
# Number of places that are tried for an object with PLACE "free".
_PLACES_TRIED = 5
# Number of candidates per object to be pasted, until enough fit.
_OBJECTS_TRIED = 4


@dataclass(frozen=True)
class CopyPaste(Options):
    """How objects are pasted.

    max_objects: maximum in one image, 0 for no limit; the number is uniform from 1. place: "kept", as in their own
    sample (Ghiasi et al.), or "free", anywhere inside the target. max_overlap: largest fraction of an object, pasted or
    not, that another one may cover; 1 for no limit. min_visible: objects with a smaller visible fraction are dropped,
    and their remaining pixels ignored. soft_edge: standard deviation in pixels of the Gaussian that blurs masks for
    blending; 0 for hard edges. margin: pixels of background around an object that are pasted with it, such as its halo.
    match_gray: shift an object's intensities to match the background of its new place. class_weights: relative sampling
    weights of the classes; empty for equal ones.
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
        """Return the target with objects of the source pasted on it; the target itself if none fits.

        Both images have the same dtype and number of channels. Objects of the source that touch ignored pixels are not
        used; in the target, ignored pixels stay ignored and nothing is pasted on them. Objects that are cut by the edge
        of their own image are pasted only where the target's edge cuts them in the same way.

        Raises DataError if dtypes or channels differ.
        """
        kinds = [f"{sample.image.dtype} with {sample.image.shape[2]} channels" for sample in (target, source)]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"{source.file_name}: its objects cannot be pasted on {target.file_name}: the images are {kinds[1]} "
                f"and {kinds[0]}; convert them to one kind with INPUT.SCALING (percentile or fixed), INPUT.GRAYSCALE "
                "or INPUT.CHANNELS, or use other INPUT.COPY_PASTE.SOURCES"
            )
        image = SourceImage(source)
        candidates = self._draw_candidates(image, rng)
        if not len(candidates):
            return target
        wanted = int(rng.integers(1, min(self.max_objects or len(candidates), len(candidates)) + 1))
        kept = self.place == "kept"
        # Shift of the source relative to the target; the smaller image is inside the larger.
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
        """Return the objects (0-based) that may be pasted, in weighted random order."""
        usable = source.boxes[:, 2] > source.boxes[:, 0]
        if source.ignore is not None:
            touching = np.unique(source.layers.layers[:, source.ignore])
            usable[touching[touching > 0] - 1] = False
        weights = np.ones(len(usable))
        if self.class_weights:
            weights = np.asarray(self.class_weights)[source.classes]
        # Weighted sampling without replacement by sorting exponential times (Efraimidis and Spirakis).
        times = rng.exponential(size=len(usable)) / np.maximum(weights, 1e-12)
        order = np.argsort(times, kind="stable")
        return order[(usable & (weights > 0))[order]]


def _draw_places(cutout: Cutout, target: Sample, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return rows and columns at which an object is inside the target; none if it is too large."""
    height, width = cutout.mask.shape
    if height > target.height or width > target.width:
        return []
    rows = rng.integers(target.height - height + 1, size=_PLACES_TRIED)
    columns = rng.integers(target.width - width + 1, size=_PLACES_TRIED)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _shows_cut(cutout: Cutout, y: int, x: int, source: SourceImage, target: Sample) -> bool:
    """Whether an edge of the source image that cuts the object would be inside the target."""
    below, right = cutout.y0 + cutout.mask.shape[0], cutout.x0 + cutout.mask.shape[1]
    here = (y, x, target.height - (y + cutout.mask.shape[0]), target.width - (x + cutout.mask.shape[1]))
    there = (cutout.y0, cutout.x0, source.height - below, source.width - right)
    return any(near <= _CUT_WITHIN < moved for near, moved in zip(there, here, strict=True))
