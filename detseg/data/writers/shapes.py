"""Measures of one mask's shape, in any unit of length, also with pixels that are not square."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detseg.data.writers.outlines import Polygon
from detseg.structures.pixel_size import PixelSize


@dataclass(frozen=True)
class Shape:
    """The shape of one object; lengths in the unit of the pixel size that it was measured with.

    centroid_x, centroid_y: from the outer corner of the image's first pixel. perimeter: by Crofton's formula in four
    directions. equivalent_diameter: of the disc of this area. major_axis, minor_axis, eccentricity, orientation: of the
    ellipse of the same second moments; orientation in degrees from the x axis, turning counterclockwise on the screen,
    -90 to 90. solidity: area by that of the convex hull. circularity: 4 pi area / perimeter^2, at most 1.
    """

    area: float
    centroid_x: float
    centroid_y: float
    perimeter: float
    equivalent_diameter: float
    major_axis: float
    minor_axis: float
    eccentricity: float
    orientation: float
    solidity: float
    circularity: float


def measure_shape(
    crop: np.ndarray, x0: int, y0: int, polygons: Sequence[Polygon], pixel_size: PixelSize = (1.0, 1.0)
) -> Shape:
    """Measure a mask (h, w) bool with at least one pixel.

    Args:
        x0, y0: of the crop's upper left in the image.
        polygons: its outlines, from `trace_polygons`.
        pixel_size: (y, x); the default measures in pixels.
    """
    dy, dx = pixel_size
    rows, columns = np.nonzero(crop)
    y, x = (rows + 0.5) * dy, (columns + 0.5) * dx
    area = len(rows) * dy * dx
    major, minor, orientation = _ellipse(y, x, dy, dx)
    perimeter = crofton_perimeter(crop, pixel_size)
    points = np.concatenate([polygon[0] for polygon in polygons]).astype(np.int32)
    hull = cv2.contourArea(cv2.convexHull(points)) * dy * dx
    return Shape(
        area=area,
        centroid_x=x0 * dx + float(x.mean()),
        centroid_y=y0 * dy + float(y.mean()),
        perimeter=perimeter,
        equivalent_diameter=2 * math.sqrt(area / math.pi),
        major_axis=major,
        minor_axis=minor,
        eccentricity=math.sqrt(max(1 - (minor / major) ** 2, 0.0)),
        orientation=orientation,
        solidity=area / hull,
        circularity=min(4 * math.pi * area / perimeter**2, 1.0),
    )


def _ellipse(y: np.ndarray, x: np.ndarray, dy: float, dx: float) -> tuple[float, float, float]:
    """Return both axes and the orientation of the ellipse with the second moments of pixels at (y, x)."""
    # A pixel is a rectangle and no point: its own moments keep a line of one pixel's width from being infinitely thin.
    xx, yy = x.var() + dx * dx / 12, y.var() + dy * dy / 12
    xy = float(((x - x.mean()) * (y - y.mean())).mean())
    middle, half = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    turned = -math.degrees(0.5 * math.atan2(2 * xy, xx - yy))  # y points down
    return 4 * math.sqrt(middle + half), 4 * math.sqrt(max(middle - half, 0.0)), turned + 0.0


def crofton_perimeter(crop: np.ndarray, pixel_size: PixelSize = (1.0, 1.0)) -> float:
    """Return the length of a mask's outlines, holes included, by how often lines of four directions cross them.

    Cauchy and Crofton: the length is half the integral, over directions from 0 to pi and over parallel lines, of the
    number of crossings; weights of the directions as in Legland, Kieu and Devaux, Image Anal. Stereol. 26 (2007) 83.
    """
    dy, dx = pixel_size
    mask = np.pad(crop, 1)
    diagonal = math.hypot(dy, dx)
    angle = math.atan2(dy, dx)
    crossings = (
        # how often, distance of the lines, share of the directions
        (np.count_nonzero(mask[:, 1:] != mask[:, :-1]), dy, angle / math.pi),
        (np.count_nonzero(mask[1:] != mask[:-1]), dx, 0.5 - angle / math.pi),
        (np.count_nonzero(mask[1:, 1:] != mask[:-1, :-1]), dy * dx / diagonal, 0.25),
        (np.count_nonzero(mask[1:, :-1] != mask[:-1, 1:]), dy * dx / diagonal, 0.25),
    )
    return math.pi / 2 * sum(count * distance * share for count, distance, share in crossings)
