"""Random turns by any angle, shears, stretches, shifts and bends of what a map shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detseg.augment.crops import Focus
from detseg.augment.displacement import Displacement
from detseg.augment.geometric import GeometricMap

if TYPE_CHECKING:
    from detseg.config import Config


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
