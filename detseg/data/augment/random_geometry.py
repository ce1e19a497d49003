"""Random crops, anywhere or around an object; random affine changes and elastic deformations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.config.options import Options, Problems, key
from detseg.data.augment.geometric import Box, GeometricMap
from detseg.data.augment.transforms import Displacement
from detseg.structures.sample import Sample


@dataclass(frozen=True)
class RandomCrop(Options):
    """A random crop.

    enabled: False for no crop. kind: with the size (height, width; pixels, fractions, or (minimum, maximum) pixels for
    "absolute_range") as in Detectron2's RandomCrop; smaller images are used whole, or padded to the size with `pad`.
    after_resize: crop the resized and zoomed image. on_objects: probability of a crop around an object of the image;
    otherwise it is anywhere. balance_power: preference for rare classes, see `for_counts`. class_weights: relative
    weights of the classes of chosen objects; () for equal ones.
    """

    section = "INPUT.CROP"

    kind: str = key("TYPE", default="absolute", choices=("relative", "relative_range", "absolute", "absolute_range"))
    size: tuple[float, float] = key("SIZE", default=(512, 512), length=2, above=0)
    after_resize: bool = key("AFTER_RESIZE", default=False)
    pad: bool = key("PAD", default=False)
    on_objects: float = key("ON_OBJECTS", default=0.0, at_least=0, at_most=1)
    balance_power: float = key("BALANCE_POWER", default=0.0, at_least=0, at_most=1)
    enabled: bool = key("ENABLED", default=True)
    class_weights: tuple[float, ...] = ()

    def check(self, problems: Problems) -> None:
        size = "INPUT.CROP.SIZE"
        if self.kind.startswith("relative"):
            problems.within(size, most=1)
        elif self.enabled and not all(isinstance(length, int) for length in self.size):
            problems.add(size, f"expected [height, width] in pixels for INPUT.CROP.TYPE {self.kind}")
        elif self.enabled and self.kind == "absolute_range":
            problems.pair(size, 1, math.inf, equal=True)
        if self.pad and not (self.kind == "absolute" and self.after_resize):
            problems.add("INPUT.CROP.PAD", "needs INPUT.CROP.TYPE absolute and INPUT.CROP.AFTER_RESIZE True")
        for name, value in (("PAD", self.pad), ("ON_OBJECTS", self.on_objects)):
            if value and not self.enabled:
                problems.add(f"INPUT.CROP.{name}", "there is no crop: set INPUT.CROP.ENABLED True")
        if self.balance_power and not self.on_objects:
            problems.add("INPUT.CROP.BALANCE_POWER", "applies to INPUT.CROP.ON_OBJECTS: set that above 0")

    def for_counts(self, counts: Sequence[int] | np.ndarray) -> RandomCrop:
        """Return the crop for data with these numbers of objects per class.

        `balance_power` 0 gives equal weights, 1 shows all classes equally often. Classes without objects get weight 0.
        """
        if self.balance_power == 0:
            return self
        weights = tuple(float(count) ** -self.balance_power if count else 0.0 for count in counts)
        return dataclasses.replace(self, class_weights=weights)

    def draw_size(self, height: int, width: int, zoom: float, rng: np.random.Generator) -> list[int]:
        """Return [height, width] of the crop: relative sizes in the image's pixels, absolute ones in zoomed pixels.

        Absolute sizes may exceed the image, of height x width pixels.
        """
        first, second = self.size
        if self.kind == "absolute":
            return [int(first), int(second)]
        if self.kind == "absolute_range":
            longest = [max(edge, whole_pixels(edge * zoom)) for edge in (height, width)]
            return [int(rng.integers(min(edge, int(first)), min(edge, int(second)) + 1)) for edge in longest]
        vary = self.kind == "relative_range"
        fractions = (rng.uniform(first, 1.0), rng.uniform(second, 1.0)) if vary else (first, second)
        return [whole_pixels(height * fractions[0], height), whole_pixels(width * fractions[1], width)]

    def draw_object(self, sample: Sample, rng: np.random.Generator) -> Box | None:
        """Return the box of an object for the crop, or None for anywhere."""
        if not self.enabled or self.on_objects == 0 or rng.random() >= self.on_objects:
            return None
        if sample.layers is None or not len(sample.layers):
            return None
        weights = np.ones(len(sample.classes))
        if self.class_weights:
            weights = np.asarray(self.class_weights)[sample.classes]
        if not weights.any():
            return None
        index = int(rng.choice(len(weights), p=weights / weights.sum()))
        # One comparison with its id is faster than computing the boxes of all.
        pixels = (sample.layers.layers == index + 1).any(axis=0)
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        if not len(rows):
            return None
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)

    def cut(
        self, geometry: GeometricMap, size: Sequence[int], box: Box | None, rng: np.random.Generator
    ) -> GeometricMap:
        """Crop [height, width] from the output of a map that crops or resizes; with `pad`, pad if it is smaller.

        Without `pad`, smaller images are used whole. box: of the input; it is inside the crop, or fills it if it is
        larger.
        """
        height, width = size
        if not self.pad:
            height, width = min(height, geometry.height), min(width, geometry.width)
        left, top, right, bottom = box_in_output(geometry, box) if box else (None,) * 4
        y0 = _draw_start(geometry.height, height, top, bottom, rng)
        x0 = _draw_start(geometry.width, width, left, right, rng)
        return geometry.window(y0, x0, height, width)


def box_in_output(geometry: GeometricMap, box: Box) -> Box:
    """Return a box of the input in coordinates of the map's output; the map only crops and resizes."""
    (scale_x, _, x0), (_, scale_y, y0), _ = geometry.matrix
    return (box[0] - x0) / scale_x, (box[1] - y0) / scale_y, (box[2] - x0) / scale_x, (box[3] - y0) / scale_y


def _draw_start(length: int, size: int, start: float | None, end: float | None, rng: np.random.Generator) -> int:
    """Draw the start along one axis of a crop of `size` in `length` pixels, so that it contains start..end."""
    # If the image is smaller than the crop, padding starts before it.
    least, most = min(0, length - size), max(0, length - size)
    if start is not None:
        first, last = sorted((end - size, start))
        least = min(max(int(np.ceil(first)), least), most)
        most = max(min(int(np.floor(last)), most), least)
    return int(rng.integers(least, most + 1))


def whole_pixels(length: float, most: int | None = None) -> int:
    """Round a length to whole pixels, at least 1 and at most `most`."""
    rounded = max(int(length + 0.5), 1)
    return rounded if most is None else min(rounded, most)


@dataclass(frozen=True)
class RandomAffine(Options):
    """An affine change that preserves area.

    probability: of any change. rotation, shear: half ranges, degrees. stretch: maximum ratio, 1 for none, by which one
    direction is stretched and the other compressed. translate: half range, fraction of height and width.
    """

    section = "INPUT.RANDOM_AFFINE"

    probability: float = key("PROBABILITY", default=1.0, at_least=0, at_most=1)
    rotation: float = key("ROTATION", default=0.0, at_least=0, at_most=180)
    shear: float = key("SHEAR", default=0.0, at_least=0, at_most=60)
    stretch: float = key("STRETCH", default=1.0, at_least=1, at_most=10)
    translate: float = key("TRANSLATE", default=0.0, at_least=0, at_most=1)

    @property
    def is_on(self) -> bool:
        return self.probability > 0 and (self.rotation, self.shear, self.stretch, self.translate) != (0, 0, 1, 0)

    def apply(self, geometry: GeometricMap, rng: np.random.Generator, box: Box | None = None) -> GeometricMap:
        """Draw a change and return the map with it.

        The centre of the output, or of a box of the output to be kept, is fixed. The view is then shifted so that as
        little as possible is beyond the image; the box stays visible.
        """
        if not self.is_on or rng.random() >= self.probability:
            return geometry
        angle, shear = (math.radians(rng.uniform(-most, most)) for most in (self.rotation, self.shear))
        # Half of the ratio for each direction.
        factor = math.exp(rng.uniform(-0.5, 0.5) * math.log(self.stretch))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = turn @ [[1, math.tan(shear)], [0, 1]] @ [[factor, 0], [0, 1 / factor]]
        x0, y0, x1, y1 = box or (0, 0, geometry.width, geometry.height)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        step = np.eye(3)
        step[:2, :2] = linear
        step[:2, 2] = np.array([x, y]) - linear @ (x, y)  # (x, y) is fixed
        # The box around the transformed box.
        half_x, half_y = np.abs(np.linalg.inv(linear)) @ ((x1 - x0) / 2, (y1 - y0) / 2)
        keep = (x - half_x, y - half_y, x + half_x, y + half_y) if box else None
        geometry = geometry.affine(step).moved_inside(keep)
        if self.translate:
            shift_y, shift_x = rng.uniform(-self.translate, self.translate, 2) * (geometry.height, geometry.width)
            geometry = geometry.affine(np.array([[1, 0, shift_x], [0, 1, shift_y], [0, 0, 1]]))
        return geometry


@dataclass(frozen=True)
class RandomElastic(Options):
    """An elastic deformation. magnitude: standard deviation of the displacements, spacing: of control points; output
    pixels.

    probability: of any change.
    """

    section = "INPUT.RANDOM_ELASTIC"

    probability: float = key("PROBABILITY", default=1.0, at_least=0, at_most=1)
    magnitude: float = key("MAGNITUDE", default=0.0, at_least=0)
    spacing: float = key("SPACING", default=64.0, at_least=4)

    def check(self, problems: Problems) -> None:
        # A larger one would be clipped to avoid folds: see `Displacement.draw`.
        if self.magnitude > self.spacing / 8:
            problems.add(
                "INPUT.RANDOM_ELASTIC.MAGNITUDE",
                f"expected at most an eighth of INPUT.RANDOM_ELASTIC.SPACING ({self.spacing:g}): a larger one would "
                "fold the image",
            )

    @property
    def is_on(self) -> bool:
        return self.probability > 0 and self.magnitude > 0

    def apply(self, geometry: GeometricMap, rng: np.random.Generator) -> GeometricMap:
        """Draw a deformation and return the map with it."""
        if not self.is_on or rng.random() >= self.probability:
            return geometry
        return geometry.elastic(
            Displacement.draw(geometry.height, geometry.width, spacing=self.spacing, magnitude=self.magnitude, rng=rng)
        )
