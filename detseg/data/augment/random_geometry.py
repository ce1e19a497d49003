"""Random crops: how large, and where; anywhere, or about an object.

Focus: the box (x0, y0, x1, y1) of an object that the crop shall show, continuous coordinates of the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detseg.data.augment.geometric import GeometricMap
from detseg.data.augment.transforms import Displacement
from detseg.errors import ConfigError
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.config import Config


CROP_TYPES = ("relative", "relative_range", "absolute", "absolute_range")
Focus = tuple[float, float, float, float]


@dataclass(frozen=True)
class RandomCrop:
    """A crop of a random place.

    kind: one of `CROP_TYPES`, with size (height, width; pixels, fractions, or (least, most) pixels for
    "absolute_range"), as Detectron2's RandomCrop; smaller images are used whole, or padded to the size where `pad`.
    after_resize: cut out of the resized and zoomed image. on_objects: probability that the crop is laid about an object
    of the image; else it may lie anywhere. class_weights: how likely an object of each class is chosen for that,
    relative to each other; empty for equally.
    """

    kind: str = "absolute"
    size: tuple[float, float] = (512, 512)
    after_resize: bool = False
    pad: bool = False
    on_objects: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in CROP_TYPES:
            raise ConfigError(f"INPUT.CROP.TYPE is {self.kind!r}; expected one of {', '.join(CROP_TYPES)}")
        if self.pad and not (self.kind == "absolute" and self.after_resize):
            raise ConfigError("INPUT.CROP.PAD needs INPUT.CROP.TYPE absolute and INPUT.CROP.AFTER_RESIZE True")

    @classmethod
    def from_config(cls, cfg: Config, class_weights: tuple[float, ...] = ()) -> RandomCrop:
        """Read the keys INPUT.CROP."""
        keys = cfg.INPUT.CROP
        return cls(
            kind=keys.TYPE,
            size=tuple(keys.SIZE),
            after_resize=keys.AFTER_RESIZE,
            pad=keys.PAD,
            on_objects=keys.ON_OBJECTS,
            class_weights=class_weights,
        )

    def draw_size(self, height: int, width: int, zoom: float, rng: np.random.Generator) -> list[int]:
        """Return [height, width] of the crop: relative ones in the image's pixels, absolute ones as they shall be seen.

        Absolute ones may be larger than the image, of height x width pixels.
        """
        first, second = self.size
        if self.kind == "absolute":
            return [int(first), int(second)]
        if self.kind == "absolute_range":
            longest = [max(edge, between(edge * zoom)) for edge in (height, width)]
            return [int(rng.integers(min(edge, int(first)), min(edge, int(second)) + 1)) for edge in longest]
        vary = self.kind == "relative_range"
        fractions = (rng.uniform(first, 1.0), rng.uniform(second, 1.0)) if vary else (first, second)
        return [between(height * fractions[0], height), between(width * fractions[1], width)]

    def draw_focus(self, sample: Sample, rng: np.random.Generator) -> Focus | None:
        """Return the box of an object to lay the crop about, or None for anywhere."""
        if self.on_objects == 0 or rng.random() >= self.on_objects:
            return None
        if sample.layers is None or not len(sample.layers):
            return None
        weights = np.ones(len(sample.classes))
        if self.class_weights:
            weights = np.asarray(self.class_weights)[sample.classes]
        if not weights.any():
            return None
        index = int(rng.choice(len(weights), p=weights / weights.sum()))
        # One comparison with its id is faster than the boxes of all.
        pixels = (sample.layers.layers == index + 1).any(axis=0)
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        if not len(rows):
            return None
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)

    def cut(
        self, geometry: GeometricMap, size: Sequence[int], focus: Focus | None, rng: np.random.Generator
    ) -> GeometricMap:
        """Cut [height, width] out of what the map shows, a crop or a resize; pad where it shows less and `pad`.

        Smaller images are cut whole without `pad`. The focus is seen whole, or fills the crop where it is larger.
        """
        height, width = size
        if not self.pad:
            height, width = min(height, geometry.height), min(width, geometry.width)
        left, top, right, bottom = focus_in(geometry, focus) if focus else (None,) * 4
        y0 = _draw_start(geometry.height, height, top, bottom, rng)
        x0 = _draw_start(geometry.width, width, left, right, rng)
        return geometry.window(y0, x0, height, width)


def class_weights(counts: Sequence[int] | np.ndarray, power: float) -> tuple[float, ...]:
    """Return one weight a class from how many objects a data set has of each; empty for power 0.

    power: 0 for equal weights, 1 for all classes equally often. Classes without objects get the weight 0.
    """
    if power == 0:
        return ()
    return tuple(float(count) ** -power if count else 0.0 for count in counts)


def focus_in(geometry: GeometricMap, focus: Focus) -> Focus:
    """Return the focus in the coordinates of the map's output; the map crops and resizes, and does not turn."""
    (scale_x, _, x0), (_, scale_y, y0), _ = geometry.matrix
    return (
        (focus[0] - x0) / scale_x,
        (focus[1] - y0) / scale_y,
        (focus[2] - x0) / scale_x,
        (focus[3] - y0) / scale_y,
    )


def _draw_start(length: int, size: int, start: float | None, end: float | None, rng: np.random.Generator) -> int:
    """Draw where along one axis a crop of `size` begins in `length` pixels, so that it shows start..end."""
    # Of an image smaller than the crop the padding begins before it.
    least, most = min(0, length - size), max(0, length - size)
    if start is not None:
        first, last = sorted((end - size, start))
        least = min(max(int(np.ceil(first)), least), most)
        most = max(min(int(np.floor(last)), most), least)
    return int(rng.integers(least, most + 1))


def between(length: float, most: int | None = None) -> int:
    """Round an edge's length to whole pixels, at least 1 and at most `most`."""
    rounded = max(int(length + 0.5), 1)
    return rounded if most is None else min(rounded, most)


# Random turns by any angle, shears, stretches, shifts and bends of what a map shows.


@dataclass(frozen=True)
class RandomAffine:
    """An affine change that keeps areas.

    probability: of any change. rotation, shear: half ranges, degrees. stretch: the largest ratio, 1 for none, by which
    one direction is stretched and the other one squeezed. translate: half range, fraction of height and width.
    """

    probability: float = 1.0
    rotation: float = 0.0
    shear: float = 0.0
    stretch: float = 1.0
    translate: float = 0.0

    @classmethod
    def from_config(cls, cfg: Config) -> RandomAffine:
        """Read the keys INPUT.RANDOM_AFFINE."""
        keys = cfg.INPUT.RANDOM_AFFINE
        return cls(keys.PROBABILITY, keys.ROTATION, keys.SHEAR, keys.STRETCH, keys.TRANSLATE)

    @property
    def is_on(self) -> bool:
        return self.probability > 0 and (self.rotation, self.shear, self.stretch, self.translate) != (0, 0, 1, 0)

    def apply(self, geometry: GeometricMap, rng: np.random.Generator, focus: Focus | None = None) -> GeometricMap:
        """Draw a change and return the map with it.

        The middle of the output keeps its place, or that of a box (x0, y0, x1, y1) of the output that shall be seen.
        What is seen is then moved into the image, so that as little as possible lies beyond; the box stays in sight.
        """
        if not self.is_on or rng.random() >= self.probability:
            return geometry
        angle, shear = (math.radians(rng.uniform(-most, most)) for most in (self.rotation, self.shear))
        # Half of the ratio for each of the two directions.
        factor = math.exp(rng.uniform(-0.5, 0.5) * math.log(self.stretch))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = turn @ [[1, math.tan(shear)], [0, 1]] @ [[factor, 0], [0, 1 / factor]]
        x0, y0, x1, y1 = focus or (0, 0, geometry.width, geometry.height)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        # The box around the turned box.
        half_x, half_y = np.abs(np.linalg.inv(linear)) @ ((x1 - x0) / 2, (y1 - y0) / 2)
        keep = (x - half_x, y - half_y, x + half_x, y + half_y) if focus else None
        geometry = geometry.affine(_about(linear, x, y)).moved_inside(keep)
        if self.translate:
            shift_y, shift_x = rng.uniform(-self.translate, self.translate, 2) * (geometry.height, geometry.width)
            geometry = geometry.affine(np.array([[1, 0, shift_x], [0, 1, shift_y], [0, 0, 1]]))
        return geometry


@dataclass(frozen=True)
class RandomElastic:
    """An elastic bend. magnitude: standard deviation of the displacements, spacing: of control points; output pixels.

    probability: of any change.
    """

    probability: float = 1.0
    magnitude: float = 0.0
    spacing: float = 64.0

    @classmethod
    def from_config(cls, cfg: Config) -> RandomElastic:
        """Read the keys INPUT.RANDOM_ELASTIC."""
        keys = cfg.INPUT.RANDOM_ELASTIC
        return cls(keys.PROBABILITY, keys.MAGNITUDE, keys.SPACING)

    @property
    def is_on(self) -> bool:
        return self.probability > 0 and self.magnitude > 0

    def apply(self, geometry: GeometricMap, rng: np.random.Generator) -> GeometricMap:
        """Draw a bend and return the map with it."""
        if not self.is_on or rng.random() >= self.probability:
            return geometry
        return geometry.elastic(
            Displacement.draw(geometry.height, geometry.width, spacing=self.spacing, magnitude=self.magnitude, rng=rng)
        )


def _about(linear: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return the matrix (3, 3) of a linear map (2, 2) that keeps the point (x, y) in its place."""
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([x, y]) - linear @ (x, y)
    return matrix
