"""Repairing the masks of one image: the rules in their order, until none of them finds anything.

Masks live in crops, so that time and memory grow with the objects' boxes and not with objects x image area.

Why it ends: trimming and splitting make no holes, a filled hole adds neither crumb nor piece, and every object that
goes is one less; so each of them can happen only so often.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.curation.repair.masks import (
    crumbs_of,
    far_groups,
    filled,
    filled_where_free,
    is_speck,
    majority_class,
    pieces_of,
)
from detseg.curation.repair.overlaps import near_duplicates, nested, outlines_of_clusters
from detseg.curation.repair.rules import Change, RepairRules
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop, boxes_of_crops, runs_of_crops
from detseg.structures.overlaps import Overlaps, shared_pixels

logger = logging.getLogger(__name__)

# Far more than any image needs; a bound all the same.
_MOST_ROUNDS = 50


@dataclass(frozen=True)
class ImageMasks:
    """The N masks of one image before repair.

    rles: compressed COCO RLEs of one size. classes: (N,) int64, 0-based. names: what the list of changes calls them,
    ids or numbers. class_names: for that list. allowed: the class indices of the image's kind, None where nothing is
    known of it.
    """

    file_name: str
    rles: Sequence[Mapping[str, Any]]
    classes: np.ndarray
    names: Sequence[int | str]
    class_names: Sequence[str]
    allowed: set[int] | None = None


@dataclass(frozen=True)
class RepairedMasks:
    """The M masks after repair, those of one origin behind each other.

    rles, classes (M,) int64: as before. origins: (M,) int64, which mask each one was. changed: (M,) bool, whether its
    pixels are others. absorbed: for each, the masks that were merged into it. changes: what was done.
    """

    rles: list[dict[str, Any]]
    classes: np.ndarray
    origins: np.ndarray
    changed: np.ndarray
    absorbed: list[list[int]]
    changes: list[Change]


@dataclass(eq=False)
class _Object:
    origin: int
    crop: MaskCrop
    class_index: int
    changed: bool = False
    gone: bool = False
    absorbed: list[int] = field(default_factory=list)

    @property
    def mask(self) -> np.ndarray:
        return self.crop.mask

    @property
    def area(self) -> int:
        return self.crop.area

    def set_mask(self, mask: np.ndarray) -> None:
        """Take another mask of the same window, cut to what it holds."""
        self.changed = True
        self.crop = _contiguous(self.crop._replace(mask=mask).tight())


def _contiguous(crop: MaskCrop) -> MaskCrop:
    return crop._replace(mask=np.ascontiguousarray(crop.mask))


def repair_image(image: ImageMasks, rules: RepairRules) -> RepairedMasks:
    """Apply the rules to the masks of one image; what they find stands in `changes`.

    Repairing the result again changes nothing.
    """
    return _ImageRepair(image, rules).run()


class _Neighbours:
    """Finds objects by their boxes, as they were when this was made: trimmed objects have smaller ones since."""

    def __init__(self, objects: Sequence[_Object]) -> None:
        self.objects = list(objects)
        self.boxes = boxes_of_crops([thing.crop for thing in objects])

    def of(self, thing: _Object) -> list[_Object]:
        """Return the other objects whose boxes meet that of an object."""
        boxes = self.boxes
        x0, y0, x1, y1 = thing.crop.box
        near = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
        found = [self.objects[index] for index in np.flatnonzero(near)]
        return [other for other in found if other is not thing and not other.gone]


class _ImageRepair:
    """The objects of one image while they are repaired."""

    def __init__(self, image: ImageMasks, rules: RepairRules) -> None:
        self.image = image
        self.rules = rules
        self.size = tuple(image.rles[0]["size"]) if len(image.rles) else (0, 0)  # (height, width)
        self.changes: list[Change] = []
        self.neighbours = _Neighbours([])
        self.objects = [
            _Object(index, _contiguous(crop), int(image.classes[index]))
            for index, crop in enumerate(rle_codec.decode_crops(image.rles))
        ]

    def run(self) -> RepairedMasks:
        self._drop_empty()
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
            logger.warning("%s: repair did not come to rest; run it again", self.image.file_name)
        return self._result()

    def _mend_shapes(self, pending: list[_Object]) -> list[_Object]:
        """Apply the rules of single masks; return the objects to look at again: changed ones, and those with holes."""
        again = []
        self.neighbours = _Neighbours(self.objects)
        for thing in [thing for thing in pending if not thing.gone]:
            before = len(self.changes)
            left = self._fill_holes(thing)
            self._trim_crumbs(thing)
            pieces = self._separate(thing)
            if left or len(self.changes) > before:
                again += pieces
        for thing in [thing for thing in self.objects if thing.area < self.rules.min_area]:
            self._drop(thing, "min_area")
        return again

    def _drop_empty(self) -> None:
        for thing in [thing for thing in self.objects if not thing.area]:
            self._drop(thing, "empty")

    def _fill_holes(self, thing: _Object) -> bool:
        """Fill the holes of an object; return whether some are left because of other objects in them."""
        whole, left = (thing.mask if self.rules.holes == "off" else filled(thing.mask)), False
        if whole is not thing.mask and self.rules.holes == "free":
            whole, left = filled_where_free(thing.crop, [other.crop for other in self.neighbours.of(thing)])
        if whole is not thing.mask:
            self._change_mask(thing, whole, "holes", "filled")
        return left

    def _trim_crumbs(self, thing: _Object) -> None:
        if not self.rules.crumbs:
            return
        crumbs = crumbs_of(thing.mask, self.rules.crumbs)
        if crumbs.any():
            self._change_mask(thing, thing.mask & ~crumbs, "crumbs", "trimmed")

    def _separate(self, thing: _Object) -> list[_Object]:
        """Drop the specks of an object and split off others; return its pieces."""
        rules = self.rules
        pieces = [thing.mask] if rules.fragments == "off" else pieces_of(thing.mask)
        if len(pieces) == 1:
            return [thing]
        if rules.far:
            groups = far_groups(pieces, rules.far)
            if len(groups) > 1:
                return self._split(thing, groups)
        areas = np.array([np.count_nonzero(piece) for piece in pieces])
        specks = is_speck(areas, rules.speck_area, rules.speck_fraction)
        if specks.any():
            large = [piece for piece, speck in zip(pieces, specks, strict=True) if not speck]
            self._change_mask(thing, np.logical_or.reduce(large), "specks", "trimmed")
            pieces = pieces_of(thing.mask)
        if len(pieces) > 1 and rules.fragments == "split":
            return self._split(thing, pieces)
        if len(pieces) > 1 and rules.fragments == "largest":
            self._change_mask(thing, pieces[0], "fragments", "trimmed")
        return [thing]

    def _split(self, thing: _Object, parts: Sequence[np.ndarray]) -> list[_Object]:
        """Leave the first part to an object and make objects of the others, but for those as small as specks."""
        before = thing.area
        large = [part for part in parts[1:] if np.count_nonzero(part) >= self.rules.speck_area]
        if len(large) < len(parts) - 1:
            self._change_mask(thing, np.logical_or.reduce([parts[0], *large]), "specks", "trimmed")
            return [thing]
        new = [_Object(thing.origin, thing.crop, thing.class_index) for _ in large]
        for piece, part in zip(new, large, strict=True):
            piece.set_mask(part)
        thing.set_mask(parts[0])
        count = f"{len(parts)} pieces"
        self._record(thing, "fragments", "split", 0, before - thing.area, before, thing.area, count)
        position = self.objects.index(thing) + 1
        self.objects[position:position] = new
        self.neighbours = _Neighbours(self.objects)
        return [thing, *new]

    def _mend_classes(self) -> None:
        if self.rules.wrong_class == "off":
            return
        allowed = self.image.allowed
        if allowed is None and self.rules.one_class_per_image:
            allowed = majority_class(np.array([thing.class_index for thing in self.objects], dtype=np.int64))
        if allowed is None:
            return
        for thing in [thing for thing in self.objects if thing.class_index not in allowed]:
            if self.rules.wrong_class == "drop" or len(allowed) > 1:
                self._drop(thing, "wrong_class", other=self.image.class_names[thing.class_index])
                continue
            old, thing.class_index = thing.class_index, next(iter(allowed))
            names = f"{self.image.class_names[old]} to {self.image.class_names[thing.class_index]}"
            self._record(thing, "wrong_class", "relabelled", 0, 0, thing.area, thing.area, names)

    def _merge_duplicates(self) -> None:
        if not self.rules.duplicates:
            return
        things = list(self.objects)
        for kept, dropped in near_duplicates(self._overlaps(), self.rules.duplicates):
            self._settle_class(things[kept], things[dropped])
            things[kept].absorbed += [things[dropped].origin, *things[dropped].absorbed]
            self._drop(things[dropped], "duplicates", "merged", other=str(self.image.names[things[kept].origin]))

    def _settle_class(self, kept: _Object, dropped: _Object) -> None:
        """Of two classes for one object take the one that more objects of the image have; else that of the larger."""
        if kept.class_index == dropped.class_index:
            return
        classes = [thing.class_index for thing in self.objects]
        old, new = kept.class_index, dropped.class_index
        if classes.count(new) > classes.count(old):
            kept.class_index = new
            names = f"{self.image.class_names[old]} to {self.image.class_names[new]}"
            self._record(kept, "duplicates", "relabelled", 0, 0, kept.area, kept.area, names)

    def _resolve_nested(self) -> None:
        if not self.rules.nested:
            return
        things = list(self.objects)
        crops = [thing.crop for thing in things]
        overlaps = self._overlaps()
        inside = nested(overlaps, np.array([thing.class_index for thing in things], dtype=np.int64), self.rules.nested)
        gone: set[int] = set()
        for outer in sorted(inside, key=lambda index: (-overlaps.first_areas[index], index)):
            inner = [index for index in sorted(inside[outer]) if index not in gone]
            if outer in gone or not inner:
                continue
            losers = {outer} if outlines_of_clusters(crops, {outer: inner}) else set(inner)
            for index in sorted(losers):
                other = inner[0] if index == outer else outer
                self._drop(things[index], "nested", other=str(self.image.names[things[other].origin]))
            gone |= losers

    def _overlaps(self) -> Overlaps:
        return shared_pixels(runs_of_crops([thing.crop for thing in self.objects], *self.size))

    def _change_mask(self, thing: _Object, mask: np.ndarray, rule: str, action: str) -> None:
        added, removed = np.count_nonzero(mask & ~thing.mask), np.count_nonzero(thing.mask & ~mask)
        before = thing.area
        thing.set_mask(mask)
        self._record(thing, rule, action, int(added), int(removed), before, thing.area)

    def _drop(self, thing: _Object, rule: str, action: str = "dropped", other: str = "") -> None:
        thing.gone = True
        self.objects.remove(thing)
        self._record(thing, rule, action, 0, thing.area, thing.area, 0, other)

    def _record(self, thing: _Object, rule: str, action: str, *numbers: int | str) -> None:
        name = self.image.names[thing.origin]
        self.changes.append(Change(self.image.file_name, name, rule, action, *numbers))

    def _result(self) -> RepairedMasks:
        self.objects.sort(key=lambda thing: thing.origin)  # stable: pieces keep their order
        new = rle_codec.encode_crops([thing.crop for thing in self.objects if thing.changed], *self.size)
        encoded = iter(new)
        return RepairedMasks(
            rles=[next(encoded) if thing.changed else dict(self.image.rles[thing.origin]) for thing in self.objects],
            classes=np.array([thing.class_index for thing in self.objects], dtype=np.int64),
            origins=np.array([thing.origin for thing in self.objects], dtype=np.int64),
            changed=np.array([thing.changed for thing in self.objects], dtype=bool),
            absorbed=[thing.absorbed for thing in self.objects],
            changes=self.changes,
        )
