"""Crumbs: what hangs on a mask by a thread.

A polygon whose ends cross, or a brush that slipped, leaves pixels that hang on the mask by a corner, and spikes of a
single pixel's width. The body of a mask is what a square of 2 x 2 pixels can paint (its morphological opening); crumbs
are small parts outside of the body.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from detseg.curation.repair.rules import RepairRules
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop

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


# Masks of several pieces: what is a speck, and what another object with the same number.


def pieces_of(mask: np.ndarray) -> list[np.ndarray]:
    """Return the 8-connected pieces of a mask (h, w) bool, each (h, w) bool, the largest first.

    Of equal ones the one whose first pixel comes first goes first.
    """
    labels, areas = label_pieces(mask)
    if len(areas) == 1:
        return [mask]
    return [labels == label + 1 for label in np.argsort(-areas, kind="stable")]


def label_pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the 8-connected pieces of a mask (h, w) bool from 1 on, in the order of their first pixels.

    Returns (h, w) int32, and the pixels of each piece, (pieces,) int64.
    """
    if not mask.size:
        return np.zeros(mask.shape, dtype=np.int32), np.zeros(0, dtype=np.int64)
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    if count > 2:
        # The order of OpenCV's numbers is not promised.
        values, first = np.unique(labels, return_index=True)
        new = np.zeros(count, dtype=np.int32)
        new[values[values > 0][np.argsort(first[values > 0])]] = np.arange(1, count)
        labels = new[labels]
    return labels, np.bincount(labels.ravel(), minlength=count)[1:]


def is_speck(areas: np.ndarray, speck_area: int, speck_fraction: float) -> np.ndarray:
    """Return which pieces of a mask are specks, bool, of their areas (pieces,) with the largest first.

    A speck has fewer than `speck_area` pixels, or less than `speck_fraction` of the largest piece, which is none.
    """
    specks = areas < np.maximum(speck_area, speck_fraction * areas[0])
    specks[0] = False
    return specks


def far_groups(pieces: Sequence[np.ndarray], factor: float) -> list[np.ndarray]:
    """Join the pieces of a mask, the largest first, to groups that lie far apart: (h, w) bool each, that one first.

    Two pieces are near each other where the gap between their boxes is at most `factor` times the longer side of the
    largest piece's box, and in one group where a chain of near pieces joins them.
    """
    boxes = np.array([_box_of(piece) for piece in pieces])
    reach = factor * (boxes[0, 2:] - boxes[0, :2]).max()
    group_of = np.full(len(pieces), -1)
    groups = []
    for first in range(len(pieces)):
        if group_of[first] >= 0:
            continue
        group_of[first], pending = len(groups), [first]
        while pending:
            box = boxes[pending.pop()]
            gaps = np.maximum(np.maximum(boxes[:, :2] - box[2:], box[:2] - boxes[:, 2:]), 0)
            near = np.flatnonzero((np.hypot(*gaps.T) <= reach) & (group_of < 0))
            group_of[near] = len(groups)
            pending += near.tolist()
        groups.append(np.logical_or.reduce([pieces[index] for index in np.flatnonzero(group_of == len(groups))]))
    return groups


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# Holes of masks: background that a mask encloses.
#
# A hole is a 4-connected part of the background that does not reach the outside of the mask's box, found by invading
# the
# complement from there. So a gap that only touches the outside through a corner is a hole, and one that is open to the
# border of the image is none.

# Of another object, the part of its pixels inside a hole from which on it counts as lying there.
LIES_IN_HOLE = 0.5


def label_holes(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the holes of a mask (h, w) bool: (h, w) int32 with 0 outside of holes, and how many there are."""
    if mask.all():
        return np.zeros(mask.shape, dtype=np.int32), 0
    around = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), dtype=np.uint8)
    around[1:-1, 1:-1] = ~mask
    count, labels = cv2.connectedComponents(around, connectivity=4, ltype=cv2.CV_32S)
    if count <= 2:
        return np.zeros(mask.shape, dtype=np.int32), 0
    # The number of the outside, which the corner shows, and 0, the mask, become 0.
    outside = labels[0, 0]
    new = np.zeros(count, dtype=np.int32)
    new[[label for label in range(1, count) if label != outside]] = np.arange(1, count - 1)
    return new[labels[1:-1, 1:-1]], count - 2


def filled(mask: np.ndarray) -> np.ndarray:
    """Return a mask (h, w) bool without its holes; the mask itself where it has none."""
    labels, count = label_holes(mask)
    return mask | (labels > 0) if count else mask


def filled_where_free(crop: MaskCrop, others: Iterable[MaskCrop]) -> tuple[np.ndarray, bool]:
    """Fill the holes of a mask in which none of the other objects lies with at least half of its pixels.

    A nucleus in the ring of another one is not buried; an object that only crosses a hole does not keep it open.

    Returns the mask (h, w) bool, the same array where nothing was filled, and whether a hole was left.
    """
    mask = crop.mask
    labels, count = label_holes(mask)
    if not count:
        return mask, False
    taken = _holes_with_objects(labels, crop, others)
    free = (labels > 0) & ~np.isin(labels, taken)
    return (mask | free if free.any() else mask), bool(taken)


def _holes_with_objects(labels: np.ndarray, crop: MaskCrop, others: Iterable[MaskCrop]) -> list[int]:
    """Return the labels of the holes in which other objects lie."""
    taken: set[int] = set()
    for other in others:
        least = LIES_IN_HOLE * other.area
        if crop._replace(mask=labels > 0).shared_pixels(other) < least:
            continue
        for label in range(1, int(labels.max()) + 1):
            if crop._replace(mask=labels == label).shared_pixels(other) >= least:
                taken.add(label)
    return sorted(taken)


def fill_holes(rles: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Fill all holes of N masks.

    Each mask is filled by itself, so that an object that lies in the hole of another one is then covered by it, too.

    Returns the masks, unchanged ones as they came, and how many pixels each one gained, (N,) int64.
    """
    results: list[dict[str, Any]] = []
    gained = np.zeros(len(rles), dtype=np.int64)
    for index, (rle, (crop, x0, y0)) in enumerate(zip(rles, rle_codec.decode_crops(rles), strict=True)):
        whole = filled(crop)
        gained[index] = np.count_nonzero(whole) - np.count_nonzero(crop)
        results.append(rle_codec.encode_crop(whole, x0, y0, *rle["size"]) if gained[index] else dict(rle))
    return results, gained


# Masks of a class that images of this kind do not have.

# Part of an image's objects that the one class of an image must have, so that the others are called wrong.
MAJORITY = 0.8


def allowed_classes(kind: Any, class_names: Sequence[str], rules: RepairRules) -> set[int] | None:
    """Return the class indices that objects of an image of this kind (the value of its kind field) may have.

    None: the kind says nothing. Raises DataError where `kind_classes` names a class that there is not.
    """
    names = rules.classes_of_kind.get(str(kind))
    if names is None:
        return {class_names.index(kind)} if kind in class_names else None
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise DataError(
            f"repair rule kind_classes: {str(kind)!r} has the class {unknown[0]!r}; there are {', '.join(class_names)}"
        )
    return {class_names.index(name) for name in names}


def check_kinds(kinds: Iterable[Any], rules: RepairRules) -> None:
    """Raise DataError where `kind_field` names a field that no image has. kinds: its values, None for none."""
    if rules.kind_field and all(kind is None for kind in kinds):
        raise DataError(f"repair rule kind_field: no image has a field {rules.kind_field!r}")


def majority_class(classes: np.ndarray) -> set[int] | None:
    """Return the class of most of an image's objects (N,), or None where none has `MAJORITY` of them."""
    if not len(classes):
        return None
    counts = np.bincount(classes)
    best = int(counts.argmax())
    return {best} if counts[best] >= MAJORITY * len(classes) else None


def one_class_hint(objects: np.ndarray) -> str | None:
    """Say that images seem to hold one class each, but for a few, or None. objects: (images, classes) int64 counts."""
    filled = objects[objects.sum(axis=1) > 0]
    mixed = int((np.count_nonzero(filled, axis=1) > 1).sum())
    alone = np.bincount(filled[np.count_nonzero(filled, axis=1) == 1].argmax(axis=1), minlength=objects.shape[1])
    if not 0 < mixed <= 0.1 * len(filled) or np.count_nonzero(alone) < 2:
        return None
    return (
        f"{len(filled) - mixed} of {len(filled)} images hold objects of one class alone, {mixed} of several; where "
        "that cannot be right, the rule one_class_per_image=yes gives stray objects the class of the others"
    )
