"""Which image copy-paste takes objects from: a function of the random generator and the image that they go to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detseg.coco.catalog import load_dataset
from detseg.coco.dataset import CocoDataset
from detseg.data.augment.canvas import Canvas, Cutout, Source
from detseg.data.folds import training_part
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sample_cache import SampleCache, SampleReader
from detseg.data.sampling import balancing_weights
from detseg.errors import ConfigError, DataError
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.config import Config


# Names in INPUT.COPY_PASTE.SOURCES that are no data sets.
TRAIN, SAME_IMAGE = "train", "image"


class Partners:
    """The images of one data set that have objects, in groups.

    group_by: the image-level field by which images are grouped, "" for one group. power: how far images with rare
    classes are preferred (see `balancing_weights`).

    Raises DataError where images lack the field, or none has an object.
    """

    def __init__(self, reader: SampleReader, *, group_by: str = "", power: float = 0.0) -> None:
        self.reader = reader
        dataset = reader.dataset
        filled = np.flatnonzero(dataset.objects_per_image().sum(axis=1))
        if not len(filled):
            raise DataError(f"{dataset.name}: no image has an object that could be pasted (INPUT.COPY_PASTE)")
        weights = balancing_weights(dataset, "category", power)
        weights = np.ones(len(dataset)) if weights is None else weights
        self._group_by = group_by
        groups: dict[str, list[int]] = {}
        for index in filled.tolist():
            groups.setdefault(self.group_of(dataset, index), []).append(index)
        self._groups = {name: _Choice(np.array(members), weights[members]) for name, members in groups.items()}

    def group_of(self, dataset: CocoDataset, index: int) -> str:
        """Return the group of an image, of this or another data set."""
        if not self._group_by:
            return ""
        record = dataset.images[index]
        if self._group_by not in record.metadata:
            raise DataError(
                f"{dataset.name}: INPUT.COPY_PASTE.GROUP_BY is {self._group_by!r}, but {record.file_name} has no such "
                f"field; its fields are: {', '.join(sorted(record.metadata)) or 'none'}"
            )
        return str(record.metadata[self._group_by])

    def draw(self, group: str, rng: np.random.Generator) -> int | None:
        """Draw an image of a group; None where there is none."""
        choice = self._groups.get(group)
        return None if choice is None else choice.draw(rng)


class _Choice:
    """A weighted choice among numbers."""

    def __init__(self, values: np.ndarray, weights: np.ndarray) -> None:
        self._values = values
        self._cumulated = np.cumsum(weights / weights.sum())

    def draw(self, rng: np.random.Generator) -> int:
        place = np.searchsorted(self._cumulated, rng.random(), side="right")
        return int(self._values[min(place, len(self._values) - 1)])


class Partner(NamedTuple):
    """The image that objects come from: number `index` of what `reader` reads; None is the image that they go to."""

    reader: SampleReader | None
    index: int


class Pasting:
    """Copy-paste as a stage of the training stream, between geometry and photometry.

    sources: where objects come from; None stands for the image itself. weights: how often each is drawn, relative to
    each other. last_position: nothing is pasted from this position of the stream on; 0 for no end.
    """

    def __init__(
        self,
        copy_paste: CopyPaste,
        sources: Sequence[Partners | None],
        weights: Sequence[float] = (),
        *,
        probability: float = 1.0,
        last_position: int = 0,
    ) -> None:
        self.copy_paste = copy_paste
        self.sources = list(sources)
        weights = weights or [1.0] * len(self.sources)
        self._choice = _Choice(np.arange(len(self.sources)), np.asarray(weights, dtype=np.float64))
        self.probability = probability
        self.last_position = last_position

    @classmethod
    def from_config(cls, cfg: Config, train: SampleReader, cache: SampleCache | None) -> Pasting | None:
        """Read INPUT.COPY_PASTE and load the data sets that it names; None where nothing shall be pasted.

        Raises:
            DataError: a data set cannot be read, has no class of the training data, or lacks GROUP_BY.
        """
        keys = cfg.INPUT.COPY_PASTE
        if not keys.PROBABILITY:
            return None
        readers: dict[str, SampleReader | None] = {TRAIN: train, SAME_IMAGE: None}
        for name in keys.SOURCES:
            if name not in readers:
                dataset = training_part(cfg, load_dataset(name)).with_objects_of(train.dataset.class_names)
                dataset.check_images_exist()
                readers[name] = SampleReader(dataset, ImagePreprocess.from_config(cfg), cache)
        sources = [
            reader and Partners(reader, group_by=keys.GROUP_BY, power=keys.BALANCE_POWER)
            for reader in (readers[name] for name in keys.SOURCES)
        ]
        weights = _class_weights(train.dataset, keys.BALANCE_POWER)
        return cls(
            CopyPaste.from_config(cfg, weights),
            sources,
            keys.SOURCE_WEIGHTS,
            probability=keys.PROBABILITY,
            last_position=keys.LAST_ITER * cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE,
        )

    def draw(self, dataset: CocoDataset, index: int, position: int, rng: np.random.Generator) -> Partner | None:
        """Draw where the objects come from that go to image `index` of the training data; None where nothing shall be
        pasted at this position of the stream.
        """
        if (self.last_position and position >= self.last_position) or rng.random() >= self.probability:
            return None
        source = self.sources[self._choice.draw(rng)]
        if source is None:
            return Partner(None, index)
        chosen = source.draw(source.group_of(dataset, index), rng)
        return None if chosen is None else Partner(source.reader, chosen)


def _class_weights(dataset: CocoDataset, power: float) -> tuple[float, ...]:
    """Return for every class how likely its objects are drawn: 1 / their number, to the power; () for equally."""
    if not power:
        return ()
    counts = np.maximum(dataset.objects_per_image().sum(axis=0), 1)
    return tuple((counts.min() / counts) ** power)


# Copy-paste (Ghiasi et al. 2020, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation").
#
# Objects of one sample are pasted upon another; both went through the random geometry before. Made for dense images: an
# object that would hide too much of others is not pasted, and none of this makes a full-size mask of one object.

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
