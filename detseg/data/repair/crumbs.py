"""Crumbs: what hangs on a mask by a thread.

A polygon whose ends cross, or a brush that slipped, leaves pixels that hang on the mask by a corner, and spikes of a
single pixel's width. The body of a mask is what a square of 2 x 2 pixels can paint (its morphological opening); crumbs
are small parts outside of the body.
"""

from __future__ import annotations

import cv2
import numpy as np

from detseg.data.repair.fragments import label_pieces

# A mask that would lose more than this is thin all over and has no crumbs.
MOST_OF_A_MASK = 0.2
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)
_SQUARE = np.ones((3, 3), dtype=np.uint8)


def body_of(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask (h, w) bool that lie in a square of 2 x 2 pixels of it."""
    squares = mask[:-1, :-1] & mask[1:, :-1] & mask[:-1, 1:] & mask[1:, 1:]
    body = np.zeros_like(mask)
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            body[rows, columns] |= squares
    return body


def crumbs_of(mask: np.ndarray, largest: int) -> np.ndarray:
    """Return the crumbs of a mask (h, w) bool.

    A crumb is an 8-connected part outside of the body with at most `largest` pixels that touches one piece of the body:
    what joins two pieces stays, and so does what touches none, which is a piece by itself. Single pixels that have a
    side in common with the body are part of its outline. Longer threads are processes of a cell and stay.
    """
    crumbs = np.zeros_like(mask)
    body = body_of(mask)
    rest = mask & ~body
    if not body.any() or not rest.any():
        return crumbs
    labels, areas = label_pieces(rest)
    bodies, _ = label_pieces(body)
    at_side = cv2.dilate(body.view(np.uint8), _CROSS).view(bool)
    for number in np.flatnonzero(areas <= largest):
        part = labels == number + 1
        if areas[number] == 1 and at_side[part][0]:
            continue
        touched = np.unique(bodies[cv2.dilate(part.view(np.uint8), _SQUARE).view(bool)])
        if np.count_nonzero(touched) == 1:
            crumbs |= part
    too_much = np.count_nonzero(crumbs) > MOST_OF_A_MASK * np.count_nonzero(mask)
    return np.zeros_like(mask) if too_much else crumbs
