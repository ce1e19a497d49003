"""Smooth random displacements: a coarse grid of control points between which a uniform cubic B-spline runs.

The free-form deformation of Rueckert et al. 1999, drawn at random as Ronneberger et al. 2015 do for U-Net. x, y are
continuous coordinates of the displaced frame, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Control points that move less than this part of their spacing along each axis cannot fold the image: the bound is
# 1 / 2.0464 (Choi and Lee 2000), kept with some distance.
_LARGEST_STEP = 0.4
# What the spline leaves of the standard deviation of independent control points: the mean over all places of the root
# of the sum of its squared weights, along both axes.
_SPLINE_GAIN = 0.479


@dataclass(frozen=True)
class Displacement:
    """What is added to the coordinates of a frame of height x width pixels.

    control: (R, C, 2) float64, (x, y) displacements in pixels of the control points; point (r, c) is at
    ((c - 1) * spacing, (r - 1) * spacing). Beyond the frame, the displacement is that of its edge.
    """

    control: np.ndarray
    spacing: float
    height: int
    width: int

    @classmethod
    def draw(
        cls, height: int, width: int, *, spacing: float, magnitude: float, rng: np.random.Generator
    ) -> Displacement:
        """Draw displacements of standard deviation `magnitude` along each axis, in pixels; none folds the image."""
        shape = (int(height / spacing) + 4, int(width / spacing) + 4, 2)
        limit = _LARGEST_STEP * spacing
        control = np.clip(rng.normal(0.0, magnitude / _SPLINE_GAIN, shape), -limit, limit)
        return cls(control, spacing, height, width)

    @property
    def largest(self) -> float:
        """The longest displacement that is possible, pixels."""
        return float(np.hypot(self.control[..., 0], self.control[..., 1]).max())

    def on_grid(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the displacements along x and y, each (H, W) float32, where columns x (W,) and rows y (H,) cross."""
        along_y = self._weights(y, self.height, self.control.shape[0])
        along_x = self._weights(x, self.width, self.control.shape[1])
        rows = np.einsum("hr,rca->ahc", along_y, self.control).astype(np.float32)
        columns = np.ascontiguousarray(along_x.T, dtype=np.float32)
        # Not by matrix products: their threads, as many in every worker as there are cores, would wait for each other.
        dx, dy = (np.einsum("hc,cw->hw", one, columns) for one in rows)
        return dx, dy

    def at(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the displacements along x and y, each (H, W) float32, at points x, y (H, W)."""
        from scipy.ndimage import map_coordinates

        places = np.stack([np.clip(y, 0, self.height), np.clip(x, 0, self.width)]) / self.spacing + 1
        dx, dy = (map_coordinates(self.control[..., axis], places, order=3, prefilter=False) for axis in (0, 1))
        return dx.astype(np.float32), dy.astype(np.float32)

    def _weights(self, places: np.ndarray, length: int, count: int) -> np.ndarray:
        """Return the weights (len(places), count) of the control points of one axis."""
        position = np.clip(places, 0, length) / self.spacing + 1
        distance = np.abs(position[:, None] - np.arange(count))
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = (2 - distance) ** 3 / 6
        return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
