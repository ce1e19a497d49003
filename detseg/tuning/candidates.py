"""All predictions of a data set in arrays, so that the hits of any postprocess settings are counted in milliseconds.

Everything that does not depend on the settings is computed once: masks, scores, areas, the regions covered by the same
masks, pairs of duplicates, and the pairs of predictions and objects that can be hits. A setting decides which
predictions are kept, and therefore which of them owns a region.

Without overlaps, a prediction hits an object if its IoU is greater than a threshold t >= 0.5; no other prediction can
then hit the same object (`detseg.evaluation.object_ap`). The largest IoU of a prediction therefore gives the number of
thresholds at which it is a hit: its level.

Symbols: I images, K classes, T IoU thresholds, N candidates (numbered over all images, by image and then by descending
score), E entries (a region and one of the candidates on it), P pairs of a candidate and an object or crowd region.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from detseg.errors import DataError
from detseg.evaluation.evaluate import OBJECT_SCORES
from detseg.evaluation.ground_truth import ImageTruth
from detseg.evaluation.object_ap import IOU_THRESHOLDS, ObjectCounts
from detseg.fusion.overlaps import score_order
from detseg.fusion.postprocess import Postprocess
from detseg.fusion.suppression import keep_best, overlapping_pairs
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import Pairs, find_regions

# Each is a sum over images divided by another sum.
OBJECT_METRICS = OBJECT_SCORES


@dataclass(frozen=True)
class Hits:
    """Hits of N predictions without overlaps, over all images.

    image, classes: (N,) int64. scores: (N,) float32.
    level, level_in_class: (N,) int64, the number of thresholds at which it hits any object, or one of its class.
    crowd_level: (N,) int64, the number of thresholds at which it is inside a crowd region.
    """

    image: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    level: np.ndarray
    level_in_class: np.ndarray
    crowd_level: np.ndarray

    def of_images(self, images: np.ndarray) -> Hits:
        """Return the hits of some images, renumbered from 0; images: ascending indices."""
        place = np.full(int(max(self.image.max(initial=-1), images.max(initial=-1))) + 1, -1)
        place[images] = np.arange(len(images))
        keep = place[self.image] >= 0
        parts = {item.name: getattr(self, item.name)[keep] for item in fields(self)}
        return Hits(**{**parts, "image": place[parts["image"]]})


def is_fast(settings: Postprocess) -> bool:
    """Whether a `CandidateTable` can apply these settings; otherwise `Postprocess.apply` must be used."""
    largest = settings.keep_largest_component
    repairs_torn_masks = any(largest.values()) if isinstance(largest, dict) else bool(largest)
    return settings.resolve_overlaps and settings.overlap_policy == "score" and not repairs_torn_masks


class CandidateTable:
    """Predictions of all images, with the masks and scores that `Postprocess.shaped` gives them."""

    def __init__(
        self,
        truths: Sequence[ImageTruth],
        shaped: Sequence[Predictions],
        *,
        image_classes: np.ndarray | None = None,
        duplicates: bool = True,
    ) -> None:
        """truths, shaped: truths and predictions of the same images in the same order.

        image_classes: see `Postprocess.image_classes`. duplicates: whether nms_iou will be tuned.
        """
        columns: dict[str, list[np.ndarray]] = defaultdict(list)
        totals: Counter[str] = Counter()
        for number, (truth, image) in enumerate(zip(truths, shaped, strict=True)):
            for name, values in _columns_of_image(truth, image, duplicates).items():
                kind = _INDEXES.get(name)
                columns[name].append(values if kind is None else values + totals[kind])
            count = len(image)
            columns["image"].append(np.full(count, number))
            totals["candidate"] += count
            totals["region"] += int(columns["num_regions"][-1][0])
            totals["entry"] += len(columns["entry_candidate"][-1])
            totals["pair"] += len(columns["pair_candidate"][-1])

        def joined(name: str, dtype: type = np.int64) -> np.ndarray:
            return np.concatenate([np.zeros(0, dtype=dtype), *columns[name]]).astype(dtype)

        self.image, self.classes, self.areas = joined("image"), joined("classes"), joined("areas")
        self.scores = joined("scores", np.float32)
        # The class whose settings apply to each candidate.
        self.ruling = self.classes if image_classes is None else image_classes[self.image]
        self._num_regions = totals["region"]
        region, candidate, area = joined("entry_region"), joined("entry_candidate"), joined("entry_area")
        share_entry, share_pair = joined("share_entry"), joined("share_pair")
        # A region with one candidate always belongs to it: summed once, so that only contested entries cost time.
        contested = np.bincount(region)[region] > 1
        self._own_area = _sums(candidate[~contested], area[~contested], len(self.scores))
        self._entry_region, self._entry_candidate = region[contested], candidate[contested]
        self._entry_area = area[contested]
        open_share = contested[share_entry]
        own = ~open_share
        self._pair_own = _sums(share_pair[own], area[share_entry[own]], totals["pair"])
        self._share_entry = (np.cumsum(contested) - 1)[share_entry[open_share]]
        self._share_pair = share_pair[open_share]
        self._pair_candidate, self._pair_area = joined("pair_candidate"), joined("pair_area")
        self._pair_crowd = joined("pair_crowd", bool)
        self._pair_same_class = ~self._pair_crowd & (joined("pair_class") == self.classes[self._pair_candidate])
        self._duplicates = Pairs(joined("duplicate_first"), joined("duplicate_second"))
        self._duplicate_iou = joined("duplicate_iou", np.float64)

    def __len__(self) -> int:
        return len(self.scores)

    def hits(self, settings: Postprocess, only_class: int | None = None) -> Hits:
        """Return the hits among the predictions that `settings.apply` keeps.

        `is_fast(settings)` must hold, and mask threshold, mask quality, repairs and image class must be those that the
        table was made with. only_class: ignore predictions of all other classes.
        """
        kept = self.scores >= settings.values("score_threshold", self.ruling)
        if only_class is not None:
            kept &= self.classes == only_class
        low, high = settings.values("min_area", self.ruling), settings.values("max_area", self.ruling)
        kept &= (self.areas >= low) & (self.areas <= high)
        kept = self._without_duplicates(kept, settings.values("nms_iou", self.ruling))
        kept, owned = self._resolve_overlaps(kept, settings.min_visible_fraction)
        areas = self._visible_areas(owned)
        kept &= (areas == self.areas) | (areas >= low)
        return self._hits_of(np.flatnonzero(kept), areas, owned)

    def _without_duplicates(self, kept: np.ndarray, limits: np.ndarray) -> np.ndarray:
        close = kept[self._duplicates.first] & kept[self._duplicates.second]
        close &= self._duplicate_iou > limits[self._duplicates.first]
        if not close.any():
            return kept
        pairs = self._duplicates.select(close)
        return kept & keep_best(pairs, lambda chosen: np.ones(len(chosen)), np.zeros(len(kept)))

    def _resolve_overlaps(self, allowed: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Return which candidates keep enough pixels (N,) bool, and the entries that own their region (indices).

        Whether a candidate keeps enough depends on all better ones. Instead of a loop over candidates, this assumes
        that all are kept, finds those that see too little, and repeats this with the result until nothing changes: in
        every stack of overlapping candidates the k best are right after k rounds, and a fixed point is the answer.
        """
        needed = np.maximum(1, fraction * self.areas)
        entries = np.flatnonzero(allowed[self._entry_candidate])
        region, candidate = self._entry_region[entries], self._entry_candidate[entries]
        kept = allowed & (self.areas > 0)
        while True:
            present = np.flatnonzero(kept[candidate])
            firsts = present[np.flatnonzero(np.diff(region[present], prepend=-1))]
            owner = np.full(self._num_regions, len(self.scores))
            owner[region[firsts]] = candidate[firsts]
            # A candidate sees the pixels that no better one has; this is computed for dropped ones too.
            sees = candidate <= owner[region]
            enough = allowed & (self._visible_areas(entries[sees]) >= needed)
            if np.array_equal(enough, kept):
                return kept, entries[candidate == owner[region]]
            kept = enough

    def _visible_areas(self, entries: np.ndarray) -> np.ndarray:
        """Return the area (N,) int64 of every candidate, given the contested entries that it owns."""
        return self._own_area + _sums(self._entry_candidate[entries], self._entry_area[entries], len(self.scores))

    def _hits_of(self, kept: np.ndarray, areas: np.ndarray, owned: np.ndarray) -> Hits:
        is_owned = np.zeros(len(self._entry_area), dtype=bool)
        is_owned[owned] = True
        shares = np.flatnonzero(is_owned[self._share_entry])
        areas_shared = self._entry_area[self._share_entry[shares]]
        overlap = self._pair_own + _sums(self._share_pair[shares], areas_shared, len(self._pair_own))
        area = areas[self._pair_candidate]
        # For a crowd region the measure is the fraction of the prediction inside it.
        whole = np.where(self._pair_crowd, area, area + self._pair_area - overlap)
        iou = np.divide(overlap, whole, out=np.zeros(len(overlap)), where=whole > 0)
        levels = []
        for pairs in (~self._pair_crowd, self._pair_same_class, self._pair_crowd):
            best = np.zeros(len(self.scores))
            np.maximum.at(best, self._pair_candidate[pairs], iou[pairs])
            levels.append(np.searchsorted(IOU_THRESHOLDS, best[kept], side="left"))
        return Hits(self.image[kept], self.classes[kept], self.scores[kept], *levels)


def _sums(index: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Return the sums of the values with the same index, (count,) int64."""
    return np.bincount(index, weights=values, minlength=count).astype(np.int64)


# What the indices in a column refer to, needed to concatenate those of all images.
_INDEXES = {
    "entry_region": "region",
    "entry_candidate": "candidate",
    "pair_candidate": "candidate",
    "share_entry": "entry",
    "share_pair": "pair",
    "duplicate_first": "candidate",
    "duplicate_second": "candidate",
}


def _columns_of_image(truth: ImageTruth, predictions: Predictions, duplicates: bool) -> dict[str, np.ndarray]:
    """Return the columns of one image that do not depend on settings, by name; indices are local to the image."""
    if predictions.rles is None:
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} have no masks, which are needed to "
            "tune thresholds"
        )
    image = predictions.select(score_order(predictions.scores))
    count, width = len(image), max(len(truth.rles), 1)
    partition = find_regions(rle_codec.read_runs([*image.rles, *truth.rles]))
    predicted = partition.entry_mask < count
    region, candidate = partition.entry_region[predicted], partition.entry_mask[predicted]
    area = partition.areas[region]

    # Join the entries of candidates and of objects on the same region; those of one candidate and one object are a
    # pair.
    truth_region, truth_mask = partition.entry_region[~predicted], partition.entry_mask[~predicted] - count
    begin = np.searchsorted(truth_region, region, side="left")
    number = np.searchsorted(truth_region, region, side="right") - begin
    entry = np.repeat(np.arange(len(region)), number)
    step = np.arange(len(entry)) - (np.cumsum(number) - number)[entry]
    keys, pair = np.unique(candidate[entry] * width + truth_mask[begin[entry] + step], return_inverse=True)
    pair_candidate, pair_truth = np.divmod(keys, width)

    # An IoU above 1/2 needs more than half of the object; for a crowd region any overlap counts.
    truth_areas = rle_codec.area(truth.rles)
    overlap = np.bincount(pair, weights=area[entry], minlength=len(keys))
    useful = truth.crowd[pair_truth] | (2 * overlap > truth_areas[pair_truth])
    pair_number = np.cumsum(useful) - 1
    pair_truth = pair_truth[useful]
    close, iou = overlapping_pairs(image) if duplicates else (Pairs(*np.zeros((2, 0), dtype=np.int64)), [])
    return {
        "classes": image.classes,
        "scores": image.scores,
        "areas": np.bincount(candidate, weights=area, minlength=count),
        "num_regions": np.array([len(partition.areas)]),
        "entry_region": region,
        "entry_candidate": candidate,
        "entry_area": area,
        "pair_candidate": pair_candidate[useful],
        "pair_area": truth_areas[pair_truth],
        "pair_class": truth.classes[pair_truth],
        "pair_crowd": truth.crowd[pair_truth],
        "share_entry": entry[useful[pair]],
        "share_pair": pair_number[pair[useful[pair]]],
        "duplicate_first": close.first,
        "duplicate_second": close.second,
        "duplicate_iou": np.asarray(iou, dtype=np.float64),
    }


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
        """Stack the counts of single images."""
        rows, number = 1 + num_classes, len(IOU_THRESHOLDS)
        shapes = {"hits": (rows, number), "false_alarms": (rows, number), "misses": (rows, number)}
        shapes |= {"objects": (rows,), "predictions": (rows,)}
        columns = {
            name: np.array([getattr(image, name) for image in counts], dtype=np.int64).reshape(-1, *shape)
            for name, shape in shapes.items()
        }
        return cls(**columns)

    @classmethod
    def of_hits(cls, hits: Hits, objects: np.ndarray) -> CountTable:
        """Count the hits, false alarms and misses of all images; objects: (I, 1 + K), from `object_numbers`."""
        images, rows = objects.shape
        number = len(IOU_THRESHOLDS)
        # Every prediction counts in row 0, for all classes, and in the row of its class.
        row = np.concatenate([np.zeros_like(hits.classes), 1 + hits.classes])
        place = np.concatenate([hits.image, hits.image]) * rows + row

        def at_thresholds(level: np.ndarray) -> np.ndarray:
            """Return the number of predictions that are hits at each threshold, (I, 1 + K, T) int64."""
            flat = np.bincount(place * (number + 1) + level, minlength=images * rows * (number + 1))
            return flat.reshape(images, rows, number + 1)[..., :0:-1].cumsum(axis=-1)[..., ::-1]

        level = np.concatenate([hits.level, hits.level_in_class])
        found = at_thresholds(level)
        no_alarm = at_thresholds(np.maximum(level, np.concatenate([hits.crowd_level, hits.crowd_level])))
        predictions = np.bincount(place, minlength=images * rows).reshape(images, rows)
        return cls(found, predictions[..., None] - no_alarm, objects[..., None] - found, objects, predictions)

    def parts(self, metric: str, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return two (I,) float64; the score of a set of images is the sum of the first / the sum of the second.

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
    """Return the number of objects (I, 1 + K) int64, in total and by class, without crowd regions."""
    numbers = np.zeros((len(truths), 1 + num_classes), dtype=np.int64)
    for index, truth in enumerate(truths):
        numbers[index, 1:] = np.bincount(truth.classes[~truth.crowd], minlength=num_classes)
    numbers[:, 0] = numbers[:, 1:].sum(axis=1)
    return numbers
