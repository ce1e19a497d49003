"""Defects of single masks: holes, spurs, and pieces that are specks or separate objects.

Masks are (h, w) bool arrays; a piece is an 8-connected component. (OpenCV, because the labelling of scipy and
scikit-image takes several times as long for masks of a few dozen pixels.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from scipy.sparse.csgraph import connected_components

from detseg.structures.mask_crop import MaskCrop, boxes_of_crops

# A mask that would lose more than this fraction is thin everywhere and has no spurs.
MOST_OF_A_MASK = 0.2
# An object is in a hole if at least this fraction of its pixels is.
PART_IN_HOLE = 0.5
_FOUR = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)
_EIGHT = np.ones((3, 3), dtype=np.uint8)


def _bytes(mask: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(mask).view(np.uint8)


def _dilated(mask: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return cv2.dilate(_bytes(mask), shape).view(bool)


def label_pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the pieces of a mask from 1, in the order of their first pixels.

    Returns (h, w) int32, and the number of pixels of each piece, (pieces,) int64.
    """
    count, labels = cv2.connectedComponents(_bytes(mask), connectivity=8, ltype=cv2.CV_32S)
    if count > 2:
        # OpenCV does not guarantee an order of labels.
        first = np.unique(labels, return_index=True)[1]
        first[0] = -1  # the background stays 0
        labels = np.argsort(np.argsort(first)).astype(np.int32)[labels]
    return labels, np.bincount(labels.ravel(), minlength=count)[1:]


def pieces_of(mask: np.ndarray) -> list[np.ndarray]:
    """Return the pieces of a mask, (h, w) bool each, in descending order of size.

    Equal ones are in the order of their first pixels.
    """
    labels, areas = label_pieces(mask)
    if len(areas) == 1:
        return [mask]
    return [labels == label + 1 for label in np.argsort(-areas, kind="stable")]


def far_groups(pieces: Sequence[np.ndarray], factor: float) -> list[np.ndarray]:
    """Join the pieces of a mask, given largest first, to groups that are far apart: (h, w) bool each, in that order.

    Two pieces are near each other if the gap between their boxes is at most `factor` times the longer side of the
    largest piece's box; a group is joined by chains of near pieces.
    """
    boxes = boxes_of_crops(MaskCrop(piece, 0, 0).tight() for piece in pieces)
    reach = factor * (boxes[0, 2:] - boxes[0, :2]).max()
    before = np.maximum(boxes[:, None, :2] - boxes[None, :, 2:], 0)
    near = np.hypot(*np.moveaxis(before + before.swapaxes(0, 1), 2, 0)) <= reach
    group_of = connected_components(near, directed=False)[1]
    # Ordered by the first piece of each.
    return [
        np.logical_or.reduce([pieces[i] for i in np.flatnonzero(group_of == one)]) for one in dict.fromkeys(group_of)
    ]


def spurs_of(mask: np.ndarray, largest: int) -> np.ndarray:
    """Return the spurs of a mask, (h, w) bool: thin appendages.

    A self-intersecting polygon, or a slipped brush, leaves pixels connected by a corner, and spikes with a width of a
    single pixel. The body of a mask is its morphological opening by a square of 2 x 2 pixels. A spur is an 8-connected
    component outside the body with at most `largest` pixels that touches one piece of the body: connections between
    two pieces are kept, and so are components that touch none, which are pieces of their own. Single pixels that share
    a side with the body belong to its outline. Longer appendages are processes of a cell and are kept.
    """
    spurs = np.zeros_like(mask)
    squares = mask[:-1, :-1] & mask[1:, :-1] & mask[:-1, 1:] & mask[1:, 1:]
    body = np.zeros_like(mask)
    for rows, columns in itertools.product((slice(None, -1), slice(1, None)), repeat=2):
        body[rows, columns] |= squares
    rest = mask & ~body
    if not body.any() or not rest.any():
        return spurs
    labels, areas = label_pieces(rest)
    bodies, _ = label_pieces(body)
    at_side = _dilated(body, _FOUR)
    for number in np.flatnonzero(areas <= largest):
        part = labels == number + 1
        if areas[number] == 1 and at_side[part][0]:
            continue
        touched = np.unique(bodies[_dilated(part, _EIGHT)])
        if np.count_nonzero(touched) == 1:
            spurs |= part
    too_much = np.count_nonzero(spurs) > MOST_OF_A_MASK * np.count_nonzero(mask)
    return np.zeros_like(mask) if too_much else spurs


def label_holes(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the holes of a mask: (h, w) int32 with 0 outside holes; and return their number.

    A hole is a 4-connected component of the background that does not reach the border of the mask's box. So a gap that
    is connected to the outside only through a corner is a hole, and one that is open to the image border is not.
    """
    around = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), dtype=np.uint8)
    around[1:-1, 1:-1] = ~mask
    count, labels = cv2.connectedComponents(around, connectivity=4, ltype=cv2.CV_32S)
    if count == 2:
        return np.zeros(mask.shape, dtype=np.int32), 0
    # The corner has the label of the outside; labels above it are decremented.
    outside, labels = labels[0, 0], labels[1:-1, 1:-1]
    return np.where(labels == outside, 0, labels - (labels > outside)), count - 2


def filled(mask: np.ndarray) -> np.ndarray:
    """Return a mask without holes; the mask itself if it has none."""
    labels, count = label_holes(mask)
    return mask | (labels > 0) if count else mask


def filled_where_free(crop: MaskCrop, others: Iterable[MaskCrop]) -> tuple[np.ndarray, bool]:
    """Fill the holes of a mask that do not contain another object with at least half of its pixels.

    A nucleus inside the ring of another one is not covered; an object that only crosses a hole does not keep it open.

    Returns the mask (h, w) bool, the same array if nothing was filled, and whether a hole was left.
    """
    mask = crop.mask
    labels, count = label_holes(mask)
    taken: set[int] = set()
    for other in others if count else ():
        # The number of pixels of the other object in each hole.
        part = other.within(crop.box)
        window = labels[part.y0 - crop.y0 :, part.x0 - crop.x0 :][: part.mask.shape[0], : part.mask.shape[1]]
        inside = np.bincount(window[part.mask], minlength=count + 1)[1:]
        taken.update((np.flatnonzero(inside >= PART_IN_HOLE * other.area) + 1).tolist())
    free = (labels > 0) & ~np.isin(labels, list(taken))
    return (mask | free if free.any() else mask), bool(taken)
