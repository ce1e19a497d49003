"""A model together with the preprocessing of its images: channels, scaling, inversion, size."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.data.augment.resampling import resize_image
from detseg.data.intensity_range import IntensityRange, levels_of
from detseg.data.object_size import DIAMETER, object_scale
from detseg.data.preprocess import (
    ImagePreprocess,
    TestSizeOptions,
    known_pixel_size,
    network_size,
    resize_shortest_edge_size,
)
from detseg.errors import DataError
from detseg.images.size import max_pixels
from detseg.inference.precision import AUTO, FULL, check_precision, choose_precision, computing
from detseg.inference.views import PLAIN, View
from detseg.models.base import Segmenter

logger = logging.getLogger(__name__)

# At most this many images with unsuitable intensities are named: usually all images of a folder are alike.
_NAMED = 3
# Tiled images are not scaled below this unless requested: little would be left of a cell.
LEAST_SCALE = 0.2


@dataclass(frozen=True, eq=False)
class ParentImage:
    """The image that tiles are cut from, which determines their scale and intensities.

    size: (height, width). facts, name: see InputImage. overview: pixels (h, w, C) sampled from the whole image; None if
    no model needs them. scale: network pixels per image pixel; None: as for the whole image. levels: what models
    measured on the overview.
    """

    size: tuple[int, int]
    facts: Mapping[str, Any]
    name: str
    overview: np.ndarray | None = None
    scale: float | None = None
    levels: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InputImage:
    """An image, or a tile of one.

    pixels: (H, W, C) uint8, uint16 or float32 as in the file. facts: as returned by `images.reading.read_picture`
    (`pixel_size`, `channel_names`), and `object_diameter` if the model scales images by it. name: for messages. parent:
    the image that this is a tile of, if any.
    """

    pixels: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "image"
    parent: ParentImage | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[:2]


@dataclass
class ImageModel:
    """A model with the preprocessing of its images, and its role if several models are combined.

    segmenter: any model; it predicts on its present device and is never trained here. preprocess: channels, scaling and
    inversion, as in training. size: of images at the network's input. precision: see `inference.precision`; "auto" is
    replaced by the chosen one. intensities: of the training images; None disables warnings. weight: of its boxes and
    masks relative to other models'. gives_boxes, gives_masks: whether they are used. places: of its classes among those
    of the combined models; None: the same. typical_diameter: of the objects in the training images, in pixels of their
    files; None if not known; see `data.object_size`.

    Raises:
        ConfigError: an unknown precision.
    """

    segmenter: Segmenter
    preprocess: ImagePreprocess
    size: TestSizeOptions = field(default_factory=TestSizeOptions)
    precision: str = FULL
    intensities: IntensityRange | None = None
    weight: float = 1.0
    gives_boxes: bool = True
    gives_masks: bool = True
    places: np.ndarray | None = None
    typical_diameter: float | None = None
    _outside: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.precision == AUTO:
            self.precision = choose_precision(self.segmenter, {})

    def network_size(self, image: InputImage, view: View = PLAIN) -> tuple[int, int]:
        """Return (height, width) of an image at the network's input, before the view's symmetry is applied."""
        if image.parent is None:
            return self._whole_size(image.size, image.facts, image.name, view)
        y, x = self.tile_scale(image.parent, view)
        return max(round(image.size[0] * y), 1), max(round(image.size[1] * x), 1)

    def object_scale(self, facts: Mapping[str, Any]) -> float:
        """Network pixels per image pixel, from the diameter of the image's objects, else from the typical one."""
        diameter = facts.get(DIAMETER) or self.typical_diameter or self.size.object_size
        return object_scale(self.size.object_size, diameter)

    def _whole_size(self, size: tuple[int, int], facts: Mapping[str, Any], name: str, view: View) -> tuple[int, int]:
        if self.size.object_size:
            scale = min(self.object_scale(facts), math.sqrt(max_pixels() / (size[0] * size[1]))) * view.scale
            return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
        first = view.resized_twice or not view.short
        short, longest = (self.size.min_size, self.size.max_size) if first else (view.short, view.longest)
        pixel_size = self.size.pixel_size
        height, width = network_size(*size, facts, pixel_size=pixel_size, short=short, longest=longest, source=name)
        if view.resized_twice:
            height, width = resize_shortest_edge_size(height, width, view.short, view.longest)
        return max(round(height * view.scale), 1), max(round(width * view.scale), 1)

    def tile_scale(self, parent: ParentImage, view: View = PLAIN) -> tuple[float, float]:
        """Return network pixels per tile pixel (y, x). Raises DataError if that is not known."""
        if parent.scale is not None:
            return parent.scale * view.scale, parent.scale * view.scale
        if self.size.object_size:
            scale = self.object_scale(parent.facts) * view.scale
            return scale, scale
        pixel_size, short = self.size.pixel_size, view.short or self.size.min_size
        if pixel_size and not short:
            own = known_pixel_size(parent.facts, pixel_size, source=parent.name)
            return own[0] / pixel_size * view.scale, own[1] / pixel_size * view.scale
        height, width = self._whole_size(parent.size, parent.facts, parent.name, view)
        if height < parent.size[0] * LEAST_SCALE and not pixel_size:
            raise DataError(
                f"{parent.name}: the model resizes images to a shorter edge of {short} pixels, which would shrink this "
                f"one {parent.size[0] / height:.0f} times; choose the scale of its tiles: --tile-scale 1 keeps the "
                "pixels of the file"
            )
        return height / parent.size[0], width / parent.size[1]

    def channels(self, image: InputImage) -> np.ndarray:
        """Return the image (H, W, C) at its own size with channels selected and scaled; one channel is not repeated."""
        about = {"source": image.name, "facts": image.facts}
        levels = None
        if image.parent is not None and image.parent.overview is not None:
            known = image.parent.levels
            if self.preprocess not in known:
                known[self.preprocess] = self.preprocess.measure(image.parent.overview, **about)
            levels = known[self.preprocess]
        return self.preprocess.prepare(image.pixels, levels=levels, **about)

    def resized(self, channels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resize the result of `channels` to the network's input (height, width, num_channels)."""
        return self.preprocess.expand(resize_image(channels, *size))

    def check_intensities(self, image: InputImage) -> None:
        """Warn if an image, or rows sampled from a large one, is far brighter or darker than the training images."""
        if self.intensities is None or self.preprocess.scaling == "percentile":  # adapts to every image
            return
        height, width = image.size
        step = max(math.isqrt(height * width // 2**20), 1)
        few = self.preprocess.prepare(image.pixels[::step, ::step], source=image.name, facts=image.facts)
        misfit = self.intensities.misfit(levels_of(few))
        if misfit is None:
            return
        self._outside += 1
        if self._outside <= _NAMED:
            logger.warning(
                "%s: its intensities are %s: few objects, or wrong ones, will be found. Bring it to the range of the "
                "training images, or train with INPUT.SCALING percentile, which does so with every image%s",
                image.name,
                misfit,
                "; further images like this are not named" if self._outside == _NAMED else "",
            )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model computes with its precision."""
        return computing(self.segmenter, self.precision)
