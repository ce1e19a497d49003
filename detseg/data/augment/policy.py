"""The augmentation policy of training: all random choices of the INPUT keys, drawn first and then applied at once."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.config.options import Problems, key, part
from detseg.data.augment.geometric import Box, GeometricMap, map_sample
from detseg.data.augment.intensities import (
    AlbumentationsPipeline,
    ValueRange,
    change_intensities,
    invert,
    mix_stains,
    natural_range,
)
from detseg.data.augment.random_geometry import RandomAffine, RandomCrop, RandomElastic, box_in_output, whole_pixels
from detseg.data.augment.resampling import BORDERS
from detseg.data.object_size import TypicalDiameters, image_diameter, object_scale
from detseg.data.preprocess import ScaleOptions, resize_shortest_edge_size, size_at_pixel_size
from detseg.structures.sample import Sample


@dataclass(frozen=True)
class TrainPolicy(ScaleOptions):
    """Crop, resize (in this order, as in Detectron2, or the other way round), affine and elastic changes, intensities.

    pixel_size: micrometres to which images are rescaled first, so that the rest is in pixels of this size; 0 for off.
    object_size: instead, pixels to which the diameter of an image's labelled objects is rescaled; min_sizes are then
    ignored, and max_size applies only without a crop. typical: diameters of the data set, for images with few or no
    objects; see `for_data`. min_sizes, sampling: the shorter edge in pixels: one of several ("choice") or between two
    ("range"); 0 keeps the size. max_size: of the longer edge. scales: range of an additional zoom, uniform ("uniform")
    or uniform in its logarithm ("log_uniform"), by scale_sampling; a crop in absolute pixels has the same size in the
    zoomed image. affine, elastic: of the cropped image. flip: "none", "horizontal", "vertical" or "both". rotate90:
    rotate by a random multiple of 90 degrees. border, min_visible: see `map_sample`. invert: a probability.
    brightness, contrast: half ranges. stain: standard deviation of the mixture of channels in optical density, see
    `mix_stains`. pipeline: further changes of intensities, after these.
    """

    min_sizes: tuple[int, ...] = key("MIN_SIZE_TRAIN", default=(0,), at_least=0)
    sampling: str = key("MIN_SIZE_TRAIN_SAMPLING", default="choice", choices=("choice", "range"))
    max_size: int = key("MAX_SIZE_TRAIN", default=1333, at_least=1)
    scales: tuple[float, float] = key("RANDOM_SCALE", default=(1.0, 1.0), length=2, at_least=0.05, at_most=20)
    scale_sampling: str = key("RANDOM_SCALE_SAMPLING", default="log_uniform", choices=("log_uniform", "uniform"))
    crop: RandomCrop = part(RandomCrop, default=RandomCrop(enabled=False))
    affine: RandomAffine = part(RandomAffine, default=RandomAffine())
    elastic: RandomElastic = part(RandomElastic, default=RandomElastic())
    flip: str = key("RANDOM_FLIP", default="none", choices=("none", "horizontal", "vertical", "both"))
    rotate90: bool = key("RANDOM_ROTATE90", default=False)
    border: str = key("BORDER", default="constant", choices=BORDERS)
    min_visible: float = key("MIN_VISIBLE", default=0.0, at_least=0, at_most=1)
    invert: float = key("RANDOM_INVERT", default=0.0, at_least=0, at_most=1)
    brightness: float = key("RANDOM_BRIGHTNESS", default=0.0, at_least=0, at_most=1)
    contrast: float = key("RANDOM_CONTRAST", default=0.0, at_least=0, at_most=1)
    stain: float = key("RANDOM_STAIN", default=0.0, at_least=0, at_most=1)
    pipeline: AlbumentationsPipeline = part(AlbumentationsPipeline, default=AlbumentationsPipeline())
    typical: TypicalDiameters | None = None

    def check(self, problems: Problems) -> None:
        super().check(problems)
        if not self.min_sizes:
            problems.add("INPUT.MIN_SIZE_TRAIN", "expected at least one size, or [0] for no resizing")
        elif self.sampling == "range":
            problems.pair("INPUT.MIN_SIZE_TRAIN", 1, math.inf, equal=True)
        problems.pair("INPUT.RANDOM_SCALE", 0.05, 20, equal=True)
        if self.stain and (problems.cfg.INPUT.GRAYSCALE or self.pipeline.num_channels != 3):
            problems.add(
                "INPUT.RANDOM_STAIN", "changes colours: set INPUT.GRAYSCALE False, with a model of three channels, or 0"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return a changed copy of the sample, without objects outside the crop."""
        return self.photometry(self.geometry(sample, rng), rng, natural_range(sample.image))

    def for_data(self, dataset: CocoDataset) -> TrainPolicy:
        """Return the policy for a data set: crops on rare classes need its number of objects per class, and
        `object_size` its typical diameters.
        """
        policy = self
        if self.crop.balance_power:
            policy = dataclasses.replace(policy, crop=self.crop.for_counts(dataset.objects_per_image().sum(axis=0)))
        if self.object_size:
            policy = dataclasses.replace(policy, typical=TypicalDiameters.of_dataset(dataset))
        return policy

    def geometry(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return a copy with random geometry, without objects outside the crop."""
        box = self.crop.draw_object(sample, rng)
        geometry = self.draw_geometry(sample.height, sample.width, rng, box, size=self._size_of(sample))
        return map_sample(sample, geometry, border=self.border, min_visible=self.min_visible)

    def _size_of(self, sample: Sample) -> tuple[int, int]:
        """Return (height, width) of a whole sample at `pixel_size`, or at `object_size`."""
        height, width = sample.height, sample.width
        if not self.object_size:
            return size_at_pixel_size(height, width, sample.metadata, self.pixel_size, source=sample.file_name)
        typical = self.object_size if self.typical is None else self.typical.of(sample.metadata)
        boxes = np.zeros((0, 4)) if sample.layers is None else sample.layers.boxes()
        factor = object_scale(self.object_size, image_diameter(boxes, typical))
        if not self.crop.enabled:
            factor = min(factor, self.max_size / max(height, width))
        return whole_pixels(height * factor), whole_pixels(width * factor)

    def photometry(self, sample: Sample, rng: np.random.Generator, value_range: ValueRange) -> Sample:
        """Return a copy with random changes of intensities.

        value_range: of the whole image, of which the sample may be a part.
        """
        image = sample.image
        contrast = 1.0 + rng.uniform(-self.contrast, self.contrast)
        brightness = rng.uniform(-self.brightness, self.brightness)
        inverted = rng.random() < self.invert
        if contrast != 1.0 or brightness != 0.0:
            image = change_intensities(image, contrast=contrast, brightness=brightness, value_range=value_range)
        if self.stain:
            image = self._stained(image, rng, value_range)
        if inverted:
            image = invert(image, value_range)
        if self.pipeline.entries:
            image = self.pipeline(image, rng, value_range)
        return dataclasses.replace(sample, image=image)

    def _stained(self, image: np.ndarray, rng: np.random.Generator, value_range: ValueRange) -> np.ndarray:
        """Apply stain augmentation to a grayscale image, which becomes coloured, or to one with three channels."""
        mixture = np.eye(3) + rng.normal(0, self.stain, (3, 3))
        on_dark = rng.random() < 0.5
        if image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        return mix_stains(image, mixture, value_range, on_dark=on_dark)

    def draw_geometry(
        self,
        height: int,
        width: int,
        rng: np.random.Generator,
        box: Box | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> GeometricMap:
        """Draw all geometry for an image of height x width.

        box: to be shown in the crop. size: (height, width) by `pixel_size` or `object_size`; None: the image's own.
        """
        zoom = self.draw_zoom(rng)
        if self.sampling == "range":
            short = int(rng.integers(self.min_sizes[0], self.min_sizes[1] + 1))
        else:
            short = int(self.min_sizes[int(rng.integers(len(self.min_sizes)))])
        if self.object_size:
            short = 0
        geometry = GeometricMap.identity(height, width)
        height, width = size or (height, width)
        geometry = _resize(geometry, height, width)
        if self.crop.enabled and not self.crop.after_resize:
            geometry = self._crop_and_resize(geometry, short, zoom, box, rng)
        else:
            new_height, new_width = resize_shortest_edge_size(height, width, short, self.max_size)
            geometry = _resize(geometry, whole_pixels(new_height * zoom), whole_pixels(new_width * zoom))
            if self.crop.enabled:
                geometry = self.crop.cut(
                    geometry, self.crop.draw_size(geometry.height, geometry.width, 1.0, rng), box, rng
                )
        return self.turn_and_bend(geometry, rng, box_in_output(geometry, box) if box else None)

    def draw_zoom(self, rng: np.random.Generator) -> float:
        """Draw the additional zoom."""
        if self.scale_sampling == "uniform":
            return rng.uniform(*self.scales)
        return math.exp(rng.uniform(math.log(self.scales[0]), math.log(self.scales[1])))

    def turn_and_bend(self, geometry: GeometricMap, rng: np.random.Generator, keep: Box | None = None) -> GeometricMap:
        """Draw the changes after crop and zoom: affine, elastic, flips and rotations. keep: see RandomAffine."""
        geometry = self.affine.apply(geometry, rng, keep)
        geometry = self.elastic.apply(geometry, rng)
        if self.flip in ("horizontal", "both") and rng.random() < 0.5:
            geometry = geometry.flip_horizontal()
        if self.flip in ("vertical", "both") and rng.random() < 0.5:
            geometry = geometry.flip_vertical()
        return geometry.rotate90(int(rng.integers(4))) if self.rotate90 else geometry

    def _crop_and_resize(
        self, geometry: GeometricMap, short: int, zoom: float, box: Box | None, rng: np.random.Generator
    ) -> GeometricMap:
        """Crop and resize in Detectron2's order. A crop of S pixels in the zoomed image is one of S / zoom, resized."""
        edges = (geometry.height, geometry.width)
        wanted = self.crop.draw_size(*edges, zoom, rng)
        if self.crop.kind.startswith("relative"):
            crop = plain = wanted
            factors = [zoom, zoom]
        else:
            seen = [min(size, whole_pixels(edge * zoom)) for size, edge in zip(wanted, edges, strict=True)]
            crop = [whole_pixels(size / zoom, edge) for size, edge in zip(seen, edges, strict=True)]
            # The crop without zoom determines the scale: else resizing of the shortest edge would undo the zoom of an
            # image that is used whole.
            plain = [min(size, edge) for size, edge in zip(wanted, edges, strict=True)]
            factors = [size / without for size, without in zip(seen, plain, strict=True)]
        geometry = self.crop.cut(geometry, crop, box, rng)
        new = resize_shortest_edge_size(plain[0], plain[1], short, self.max_size)
        return _resize(geometry, whole_pixels(new[0] * factors[0]), whole_pixels(new[1] * factors[1]))


def _resize(geometry: GeometricMap, height: int, width: int) -> GeometricMap:
    same = (height, width) == (geometry.height, geometry.width)
    return geometry if same else geometry.resize(height, width)
