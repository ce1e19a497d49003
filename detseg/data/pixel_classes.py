"""Objects as three pixel classes, background, inside and touching boundary, and reconstruction of objects from them.

Touching objects both give pixels to the boundary class: for a boundary of width w the larger object gives a layer of
ceil(w / 2) pixels, the smaller one floor(w / 2). The remaining insides are separate cores, one per object; growing the
cores over the boundary reconstructs the objects. A core of one pixel is always left.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage
from skimage.measure import label as components

from detseg.structures.label_layers import LabelLayers

BACKGROUND, INSIDE, BOUNDARY = 0, 1, 2

# Name -> predicted and true pixels (H, W) bool.
ClassMasks = dict[str, tuple[np.ndarray, np.ndarray]]


def flat_labels(layers: LabelLayers) -> np.ndarray:
    """Return one label image (H, W) int32, with the ids of the layers; overlaps go to the smallest object."""
    if layers.num_layers == 1:
        return layers.layers[0]
    areas = np.append(np.inf, layers.areas())[layers.layers]  # background is never the smallest
    return np.take_along_axis(layers.layers, areas.argmin(axis=0)[None], axis=0)[0]


def pixel_classes(labels: np.ndarray, width: int) -> np.ndarray:
    """Return BACKGROUND, INSIDE or BOUNDARY (H, W) uint8 for every pixel of a label image (H, W) int32.

    width: pixels, at least 1, of the boundary between two objects that touch by side or corner.
    """
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    # distinct: larger for the larger object, 0 for the background
    rank = np.argsort(np.argsort(areas, kind="stable"), kind="stable").astype(np.float32)[labels]
    inside = labels > 0
    smaller_near = cv2.erode(np.where(inside, rank, np.float32(np.inf)), _square((width + 1) // 2)) < rank
    larger_near = cv2.dilate(rank, _square(width // 2)) > rank
    pieces = components(labels, connectivity=2)
    cores = components(np.where(inside & ~smaller_near & ~larger_near, pieces, 0), connectivity=2)
    # One core per piece: parts that the boundary separates from a larger core would become other objects.
    piece_of = np.zeros(cores.max() + 1, dtype=np.int64)
    piece_of[cores] = pieces
    by_area = np.argsort(np.bincount(cores.ravel())[1:], kind="stable") + 1
    largest = np.zeros(pieces.max() + 1, dtype=np.int64)
    largest[piece_of[by_area]] = by_area
    classes = np.where(inside, BOUNDARY, BACKGROUND).astype(np.uint8)
    classes[inside & (cores > 0) & (cores == largest[pieces])] = INSIDE
    vanished = np.flatnonzero(largest[1:] == 0) + 1  # all of their pixels are boundary
    windows = ndimage.find_objects(pieces) if len(vanished) else []
    for piece in vanished:
        y, x = _farthest_from_others(labels, pieces, piece, windows[piece - 1])
        classes[y, x] = INSIDE
    return classes


def compared_classes(probabilities: np.ndarray, labels: np.ndarray, width: int) -> ClassMasks:
    """Return inside and boundary by the maximum of probabilities (3, H, W), and by `pixel_classes`."""
    predicted, true = probabilities.argmax(axis=0), pixel_classes(labels, width)
    return {name: (predicted == one, true == one) for name, one in (("inside", INSIDE), ("boundary", BOUNDARY))}


def _square(reach: int) -> np.ndarray:
    return np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)


def _farthest_from_others(
    labels: np.ndarray, pieces: np.ndarray, piece: int, window: tuple[slice, slice]
) -> tuple[int, int]:
    """Return y, x of the pixel of a piece, in a window around it, that is farthest from all other objects."""
    top, left = (max(side.start - 8, 0) for side in window)
    around = np.s_[top : window[0].stop + 8, left : window[1].stop + 8]
    own, near = pieces[around] == piece, labels[around]
    free = (near == 0) | (near == near[own][0])
    distance = cv2.distanceTransform(free.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(np.where(own, distance, -1).argmax(), own.shape)
    return top + int(y), left + int(x)


def objects_of_classes(classes: np.ndarray) -> np.ndarray:
    """Return the objects (H, W) int32, ids 1..N, for pixel classes (H, W): cores grown over the boundary around them.

    Boundary pixels that touch no core form an object.
    """
    cores = components(classes == INSIDE, connectivity=2)
    return grown(cores, classes != BACKGROUND)


def grown(seeds: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Grow seeds (H, W), integers with 0 for none, over a foreground (H, W) bool; return labels (H, W) int32, 1..N.

    Pixels are added ring by ring (8-connected), with ties going to the larger seed. A component of the foreground
    without a seed becomes an object.
    """
    order = np.argsort(np.bincount(seeds.ravel())[1:], kind="stable") + 1
    rank = np.zeros(len(order) + 1, dtype=np.float32)
    rank[order] = np.arange(1, len(order) + 1)
    flooded = rank[seeds]
    left = foreground & (seeds == 0)
    while True:
        ring = np.where(left, cv2.dilate(flooded, _square(1)), 0)
        if not ring.any():
            break
        flooded = np.maximum(flooded, ring)
        left &= ring == 0
    seed_of = np.append(0, order)
    labels = seed_of[flooded.astype(np.int64)].astype(np.int32)
    alone = components(left, connectivity=2)
    return np.where(left, alone + len(order), labels).astype(np.int32)
