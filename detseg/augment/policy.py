"""The random changes of training: what the INPUT keys ask for, drawn first and then applied in one go."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detseg.augment.geometric import GeometricMap, map_sample
from detseg.augment.photometric import change_intensities, invert, natural_range
from detseg.errors import ConfigError
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.config import Config

CROP_TYPES = ("relative", "relative_range", "absolute", "absolute_range")


def resize_shortest_edge_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the shorter edge `short`, or less where the longer one would pass `longest`.

    Rounded as Detectron2's ResizeShortestEdge does. short = 0: the size as it is.
    """
    if short == 0:
        return height, width
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    # An edge of less than half a pixel would vanish; one pixel is the least an image has.
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


@dataclass(frozen=True)
class Intensities:
    """Drawn changes of intensities. contrast: a factor. brightness: a fraction of the range. turned: inverted."""

    contrast: float = 1.0
    brightness: float = 0.0
    turned: bool = False


@dataclass(frozen=True)
class TrainPolicy:
    """Crop, resize (in this order, as Detectron2, or the other way round), flips, turns and intensities of a sample.

    min_sizes, sampling: the shorter edge, pixels: one of several ("choice") or between two ("range"); 0 keeps the size.
    max_size: of the longer edge. scales: least and most further zoom, drawn log-uniformly; a crop in absolute pixels
    cuts as many pixels out of the zoomed image, so that its size stays. crop_type: "" for none, or one of `CROP_TYPES`
    with crop_size (height, width; pixels, fractions, or (least, most) pixels for "absolute_range"), as Detectron2's
    RandomCrop; smaller images are used whole. crop_after_resize: cut out of the resized and zoomed image. flip:
    "none", "horizontal", "vertical" or "both". rotate90: turn by a random multiple of 90 degrees. invert: a
    probability. brightness, contrast: half ranges. scaled: the images were scaled to 0..255.
    """

    min_sizes: tuple[int, ...] = (0,)
    sampling: str = "choice"
    max_size: int = 1333
    scales: tuple[float, float] = (1.0, 1.0)
    crop_type: str = ""
    crop_size: tuple[float, float] = (0.9, 0.9)
    crop_after_resize: bool = False
    flip: str = "none"
    rotate90: bool = False
    invert: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.crop_type and self.crop_type not in CROP_TYPES:
            raise ConfigError(f"INPUT.CROP.TYPE is {self.crop_type!r}; expected one of {', '.join(CROP_TYPES)}")
        if self.flip not in ("none", "horizontal", "vertical", "both"):
            raise ConfigError(f"INPUT.RANDOM_FLIP is {self.flip!r}; expected none, horizontal, vertical or both")
        if self.sampling not in ("choice", "range") or (self.sampling == "range" and len(self.min_sizes) != 2):
            raise ConfigError(
                f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {self.sampling!r} with sizes {self.min_sizes}; expected choice, or "
                "range with the least and the greatest size"
            )
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ConfigError(f"INPUT.RANDOM_SCALE is {self.scales}; expected 0 < least <= most")

    @classmethod
    def from_config(cls, cfg: Config) -> TrainPolicy:
        """Read the INPUT keys."""
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        return cls(
            min_sizes=(sizes,) if isinstance(sizes, int) else tuple(sizes),
            sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            max_size=cfg.INPUT.MAX_SIZE_TRAIN,
            scales=tuple(cfg.INPUT.RANDOM_SCALE),
            crop_type=cfg.INPUT.CROP.TYPE if cfg.INPUT.CROP.ENABLED else "",
            crop_size=tuple(cfg.INPUT.CROP.SIZE),
            crop_after_resize=cfg.INPUT.CROP.AFTER_RESIZE,
            flip=cfg.INPUT.RANDOM_FLIP,
            rotate90=cfg.INPUT.RANDOM_ROTATE90,
            invert=cfg.INPUT.RANDOM_INVERT,
            brightness=cfg.INPUT.RANDOM_BRIGHTNESS,
            contrast=cfg.INPUT.RANDOM_CONTRAST,
            scaled=cfg.INPUT.SCALING != "none",
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return a changed copy of the sample; objects that the crop removes are dropped."""
        value_range = self.value_range(sample.image)
        return self.photometry(self.geometry(sample, rng), rng, value_range)

    def geometry(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return a copy with geometry drawn and applied; objects that the crop removes are dropped."""
        return map_sample(sample, self.draw_geometry(sample.height, sample.width, rng))

    def photometry(
        self, sample: Sample, rng: np.random.Generator, value_range: tuple[float, float] | None = None
    ) -> Sample:
        """Return a copy with changes of intensities drawn and applied.

        value_range: of the whole image, where the sample shows a part of it; None reads it off the sample.
        """
        intensities = self.draw_intensities(rng)
        value_range = self.value_range(sample.image) if value_range is None else value_range
        return dataclasses.replace(sample, image=_apply(intensities, sample.image, value_range))

    def value_range(self, image: np.ndarray) -> tuple[float, float]:
        """Return the range in which an image's intensities are changed."""
        return (0.0, 255.0) if self.scaled else natural_range(image)

    def draw_geometry(self, height: int, width: int, rng: np.random.Generator) -> GeometricMap:
        """Draw crop, resize, flips and turns for an image of height x width."""
        zoom = math.exp(rng.uniform(math.log(self.scales[0]), math.log(self.scales[1])))
        short = self._draw_short_edge(rng)
        geometry = GeometricMap.identity(height, width)
        if self.crop_type and not self.crop_after_resize:
            geometry = self._crop_and_resize(geometry, short, zoom, rng)
        else:
            new_height, new_width = resize_shortest_edge_size(height, width, short, self.max_size)
            geometry = _resize(geometry, _between(new_height * zoom), _between(new_width * zoom))
            if self.crop_type:
                crop = self._draw_crop_size(geometry.height, geometry.width, 1.0, rng)
                crop = [min(crop[0], geometry.height), min(crop[1], geometry.width)]
                geometry = _crop_anywhere(geometry, crop[0], crop[1], rng)
        if self.flip in ("horizontal", "both") and rng.random() < 0.5:
            geometry = geometry.flip_horizontal()
        if self.flip in ("vertical", "both") and rng.random() < 0.5:
            geometry = geometry.flip_vertical()
        if self.rotate90:
            geometry = geometry.rotate90(int(rng.integers(4)))
        return geometry

    def _crop_and_resize(
        self, geometry: GeometricMap, short: int, zoom: float, rng: np.random.Generator
    ) -> GeometricMap:
        """Detectron2's order. Cutting S pixels out of the zoomed image is cutting out S / zoom and stretching them."""
        edges = (geometry.height, geometry.width)
        wanted = self._draw_crop_size(*edges, zoom, rng)
        if self.crop_type.startswith("relative"):
            crop = plain = wanted
            factors = [zoom, zoom]
        else:
            seen = [min(size, _between(edge * zoom)) for size, edge in zip(wanted, edges, strict=True)]
            crop = [_between(size / zoom, edge) for size, edge in zip(seen, edges, strict=True)]
            # The crop without zoom decides the scale: an image used whole would lose its zoom to the shortest edge.
            plain = [min(size, edge) for size, edge in zip(wanted, edges, strict=True)]
            factors = [size / without for size, without in zip(seen, plain, strict=True)]
        geometry = _crop_anywhere(geometry, crop[0], crop[1], rng)
        new = resize_shortest_edge_size(plain[0], plain[1], short, self.max_size)
        return _resize(geometry, _between(new[0] * factors[0]), _between(new[1] * factors[1]))

    def _draw_crop_size(self, height: int, width: int, zoom: float, rng: np.random.Generator) -> list[int]:
        """Return [height, width] of the crop: relative ones in the image's pixels, absolute ones as they shall be seen.

        Absolute ones may be larger than the image.
        """
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return [int(first), int(second)]
        if self.crop_type == "absolute_range":
            longest = [max(edge, _between(edge * zoom)) for edge in (height, width)]
            return [int(rng.integers(min(edge, int(first)), min(edge, int(second)) + 1)) for edge in longest]
        vary = self.crop_type == "relative_range"
        fractions = (rng.uniform(first, 1.0), rng.uniform(second, 1.0)) if vary else (first, second)
        return [_between(height * fractions[0], height), _between(width * fractions[1], width)]

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


def _resize(geometry: GeometricMap, height: int, width: int) -> GeometricMap:
    same = (height, width) == (geometry.height, geometry.width)
    return geometry if same else geometry.resize(height, width)


def _crop_anywhere(geometry: GeometricMap, height: int, width: int, rng: np.random.Generator) -> GeometricMap:
    y0 = int(rng.integers(geometry.height - height + 1))
    x0 = int(rng.integers(geometry.width - width + 1))
    return geometry.crop(y0, x0, height, width)


def _between(length: float, most: int | None = None) -> int:
    """Round an edge's length to whole pixels, at least 1 and at most `most`."""
    rounded = max(int(length + 0.5), 1)
    return rounded if most is None else min(rounded, most)


def _apply(intensities: Intensities, image: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    if intensities.contrast != 1.0 or intensities.brightness != 0.0:
        image = change_intensities(
            image, contrast=intensities.contrast, brightness=intensities.brightness, value_range=value_range
        )
    return invert(image, value_range) if intensities.turned else image
