"""Repair the masks of one image: apply the rules in order until none of them changes anything.

Masks are held as crops, so that time and memory grow with the objects' boxes and not with objects x image area.

Termination: trimming and splitting make no holes, filling a hole adds neither spurs nor pieces, and removal reduces the
number of objects; so each of them can happen only a limited number of times.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.curation.repair.masks import far_groups, filled, filled_where_free, pieces_of, spurs_of
from detseg.curation.repair.rules import Change, RepairRules
from detseg.formats.plausibility import check_separable
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop, boxes_of_crops, runs_of_crops, union_of
from detseg.structures.overlaps import Overlaps, shared_pixels

# Duplicate masks, and masks inside others.


def near_duplicates(overlaps: Overlaps, least_iou: float) -> list[tuple[int, int]]:
    """Return (kept, dropped) for masks that are nearly the same.

    Non-maximum suppression with the area as score: the largest mask (of equal ones the first) is kept, those with an
    IoU of at least `least_iou` are dropped, and so on with the rest.
    """
    close = overlaps.select(overlaps.iou >= least_iou)
    like: dict[int, list[int]] = {}
    for first, second in zip(close.first.tolist(), close.second.tolist(), strict=True):
        like.setdefault(first, []).append(second)
        like.setdefault(second, []).append(first)
    gone: set[int] = set()
    pairs = []
    for kept in sorted(like, key=lambda index: (-overlaps.first_areas[index], index)):
        if kept not in gone:
            pairs += [(kept, other) for other in sorted(like[kept]) if other not in gone]
            gone.update(like[kept])
    return pairs


def nested(overlaps: Overlaps, classes: np.ndarray, least: float) -> dict[int, list[int]]:
    """Return outer mask -> the smaller masks of its class of which at least the fraction `least` is inside it."""
    inside: dict[int, list[int]] = {}
    areas = overlaps.first_areas
    same = classes[overlaps.first] == classes[overlaps.second]
    close = overlaps.select(same & (overlaps.of_smaller >= least) & (areas[overlaps.first] != areas[overlaps.second]))
    for first, second in zip(close.first.tolist(), close.second.tolist(), strict=True):
        outer, inner = (first, second) if areas[first] > areas[second] else (second, first)
        inside.setdefault(outer, []).append(inner)
    return inside


logger = logging.getLogger(__name__)

# Far more than any image needs.
_MOST_ROUNDS = 50
# If at least this fraction of an image's objects has one class, the others are considered wrong.
MAJORITY = 0.8
# If masks inside a mask cover at least this fraction of it, it was drawn around a group of objects.
GROUP_COVERED = 0.5


@dataclass(frozen=True)
class ImageMasks:
    """The N masks of one image before repair.

    rles: compressed COCO RLEs of one size. classes: (N,) int64, 0-based. names: ids or numbers for the list of changes.
    class_names: for that list. allowed: class indices allowed for the image's kind, None if unknown; see
    `RepairRules.allowed_classes`.
    """

    file_name: str
    rles: Sequence[Mapping[str, Any]]
    classes: np.ndarray
    names: Sequence[int | str]
    class_names: Sequence[str]
    allowed: set[int] | None = None


@dataclass(frozen=True)
class RepairedMasks:
    """The M masks after repair, those of one origin consecutively.

    rles, classes (M,) int64: as before. origins: (M,) int64, index of the original mask. changed: (M,) bool, whether
    its pixels have changed. absorbed: for each, the masks that were merged into it. changes: for the list.
    """

    rles: list[dict[str, Any]]
    classes: np.ndarray
    origins: np.ndarray
    changed: np.ndarray
    absorbed: list[list[int]]
    changes: list[Change]


def repair_image(image: ImageMasks, rules: RepairRules) -> RepairedMasks:
    """Apply the rules to the masks of one image; the result has the list of changes.

    Repairing the result again changes nothing. Raises DataError for masks without pixels.
    """
    check_separable(image.rles, image.file_name)
    return _ImageRepair(image, rules).run()


@dataclass(eq=False)
class _Object:
    origin: int
    crop: MaskCrop
    class_index: int
    changed: bool = False
    absorbed: list[int] = field(default_factory=list)

    @property
    def mask(self) -> np.ndarray:
        return self.crop.mask

    @property
    def area(self) -> int:
        return self.crop.area

    def set_mask(self, mask: np.ndarray) -> None:
        """Replace the mask by another one of the same window, cropped tight."""
        self.changed = True
        self.crop = self.crop._replace(mask=mask).tight()


class _ImageRepair:
    """State of the repair of one image."""

    def __init__(self, image: ImageMasks, rules: RepairRules) -> None:
        self.image = image
        self.rules = rules
        self.size = tuple(image.rles[0]["size"]) if len(image.rles) else (0, 0)  # (height, width)
        self.changes: list[Change] = []
        crops = rle_codec.decode_crops(image.rles)
        self.objects = [_Object(index, crop, int(image.classes[index])) for index, crop in enumerate(crops)]

    def run(self) -> RepairedMasks:
        for one in [one for one in self.objects if not one.area]:
            self._drop(one, "empty")
        pending = list(self.objects)
        for _ in range(_MOST_ROUNDS):
            before = len(self.changes)
            pending = self._mend_shapes(pending)
            self._mend_classes()
            self._merge_duplicates()
            self._resolve_nested()
            if len(self.changes) == before:
                break
        else:
            logger.warning("%s: repair did not converge; run it again", self.image.file_name)
        self.objects.sort(key=lambda one: one.origin)  # stable: pieces keep their order
        changed = rle_codec.encode_crops([one.crop for one in self.objects if one.changed], *self.size)
        encoded = iter(changed)
        return RepairedMasks(
            rles=[next(encoded) if one.changed else dict(self.image.rles[one.origin]) for one in self.objects],
            classes=np.array([one.class_index for one in self.objects], dtype=np.int64),
            origins=np.array([one.origin for one in self.objects], dtype=np.int64),
            changed=np.array([one.changed for one in self.objects], dtype=bool),
            absorbed=[one.absorbed for one in self.objects],
            changes=self.changes,
        )

    def _mend_shapes(self, pending: Sequence[_Object]) -> list[_Object]:
        """Apply the rules for single masks; return the objects to check again: changed ones, and those with holes."""
        again = []
        self._index_boxes()
        present = set(self.objects)
        for one in [one for one in pending if one in present]:
            before = len(self.changes)
            holes_left = self._fill_holes(one)
            if self.rules.spurs and (spurs := spurs_of(one.mask, self.rules.spurs)).any():
                self._change_mask(one, one.mask & ~spurs, "spurs", "trimmed")
            pieces = self._separate(one)
            if holes_left or len(self.changes) > before:
                again += pieces
        for one in [one for one in self.objects if one.area < self.rules.min_area]:
            self._drop(one, "min_area")
        return again

    def _index_boxes(self) -> None:
        """Index the boxes of objects; those trimmed later are smaller, so no neighbour is missed."""
        self.indexed = list(self.objects)
        self.boxes = boxes_of_crops([one.crop for one in self.objects])

    def _fill_holes(self, one: _Object) -> bool:
        """Fill the holes of an object; return whether some were left because other objects are in them."""
        whole, left = (one.mask if self.rules.holes == "off" else filled(one.mask)), False
        if whole is not one.mask and self.rules.holes == "free":
            x0, y0, x1, y1 = one.crop.box
            boxes = self.boxes
            near = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
            others = [self.indexed[index] for index in np.flatnonzero(near)]
            whole, left = filled_where_free(one.crop, [other.crop for other in others if other is not one])
        if whole is not one.mask:
            self._change_mask(one, whole, "holes", "filled")
        return left

    def _separate(self, one: _Object) -> list[_Object]:
        """Drop the specks of an object and split off other pieces; return all resulting objects."""
        rules = self.rules
        pieces = [one.mask] if rules.fragments == "off" else pieces_of(one.mask)
        if len(pieces) == 1:
            return [one]
        if rules.far:
            groups = far_groups(pieces, rules.far)
            if len(groups) > 1:
                return self._split(one, groups)
        areas = [np.count_nonzero(piece) for piece in pieces]
        # If all objects of the image are in one mask, a small piece is a cell and not a speck of the largest one.
        is_one_mask = len(self.image.rles) == 1 and sum(area >= max(rules.speck_area, 10) for area in areas) >= 3
        least = max(rules.speck_area, 0 if is_one_mask else rules.speck_fraction * areas[0])
        # The largest piece is never a speck.
        large = [pieces[0], *(piece for piece, area in zip(pieces[1:], areas[1:], strict=True) if area >= least)]
        if len(large) < len(pieces):
            self._change_mask(one, np.logical_or.reduce(large), "specks", "trimmed")
            pieces = pieces_of(one.mask)
        if len(pieces) > 1 and rules.fragments == "split":
            return self._split(one, pieces)
        if len(pieces) > 1 and rules.fragments == "largest":
            self._change_mask(one, pieces[0], "fragments", "trimmed")
        return [one]

    def _split(self, one: _Object, parts: Sequence[np.ndarray]) -> list[_Object]:
        """Keep the first part in an object and make objects of the others, except those as small as specks."""
        before = one.area
        large = [part for part in parts[1:] if np.count_nonzero(part) >= self.rules.speck_area]
        if len(large) < len(parts) - 1:
            self._change_mask(one, np.logical_or.reduce([parts[0], *large]), "specks", "trimmed")
            return [one]
        new = [_Object(one.origin, one.crop, one.class_index) for _ in large]
        for piece, part in zip(new, large, strict=True):
            piece.set_mask(part)
        one.set_mask(parts[0])
        self._record(one, "fragments", "split", 0, before - one.area, before, one.area, f"{len(parts)} pieces")
        position = self.objects.index(one) + 1
        self.objects[position:position] = new
        self._index_boxes()
        return [one, *new]

    def _mend_classes(self) -> None:
        if self.rules.wrong_class == "off":
            return
        allowed = self.image.allowed
        if allowed is None and self.rules.one_class_per_image and self.objects:
            counts = np.bincount([one.class_index for one in self.objects])
            if counts.max() >= MAJORITY * len(self.objects):
                allowed = {int(counts.argmax())}
        for one in [one for one in self.objects if allowed is not None and one.class_index not in allowed]:
            if self.rules.wrong_class == "drop" or len(allowed) > 1:
                self._drop(one, "wrong_class", other=self.image.class_names[one.class_index])
            else:
                self._relabel(one, next(iter(allowed)), "wrong_class")

    def _merge_duplicates(self) -> None:
        if not self.rules.duplicates:
            return
        objects = list(self.objects)
        for kept, dropped in near_duplicates(self._overlaps(), self.rules.duplicates):
            one, twin = objects[kept], objects[dropped]
            # Of two classes for one object, take the one more frequent in the image; else that of the larger mask.
            classes = [other.class_index for other in self.objects]
            if classes.count(twin.class_index) > classes.count(one.class_index):
                self._relabel(one, twin.class_index, "duplicates")
            one.absorbed += [twin.origin, *twin.absorbed]
            self._drop(twin, "duplicates", "merged", other=str(self.image.names[one.origin]))

    def _resolve_nested(self) -> None:
        if not self.rules.nested:
            return
        objects = list(self.objects)
        overlaps = self._overlaps()
        inside = nested(overlaps, np.array([one.class_index for one in objects], dtype=np.int64), self.rules.nested)
        gone: set[int] = set()
        for outer in sorted(inside, key=lambda index: (-overlaps.first_areas[index], index)):
            inner = [index for index in sorted(inside[outer]) if index not in gone]
            if outer in gone or not inner:
                continue
            covered = objects[outer].crop.shared_pixels(union_of([objects[index].crop for index in inner]))
            is_group = len(inner) > 1 and covered >= GROUP_COVERED * objects[outer].area
            losers = [outer] if is_group else inner
            for index in losers:
                other = inner[0] if is_group else outer
                self._drop(objects[index], "nested", other=str(self.image.names[objects[other].origin]))
            gone.update(losers)

    def _overlaps(self) -> Overlaps:
        return shared_pixels(runs_of_crops([one.crop for one in self.objects], *self.size))

    def _change_mask(self, one: _Object, mask: np.ndarray, rule: str, action: str) -> None:
        added, removed = int(np.count_nonzero(mask & ~one.mask)), int(np.count_nonzero(one.mask & ~mask))
        before = one.area
        one.set_mask(mask)
        self._record(one, rule, action, added, removed, before, one.area)

    def _relabel(self, one: _Object, class_index: int, rule: str) -> None:
        names = f"{self.image.class_names[one.class_index]} to {self.image.class_names[class_index]}"
        one.class_index = class_index
        self._record(one, rule, "relabelled", 0, 0, one.area, one.area, names)

    def _drop(self, one: _Object, rule: str, action: str = "dropped", other: str = "") -> None:
        self.objects.remove(one)
        self._record(one, rule, action, 0, one.area, one.area, 0, other)

    def _record(self, one: _Object, rule: str, action: str, *numbers: int | str) -> None:
        self.changes.append(Change(self.image.file_name, self.image.names[one.origin], rule, action, *numbers))
