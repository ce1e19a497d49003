"""Hits of disjoint predictions at every IoU threshold, for all images of a data set at once, and scores made of them.

A prediction of disjoint ones hits an object when its IoU is greater than a threshold t >= 0.5; no other can hit the
same object then (`detseg.evaluation.object_ap`). So the largest IoU of a prediction says at how many of the thresholds
it is a hit: its level.

Symbols: I images, K classes, N predictions, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.errors import DataError
from detseg.evaluation.ground_truth import ImageTruth
from detseg.evaluation.object_ap import IOU_THRESHOLDS, ObjectCounts
from detseg.fusion.atoms import find_atoms
from detseg.fusion.overlaps import score_order
from detseg.fusion.pairs import Pairs
from detseg.fusion.postprocess import Postprocess
from detseg.fusion.suppression import keep_best, overlapping_pairs
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

# Scores that are a sum over images divided by another.
OBJECT_METRICS = ("object_ap", "object_ap50", "object_ap75", "mean_f1", "precision", "recall")


def level_of(values: np.ndarray) -> np.ndarray:
    """Return how many of the IoU thresholds every value (N,) is greater than, (N,) int64 from 0 to T."""
    return np.searchsorted(IOU_THRESHOLDS, values, side="left")


@dataclass(frozen=True)
class Hits:
    """N disjoint predictions that a setting leaves, of all images: image, classes (N,) int64, scores (N,) float32.

    level, level_in_class: (N,) int64, the number of thresholds at which it hits any object, or one of its class.
    crowd_level: (N,) int64, the number of thresholds at which it lies in a crowd region.
    """

    image: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    level: np.ndarray
    level_in_class: np.ndarray
    crowd_level: np.ndarray


@dataclass(frozen=True)
class CountTable:
    """`ObjectCounts` of I images in arrays: (I, 1 + K, T) int64, objects and predictions (I, 1 + K) int64."""

    hits: np.ndarray
    false_alarms: np.ndarray
    misses: np.ndarray
    objects: np.ndarray
    predictions: np.ndarray

    @classmethod
    def of_images(cls, counts: Sequence[ObjectCounts], num_classes: int) -> CountTable:
        """Put the counts of single images together."""
        rows, number = 1 + num_classes, len(IOU_THRESHOLDS)
        shapes = {"hits": (rows, number), "false_alarms": (rows, number), "misses": (rows, number)}
        shapes |= {"objects": (rows,), "predictions": (rows,)}
        return cls(
            **{
                name: np.array([getattr(image, name) for image in counts], dtype=np.int64).reshape(-1, *shape)
                for name, shape in shapes.items()
            }
        )

    def parts(self, metric: str, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (I,) float64 twice; the score of a set of images is the sum of the first / the sum of the second.

        metric: one of `OBJECT_METRICS`. row: 0 for all objects, 1 + k for class k.
        """
        hits, alarms, misses = (part[:, row] for part in (self.hits, self.false_alarms, self.misses))
        if metric in ("precision", "recall"):
            other = alarms if metric == "precision" else misses
            return hits[:, 0].astype(float), (hits + other)[:, 0].astype(float)
        used = (self.objects[:, row] > 0) | (self.predictions[:, row] > 0) | (row == 0)
        times = 2 if metric == "mean_f1" else 1
        whole = times * hits + alarms + misses
        values = np.divide(times * hits, whole, out=np.ones(hits.shape), where=whole > 0)
        column = {"object_ap50": values[:, 0], "object_ap75": values[:, 5]}.get(metric)
        return (values.mean(axis=1) if column is None else column) * used, used.astype(float)


def object_numbers(truths: Sequence[ImageTruth], num_classes: int) -> np.ndarray:
    """Return the numbers of objects (I, 1 + K) int64 of all and of every class; crowd regions are none."""
    numbers = np.zeros((len(truths), 1 + num_classes), dtype=np.int64)
    for index, truth in enumerate(truths):
        numbers[index, 1:] = np.bincount(truth.classes[~truth.crowd], minlength=num_classes)
    numbers[:, 0] = numbers[:, 1:].sum(axis=1)
    return numbers


def count_hits(hits: Hits, objects: np.ndarray) -> CountTable:
    """Count the hits, false alarms and misses of all images; objects (I, 1 + K) from `object_numbers`."""
    images, rows = objects.shape
    everything = np.zeros(len(hits.image), dtype=np.int64)
    row = np.concatenate([everything, 1 + hits.classes])
    image = np.concatenate([hits.image, hits.image])
    level = np.concatenate([hits.level, hits.level_in_class])
    found = _at_thresholds(image, row, level, images, rows)
    no_alarm = np.maximum(level, np.concatenate([hits.crowd_level, hits.crowd_level]))
    predictions = np.bincount(image * rows + row, minlength=images * rows).reshape(images, rows)
    alarms = predictions[..., None] - _at_thresholds(image, row, no_alarm, images, rows)
    return CountTable(found, alarms, objects[..., None] - found, objects, predictions)


def _at_thresholds(image: np.ndarray, row: np.ndarray, level: np.ndarray, images: int, rows: int) -> np.ndarray:
    """Return how many levels (N,) reach each threshold, (images, rows, T) int64."""
    number = len(IOU_THRESHOLDS)
    flat = np.bincount((image * rows + row) * (number + 1) + level, minlength=images * rows * (number + 1))
    return flat.reshape(images, rows, number + 1)[..., :0:-1].cumsum(axis=-1)[..., ::-1]


# All predictions of a data set and all pairs that matter, computed once, so that a postprocess costs milliseconds.
#
# What is fixed: masks, scores, areas, the atoms on which masks meet (`detseg.fusion.atoms`), pairs of duplicates, the
# pairs of predictions and objects that can hit. What a setting decides: which predictions stay, and so who owns an
# atom.
#
# That depends on better predictions alone, one after the other. Instead of going through them, `_visible_ones` assumes
# that all stay, finds who sees too little, and repeats that with the answer until nothing changes: the k best of every
# heap are right after k rounds, and a state that repeats itself is the one answer there is.
#
# Candidates are numbered through all images, by image and then by falling score. Symbols: N candidates, C entries (an
# atom with several candidates, and one of them), P pairs of a candidate and an object or crowd region.


def is_fast(settings: Postprocess) -> bool:
    """Whether a `CandidateTable` knows what these settings do; else the postprocess itself must be applied."""
    largest = settings.keep_largest_component
    torn_is_repaired = any(largest.values()) if isinstance(largest, dict) else bool(largest)
    return settings.resolve_overlaps and settings.overlap_policy == "score" and not torn_is_repaired


@dataclass(frozen=True)
class _Part:
    """The arrays of one image; see `CandidateTable`. Indices count within the image."""

    classes: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    own_areas: np.ndarray
    entry_atom: np.ndarray
    entry_candidate: np.ndarray
    entry_area: np.ndarray
    pair_candidate: np.ndarray
    pair_truth: np.ndarray
    pair_own: np.ndarray
    share_entry: np.ndarray
    share_pair: np.ndarray
    twins: Pairs
    twin_iou: np.ndarray


class CandidateTable:
    """Predictions of all images, with the masks and scores that `Postprocess.shaped` gives them."""

    def __init__(self, truths: Sequence[ImageTruth], shaped: Sequence[Predictions], *, duplicates: bool = True) -> None:
        """truths and shaped predictions: the same images in the same order. duplicates: nms_iou will be asked for."""
        parts = [_part(truth, image, duplicates) for truth, image in zip(truths, shaped, strict=True)]
        numbers = [len(part.scores) for part in parts]
        first = np.cumsum([0, *numbers])[:-1]
        self.image = np.repeat(np.arange(len(parts)), numbers)
        self.classes = _join([part.classes for part in parts])
        self.scores = _join([part.scores for part in parts], np.float32)
        self.areas = _join([part.areas for part in parts])
        self._own_areas = _join([part.own_areas for part in parts])
        self._entry_atom = _join([part.entry_atom for part in parts], offsets=_last(parts, "entry_atom"))
        self._entry_candidate = _join([part.entry_candidate for part in parts], offsets=first)
        self._entry_area = _join([part.entry_area for part in parts])
        self._pair_candidate = _join([part.pair_candidate for part in parts], offsets=first)
        self._pair_own = _join([part.pair_own for part in parts])
        entries = np.cumsum([0, *(len(part.entry_atom) for part in parts)])[:-1]
        pairs = np.cumsum([0, *(len(part.pair_own) for part in parts)])[:-1]
        self._share_entry = _join([part.share_entry for part in parts], offsets=entries)
        self._share_pair = _join([part.share_pair for part in parts], offsets=pairs)
        self._twins = Pairs(
            _join([part.twins.first for part in parts], offsets=first),
            _join([part.twins.second for part in parts], offsets=first),
        )
        self._twin_iou = _join([part.twin_iou for part in parts], np.float64)
        self._describe_truth(truths, parts)

    def _describe_truth(self, truths: Sequence[ImageTruth], parts: Sequence[_Part]) -> None:
        """Keep areas, classes and crowd flags (P,) of the truths of all pairs."""
        areas = [rle_codec.area(truth.rles)[part.pair_truth] for truth, part in zip(truths, parts, strict=True)]
        classes = [truth.classes[part.pair_truth] for truth, part in zip(truths, parts, strict=True)]
        crowd = [truth.crowd[part.pair_truth] for truth, part in zip(truths, parts, strict=True)]
        self._pair_area = _join(areas)
        self._pair_crowd = _join(crowd, bool)
        self._pair_same = ~self._pair_crowd & (_join(classes) == self.classes[self._pair_candidate])

    def __len__(self) -> int:
        return len(self.scores)

    def hits(self, settings: Postprocess, only_class: int | None = None) -> Hits:
        """Return what `settings.apply` leaves of the predictions, as hits.

        The settings must be `is_fast`, and of the mask threshold, mask quality and repairs that the table was made
        with. only_class: as if there were no predictions of other classes.
        """
        kept = self.scores >= settings.values("score_threshold", self.classes)
        if only_class is not None:
            kept &= self.classes == only_class
        low, high = settings.values("min_area", self.classes), settings.values("max_area", self.classes)
        kept &= (self.areas >= low) & (self.areas <= high)
        kept = self._without_twins(kept, settings.values("nms_iou", self.classes))
        kept, owns = self._visible_ones(kept, settings.min_visible_fraction)
        areas = self._visible_areas(owns)
        kept &= (areas == self.areas) | (areas >= low)
        return self._hits_of(np.flatnonzero(kept), areas, owns)

    def _without_twins(self, kept: np.ndarray, limits: np.ndarray) -> np.ndarray:
        close = kept[self._twins.first] & kept[self._twins.second]
        close &= self._twin_iou > limits[self._twins.first]
        if not close.any():
            return kept
        pairs = self._twins.select(close)
        return kept & keep_best(pairs, lambda chosen: np.ones(len(chosen)), np.zeros(len(kept)))

    def _visible_ones(self, allowed: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Return who keeps enough pixels (N,) bool, and which entries (C,) bool own their atom."""
        need = np.maximum(1, fraction * self.areas)
        entries = np.flatnonzero(allowed[self._entry_candidate])
        atom, candidate = self._entry_atom[entries], self._entry_candidate[entries]
        kept = allowed & (self.areas > 0)
        while True:
            present = np.flatnonzero(kept[candidate])
            # What a candidate sees is what no better one has: also one that is dropped is told what it would see.
            starts = np.flatnonzero(np.diff(atom[present], prepend=-1))
            best_of_atom = np.full(self._entry_atom[-1] + 1 if len(self._entry_atom) else 0, len(self.scores))
            best_of_atom[atom[present][starts]] = candidate[present][starts]
            sees = candidate <= best_of_atom[atom]
            visible = self._own_areas + np.bincount(
                candidate[sees], weights=self._entry_area[entries][sees], minlength=len(self.scores)
            ).astype(np.int64)
            enough = allowed & (visible >= need)
            if np.array_equal(enough, kept):
                break
            kept = enough
        owner = np.zeros(len(self._entry_atom), dtype=bool)
        owner[entries[candidate == best_of_atom[atom]]] = True
        return kept, owner

    def _visible_areas(self, owns: np.ndarray) -> np.ndarray:
        entries = np.flatnonzero(owns)
        shared = np.bincount(
            self._entry_candidate[entries], weights=self._entry_area[entries], minlength=len(self.scores)
        )
        return self._own_areas + shared.astype(np.int64)

    def _hits_of(self, kept: np.ndarray, areas: np.ndarray, owns: np.ndarray) -> Hits:
        shares = np.flatnonzero(owns[self._share_entry])
        overlap = self._pair_own + np.bincount(
            self._share_pair[shares], weights=self._entry_area[self._share_entry[shares]], minlength=len(self._pair_own)
        ).astype(np.int64)
        area = areas[self._pair_candidate]
        whole = np.where(self._pair_crowd, area, area + self._pair_area - overlap)
        iou = np.divide(overlap, whole, out=np.zeros(len(overlap)), where=whole > 0)
        levels = []
        for of_kind in (~self._pair_crowd, self._pair_same, self._pair_crowd):
            best = np.zeros(len(self.scores))
            np.maximum.at(best, self._pair_candidate[of_kind], iou[of_kind])
            levels.append(level_of(best[kept]))
        return Hits(self.image[kept], self.classes[kept], self.scores[kept], *levels)


def _join(arrays: Sequence[np.ndarray], dtype: type = np.int64, offsets: Sequence[int] | None = None) -> np.ndarray:
    """Put arrays behind each other, each with its offset added."""
    added = arrays if offsets is None else [array + offset for array, offset in zip(arrays, offsets, strict=True)]
    return np.concatenate([np.zeros(0, dtype=dtype), *added]).astype(dtype)


def _last(parts: Sequence[_Part], name: str) -> np.ndarray:
    """Return offsets that number the values of all parts through."""
    return np.cumsum([0, *(getattr(part, name).max(initial=-1) + 1 for part in parts)])[:-1]


def _part(truth: ImageTruth, predictions: Predictions, duplicates: bool) -> _Part:
    """Return what is fixed of one image."""
    if predictions.rles is None:
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} are boxes without masks: thresholds "
            "are chosen by the masks that they leave"
        )
    image = predictions.select(score_order(predictions.scores))
    count = len(image)
    atoms = find_atoms([*image.rles, *truth.rles])
    found = atoms.entry_mask < count
    entry_atom, candidate = atoms.entry_atom[found], atoms.entry_mask[found]
    area = atoms.areas[entry_atom]
    on_atom = np.bincount(entry_atom, minlength=len(atoms.areas))
    alone = on_atom[entry_atom] == 1
    areas, own_areas = (
        np.bincount(candidate[chosen], weights=area[chosen], minlength=count).astype(np.int64)
        for chosen in (slice(None), alone)
    )
    shared_entry, shared_truth = _on_truth(atoms.entry_atom[~found], atoms.entry_mask[~found] - count, entry_atom)
    pair_candidate, pair_truth, pair_own, share_entry, share_pair = _pairs_with_truth(
        candidate, area, alone, shared_entry, shared_truth, truth
    )
    # Entries that are alone on their atom leave the list: the others are numbered anew.
    number = np.cumsum(~alone) - 1
    twins, twin_iou = overlapping_pairs(image) if duplicates else (Pairs(*np.zeros((2, 0), dtype=np.int64)), [])
    return _Part(
        classes=image.classes,
        scores=image.scores,
        areas=areas,
        own_areas=own_areas,
        entry_atom=entry_atom[~alone],
        entry_candidate=candidate[~alone],
        entry_area=area[~alone],
        pair_candidate=pair_candidate,
        pair_truth=pair_truth,
        pair_own=pair_own,
        share_entry=number[share_entry],
        share_pair=share_pair,
        twins=twins,
        twin_iou=np.asarray(twin_iou, dtype=np.float64),
    )


def _on_truth(truth_atom: np.ndarray, truth: np.ndarray, entry_atom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every entry of a candidate together with every truth on its atom: (S,) int64 each."""
    begin = np.searchsorted(truth_atom, entry_atom, side="left")
    number = np.searchsorted(truth_atom, entry_atom, side="right") - begin
    entry = np.repeat(np.arange(len(entry_atom)), number)
    step = np.arange(len(entry)) - (np.cumsum(number) - number)[entry]
    return entry, truth[begin[entry] + step]


def _pairs_with_truth(
    candidate: np.ndarray,
    area: np.ndarray,
    alone: np.ndarray,
    shared_entry: np.ndarray,
    shared_truth: np.ndarray,
    truth: ImageTruth,
) -> tuple[np.ndarray, ...]:
    """Return the pairs that can hit, what each shares for sure, and its further shares: entry and pair."""
    width = max(len(truth.rles), 1)
    keys, pair = np.unique(candidate[shared_entry] * width + shared_truth, return_inverse=True)
    pair_candidate, pair_truth = np.divmod(keys, width)
    whole = np.bincount(pair, weights=area[shared_entry], minlength=len(keys))
    # An IoU above 1/2 needs more than half of the object; of a crowd region any part will do.
    useful = truth.crowd[pair_truth] | (2 * whole > rle_codec.area(truth.rles)[pair_truth])
    sure = alone[shared_entry]
    own = np.bincount(pair[sure], weights=area[shared_entry[sure]], minlength=len(keys)).astype(np.int64)
    number = np.cumsum(useful) - 1
    contested = ~sure & useful[pair]
    return pair_candidate[useful], pair_truth[useful], own[useful], shared_entry[contested], number[pair[contested]]
