"""What may be wrong with a single mask: holes, spurs, and pieces that are specks or objects of their own.

Masks are (h, w) bool arrays; a piece is an 8-connected part of one. (OpenCV, because scipy's and scikit-image's labels
take several times as long for masks of a few dozen pixels.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from scipy.sparse.csgraph import connected_components

from detseg.structures.mask_crop import MaskCrop, boxes_of_crops

# A mask that would lose more than this is thin all over and has no spurs.
MOST_OF_A_MASK = 0.2
# Of another object, the part of its pixels inside a hole from which on it counts as being there.
PART_IN_HOLE = 0.5
_FOUR = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)
_EIGHT = np.ones((3, 3), dtype=np.uint8)


def _bytes(mask: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(mask).view(np.uint8)


def _dilated(mask: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return cv2.dilate(_bytes(mask), shape).view(bool)


def label_pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the pieces of a mask from 1 on, in the order of their first pixels.

    Returns (h, w) int32, and the pixels of each piece, (pieces,) int64.
    """
    count, labels = cv2.connectedComponents(_bytes(mask), connectivity=8, ltype=cv2.CV_32S)
    if count > 2:
        # The order of OpenCV's numbers is not promised.
        first = np.unique(labels, return_index=True)[1]
        first[0] = -1  # the background stays 0
        labels = np.argsort(np.argsort(first)).astype(np.int32)[labels]
    return labels, np.bincount(labels.ravel(), minlength=count)[1:]


def pieces_of(mask: np.ndarray) -> list[np.ndarray]:
    """Return the pieces of a mask, (h, w) bool each, the largest first.

    Of equal ones the one whose first pixel comes first is first.
    """
    labels, areas = label_pieces(mask)
    if len(areas) == 1:
        return [mask]
    return [labels == label + 1 for label in np.argsort(-areas, kind="stable")]


def far_groups(pieces: Sequence[np.ndarray], factor: float) -> list[np.ndarray]:
    """Join the pieces of a mask, the largest first, to groups that are far apart: (h, w) bool each, that one first.

    Two pieces are near each other where the gap between their boxes is at most `factor` times the longer side of the
    largest piece's box, and in one group where a chain of near pieces joins them.
    """
    boxes = boxes_of_crops(MaskCrop(piece, 0, 0).tight() for piece in pieces)
    reach = factor * (boxes[0, 2:] - boxes[0, :2]).max()
    before = np.maximum(boxes[:, None, :2] - boxes[None, :, 2:], 0)
    near = np.hypot(*np.moveaxis(before + before.swapaxes(0, 1), 2, 0)) <= reach
    group_of = connected_components(near, directed=False)[1]
    # By the first piece of each.
    return [
        np.logical_or.reduce([pieces[i] for i in np.flatnonzero(group_of == one)]) for one in dict.fromkeys(group_of)
    ]


def spurs_of(mask: np.ndarray, largest: int) -> np.ndarray:
    """Return the spurs of a mask, (h, w) bool: what hangs on it by a thread.

    A polygon whose ends cross, or a brush that slipped, leaves pixels that hang on the mask by a corner, and spikes of
    a single pixel's width. The body of a mask is what a square of 2 x 2 pixels can paint (its morphological opening).
    A spur is an 8-connected part outside of the body with at most `largest` pixels that touches one piece of the body:
    what joins two pieces stays, and so does what touches none, which is a piece by itself. Single pixels that have a
    side in common with the body are part of its outline. Longer threads are processes of a cell and stay.
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
    """Number the holes of a mask: (h, w) int32 with 0 outside of holes, and how many there are.

    A hole is a 4-connected part of the background that does not reach the outside of the mask's box. So a gap that only
    touches the outside through a corner is a hole, and one that is open to the border of the image is none.
    """
    around = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), dtype=np.uint8)
    around[1:-1, 1:-1] = ~mask
    count, labels = cv2.connectedComponents(around, connectivity=4, ltype=cv2.CV_32S)
    if count == 2:
        return np.zeros(mask.shape, dtype=np.int32), 0
    # The corner shows the number of the outside; those above it move down by one.
    outside, labels = labels[0, 0], labels[1:-1, 1:-1]
    return np.where(labels == outside, 0, labels - (labels > outside)), count - 2


def filled(mask: np.ndarray) -> np.ndarray:
    """Return a mask without its holes; the mask itself where it has none."""
    labels, count = label_holes(mask)
    return mask | (labels > 0) if count else mask


def filled_where_free(crop: MaskCrop, others: Iterable[MaskCrop]) -> tuple[np.ndarray, bool]:
    """Fill the holes of a mask in which none of the other objects is with at least half of its pixels.

    A nucleus in the ring of another one is not buried; an object that only crosses a hole does not keep it open.

    Returns the mask (h, w) bool, the same array where nothing was filled, and whether a hole was left.
    """
    mask = crop.mask
    labels, count = label_holes(mask)
    taken: set[int] = set()
    for other in others if count else ():
        # Of the other object, the pixels in each hole.
        part = other.within(crop.box)
        window = labels[part.y0 - crop.y0 :, part.x0 - crop.x0 :][: part.mask.shape[0], : part.mask.shape[1]]
        inside = np.bincount(window[part.mask], minlength=count + 1)[1:]
        taken.update((np.flatnonzero(inside >= PART_IN_HOLE * other.area) + 1).tolist())
    free = (labels > 0) & ~np.isin(labels, list(taken))
    return (mask | free if free.any() else mask), bool(taken)
