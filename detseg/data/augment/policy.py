"""The random changes of training: what the INPUT keys ask for, drawn first and then applied in one go."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from detseg.data.augment.geometric import GeometricMap, map_sample
from detseg.data.augment.intensities import IntensityPipeline, change_intensities, invert, natural_range
from detseg.data.augment.random_geometry import (
    Focus,
    RandomAffine,
    RandomCrop,
    RandomElastic,
    between,
    class_weights,
    focus_in,
)
from detseg.data.augment.resampling import BORDERS
from detseg.data.preprocess import resize_shortest_edge_size, size_at_pixel_size
from detseg.errors import ConfigError
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.config import Config


@dataclass(frozen=True)
class Intensities:
    """Drawn changes of intensities. contrast: a factor. brightness: a fraction of the range. turned: inverted."""

    contrast: float = 1.0
    brightness: float = 0.0
    turned: bool = False


@dataclass(frozen=True)
class TrainPolicy:
    """Crop, resize (in this order, as Detectron2, or the other way round), turns, bends and intensities of a sample.

    pixel_size: micrometres to which images are brought before all else; what follows is in pixels of this size; 0
    leaves them as they are.
    min_sizes, sampling: the shorter edge, pixels: one of several ("choice") or between two ("range"); 0 keeps the size.
    max_size: of the longer edge. scales: least and most further zoom, drawn evenly ("uniform") or evenly in its
    logarithm ("log_uniform"), by scale_sampling; a crop in absolute pixels cuts as many pixels out of the zoomed image,
    so that its size stays. crop: None for none. affine, elastic: of what the crop shows. flip: "none", "horizontal",
    "vertical" or "both". rotate90: turn by a random multiple of 90 degrees. border, min_visible: see `map_sample`.
    invert: a probability. brightness, contrast: half ranges. pipeline: further changes of intensities, after these.
    scaled: the images were scaled to 0..255.
    """

    pixel_size: float = 0.0
    min_sizes: tuple[int, ...] = (0,)
    sampling: str = "choice"
    max_size: int = 1333
    scales: tuple[float, float] = (1.0, 1.0)
    scale_sampling: str = "log_uniform"
    crop: RandomCrop | None = None
    affine: RandomAffine = field(default_factory=RandomAffine)
    elastic: RandomElastic = field(default_factory=RandomElastic)
    flip: str = "none"
    rotate90: bool = False
    border: str = "constant"
    min_visible: float = 0.0
    invert: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    pipeline: IntensityPipeline | None = None
    scaled: bool = False

    def __post_init__(self) -> None:
        _expect("INPUT.RANDOM_FLIP", self.flip, ("none", "horizontal", "vertical", "both"))
        _expect("INPUT.RANDOM_SCALE_SAMPLING", self.scale_sampling, ("uniform", "log_uniform"))
        _expect("INPUT.BORDER", self.border, BORDERS)
        if self.sampling not in ("choice", "range") or (self.sampling == "range" and len(self.min_sizes) != 2):
            raise ConfigError(
                f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {self.sampling!r} with sizes {self.min_sizes}; expected choice, or "
                "range with the least and the greatest size"
            )
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ConfigError(f"INPUT.RANDOM_SCALE is {self.scales}; expected 0 < least <= most")

    @classmethod
    def from_config(cls, cfg: Config, class_counts: Sequence[int] | np.ndarray = ()) -> TrainPolicy:
        """Read the INPUT keys. class_counts: how many objects of each class the data has, for crops on rare ones."""
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        crop = cfg.INPUT.CROP
        return cls(
            pixel_size=cfg.INPUT.PIXEL_SIZE,
            min_sizes=(sizes,) if isinstance(sizes, int) else tuple(sizes),
            sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            max_size=cfg.INPUT.MAX_SIZE_TRAIN,
            scales=tuple(cfg.INPUT.RANDOM_SCALE),
            scale_sampling=cfg.INPUT.RANDOM_SCALE_SAMPLING,
            crop=RandomCrop.from_config(cfg, class_weights(class_counts, crop.BALANCE_POWER)) if crop.ENABLED else None,
            affine=RandomAffine.from_config(cfg),
            elastic=RandomElastic.from_config(cfg),
            flip=cfg.INPUT.RANDOM_FLIP,
            rotate90=cfg.INPUT.RANDOM_ROTATE90,
            border=cfg.INPUT.BORDER,
            min_visible=cfg.INPUT.MIN_VISIBLE,
            invert=cfg.INPUT.RANDOM_INVERT,
            brightness=cfg.INPUT.RANDOM_BRIGHTNESS,
            contrast=cfg.INPUT.RANDOM_CONTRAST,
            pipeline=IntensityPipeline.from_config(cfg) if cfg.INPUT.ALBUMENTATIONS else None,
            scaled=cfg.INPUT.SCALING != "none",
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return a changed copy of the sample; objects that the crop removes are dropped."""
        value_range = self.value_range(sample.image)
        return self.photometry(self.geometry(sample, rng), rng, value_range)

    def geometry(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return a copy with geometry drawn and applied; objects that the crop removes are dropped."""
        focus = self.crop.draw_focus(sample, rng) if self.crop is not None else None
        seen = size_at_pixel_size(
            sample.height, sample.width, sample.metadata, self.pixel_size, source=sample.file_name
        )
        geometry = self.draw_geometry(sample.height, sample.width, rng, focus, seen=seen)
        return map_sample(sample, geometry, border=self.border, min_visible=self.min_visible)

    def photometry(
        self, sample: Sample, rng: np.random.Generator, value_range: tuple[float, float] | None = None
    ) -> Sample:
        """Return a copy with changes of intensities drawn and applied.

        value_range: of the whole image, where the sample shows a part of it; None reads it off the sample.
        """
        intensities = self.draw_intensities(rng)
        value_range = self.value_range(sample.image) if value_range is None else value_range
        image = _apply(intensities, sample.image, value_range)
        if self.pipeline is not None:
            image = self.pipeline(image, rng, value_range)
        return dataclasses.replace(sample, image=image)

    def value_range(self, image: np.ndarray) -> tuple[float, float]:
        """Return the range in which an image's intensities are changed."""
        return (0.0, 255.0) if self.scaled else natural_range(image)

    def draw_geometry(
        self,
        height: int,
        width: int,
        rng: np.random.Generator,
        focus: Focus | None = None,
        *,
        seen: tuple[int, int] | None = None,
    ) -> GeometricMap:
        """Draw all geometry for an image of height x width.

        focus: a box that the crop shall show. seen: (height, width) with pixels of `pixel_size`; None: as they are.
        """
        zoom = self._draw_zoom(rng)
        short = self._draw_short_edge(rng)
        geometry = GeometricMap.identity(height, width)
        height, width = seen or (height, width)
        geometry = _resize(geometry, height, width)
        if self.crop is not None and not self.crop.after_resize:
            geometry = self._crop_and_resize(geometry, short, zoom, focus, rng)
        else:
            new_height, new_width = resize_shortest_edge_size(height, width, short, self.max_size)
            geometry = _resize(geometry, between(new_height * zoom), between(new_width * zoom))
            if self.crop is not None:
                size = self.crop.draw_size(geometry.height, geometry.width, 1.0, rng)
                geometry = self.crop.cut(geometry, size, focus, rng)
        geometry = self.affine.apply(geometry, rng, focus_in(geometry, focus) if focus else None)
        geometry = self.elastic.apply(geometry, rng)
        return self._flip_and_turn(geometry, rng)

    def _draw_zoom(self, rng: np.random.Generator) -> float:
        if self.scale_sampling == "uniform":
            return rng.uniform(*self.scales)
        return math.exp(rng.uniform(math.log(self.scales[0]), math.log(self.scales[1])))

    def _flip_and_turn(self, geometry: GeometricMap, rng: np.random.Generator) -> GeometricMap:
        if self.flip in ("horizontal", "both") and rng.random() < 0.5:
            geometry = geometry.flip_horizontal()
        if self.flip in ("vertical", "both") and rng.random() < 0.5:
            geometry = geometry.flip_vertical()
        if self.rotate90:
            geometry = geometry.rotate90(int(rng.integers(4)))
        return geometry

    def _crop_and_resize(
        self, geometry: GeometricMap, short: int, zoom: float, focus: Focus | None, rng: np.random.Generator
    ) -> GeometricMap:
        """Detectron2's order. Cutting S pixels out of the zoomed image is cutting out S / zoom and stretching them."""
        edges = (geometry.height, geometry.width)
        wanted = self.crop.draw_size(*edges, zoom, rng)
        if self.crop.kind.startswith("relative"):
            crop = plain = wanted
            factors = [zoom, zoom]
        else:
            seen = [min(size, between(edge * zoom)) for size, edge in zip(wanted, edges, strict=True)]
            crop = [between(size / zoom, edge) for size, edge in zip(seen, edges, strict=True)]
            # The crop without zoom decides the scale: an image used whole would lose its zoom to the shortest edge.
            plain = [min(size, edge) for size, edge in zip(wanted, edges, strict=True)]
            factors = [size / without for size, without in zip(seen, plain, strict=True)]
        geometry = self.crop.cut(geometry, crop, focus, rng)
        new = resize_shortest_edge_size(plain[0], plain[1], short, self.max_size)
        return _resize(geometry, between(new[0] * factors[0]), between(new[1] * factors[1]))

    def _draw_short_edge(self, rng: np.random.Generator) -> int:
        if self.sampling == "range":
            return int(rng.integers(self.min_sizes[0], self.min_sizes[1] + 1))
        return int(self.min_sizes[int(rng.integers(len(self.min_sizes)))])

    def draw_intensities(self, rng: np.random.Generator) -> Intensities:
        """Draw the changes of intensities."""
        return Intensities(
            contrast=1.0 + rng.uniform(-self.contrast, self.contrast),
            brightness=rng.uniform(-self.brightness, self.brightness),
            turned=bool(rng.random() < self.invert),
        )


def _expect(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key} is {value!r}; expected one of {', '.join(choices)}")


def _resize(geometry: GeometricMap, height: int, width: int) -> GeometricMap:
    same = (height, width) == (geometry.height, geometry.width)
    return geometry if same else geometry.resize(height, width)


def _apply(intensities: Intensities, image: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    if intensities.contrast != 1.0 or intensities.brightness != 0.0:
        image = change_intensities(
            image, contrast=intensities.contrast, brightness=intensities.brightness, value_range=value_range
        )
    return invert(image, value_range) if intensities.turned else image
