"""Star-convex shapes: the distances from a pixel to the edge of its object along rays in all directions.

After Schmidt et al., Cell Detection with Star-convex Polygons, MICCAI 2018. Ray k of R has the angle 2 pi k / R from
the x axis towards the y axis (down).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.draw import polygon
from skimage.measure import label as components
from skimage.morphology import local_maxima

from detseg.data.pixel_classes import grown
from detseg.fusion.suppression import OverlapMeasure, keep_best
from detseg.structures.mask_crop import MaskCrop, paint, runs_of_crops
from detseg.structures.overlaps import PackedMasks

_LEAST_PEAK = 0.2  # minimum edge distance (1 in the middle) of peaks that start a shape
_OVERLAP = 0.4  # IoU with a better shape above which both are one object


def ray_directions(rays: int) -> np.ndarray:
    """Return (R, 2) float64, y and x of the unit vectors of all rays."""
    angles = 2 * np.pi * np.arange(rays) / rays
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def star_distances(labels: np.ndarray, rays: int) -> np.ndarray:
    """Return (R, H, W) float32: distance in pixels from every pixel to the edge of its object along rays; 0 outside.

    rays: R, even. labels: (H, W) int32. A ray ends at the first pixel of anything else, or at the end of the image. Its
    pixels form a digital line, so a distance is exact to about half a pixel.
    """
    distances = np.empty((rays, *labels.shape), dtype=np.float32)
    for ray, (dy, dx) in enumerate(ray_directions(rays)[: rays // 2]):
        if abs(dx) >= abs(dy) - 1e-9:
            forward, backward = _along_lines(labels, dy / dx)
            swapped = dx < 0
        else:
            forward, backward = (one.T for one in _along_lines(labels.T, dx / dy))
            swapped = dy < 0
        distances[ray], distances[ray + rays // 2] = (backward, forward) if swapped else (forward, backward)
    distances[:, labels == 0] = 0
    return distances


def _along_lines(labels: np.ndarray, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances from every pixel to the end of its object along (slope, 1) and opposite: (H, W) float32.

    Every pixel lies on one line y = c + round(slope * x), so lines of pixels are rows of a sheared image.
    """
    height, width = labels.shape
    x = np.arange(width, dtype=np.int32)
    shift = np.rint(slope * x).astype(np.int32)
    shift -= shift.min()
    rows, columns = np.arange(height + shift.max(), dtype=np.int32)[:, None], x[None]
    # rows sheared in from above and below the image belong to no object
    framed = np.pad(labels.astype(np.int32), ((1, 1), (0, 0)), constant_values=-1)
    lines = framed.take((rows - shift.max() + shift + 1).clip(0, height + 1) * width + columns)
    ends = np.ones(lines.shape, dtype=bool)  # whether the next pixel has another label
    np.not_equal(lines[:, 1:], lines[:, :-1], out=ends[:, :-1])
    last = np.minimum.accumulate(np.where(ends, columns, width)[:, ::-1], axis=1)[:, ::-1]
    first = np.zeros(lines.shape, dtype=np.int32)
    np.multiply(ends[:, :-1], columns[:, 1:], out=first[:, 1:])
    first = np.maximum.accumulate(first, axis=1)
    back = (np.arange(height, dtype=np.int32)[:, None] + (shift.max() - shift)) * width + columns
    length = np.float32(np.hypot(1, slope))
    half = np.float32(0.5)
    return (last - columns + half).take(back) * length, (columns - first + half).take(back) * length


def objects_of_stars(distances: np.ndarray, edge_distance: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return labels (H, W) int32, 1..N, of a mask (H, W) bool: shapes around peaks, the best of those that overlap.

    distances: (R, H, W) float32, along rays. edge_distance: (H, W) float32, 1 in the middle of an object. A shape is
    clipped to its component of the mask. Pixels without a shape go to the nearest one in their component, or become
    one.
    """
    parts = components(mask, connectivity=2)
    peaks = components(local_maxima(np.where(mask, edge_distance, 0)) & mask & (edge_distance >= _LEAST_PEAK))
    found = np.arange(1, peaks.max() + 1)
    if not len(found):
        return parts.astype(np.int32)
    ys, xs = np.array(ndimage.maximum_position(-_to_mean(peaks, found), peaks, found)).T
    order = np.argsort(-edge_distance[ys, xs], kind="stable")
    directions = ray_directions(len(distances))
    shapes = []
    for y, x in zip(ys[order], xs[order], strict=True):
        outline = np.array([y, x]) + directions * distances[:, y, x, None]
        top, left = np.maximum(np.floor(outline.min(axis=0)).astype(int), 0)
        bottom, right = np.ceil(outline.max(axis=0)).astype(int) + 1
        window = parts[top:bottom, left:right]
        shape = np.zeros(window.shape, dtype=bool)
        shape[polygon(outline[:, 0] - top, outline[:, 1] - left, window.shape)] = True
        shape[y - top, x - left] = True
        shape &= window == parts[y, x]
        shapes.append(MaskCrop(shape, int(left), int(top)))
    measure = OverlapMeasure.of_masks(PackedMasks(runs_of_crops(shapes, *mask.shape)))
    limits = np.full(len(shapes), _OVERLAP)
    kept = np.flatnonzero(keep_best(measure.close_pairs(np.zeros(len(shapes), np.int64), limits), measure, limits))
    labels, _ = paint(shapes, kept, *mask.shape)
    return grown(np.unique(labels, return_inverse=True)[1].reshape(mask.shape), mask)


def _to_mean(peaks: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the squared distance (H, W) of the pixels of every plateau to its centroid."""
    middles = np.concatenate([np.zeros((1, 2)), ndimage.center_of_mass(peaks > 0, peaks, found)])[peaks]
    y, x = np.indices(peaks.shape)
    return (y - middles[..., 0]) ** 2 + (x - middles[..., 1]) ** 2
