"""The index of the image at each position of the training stream, a function of (seed, position) only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.config.options import Options, Problems, key
from detseg.errors import DataError

# Ids of independent random streams derived from one seed.
ORDER_STREAM, SAMPLE_STREAM, PASTE_STREAM, VIEW_STREAM, PSEUDO_ORDER_STREAM = 1, 2, 3, 4, 5


_REPEAT = "RepeatFactorTrainingSampler"


@dataclass(frozen=True)
class SamplingOptions(Options):
    """How often images are used.

    sampler: with Detectron2's names. repeat_threshold, repeat_sqrt: of `repeat_factors`. balance_by, balance_power: of
    `balancing_weights`. set_weights: relative frequency of each data set of DATASETS.TRAIN and EXTRA_TRAIN; empty for
    the numbers of their images. filter_empty: leave out images without objects.
    """

    section = "DATALOADER"

    sampler: str = key("SAMPLER_TRAIN", choices=("TrainingSampler", _REPEAT))
    repeat_threshold: float = key("REPEAT_THRESHOLD", at_least=0)
    repeat_sqrt: bool = key("REPEAT_SQRT")
    balance_by: str = key("BALANCE_BY")
    balance_power: float = key("BALANCE_POWER", at_least=0, at_most=1)
    set_weights: tuple[float, ...] = key("DATASETS.TRAIN_WEIGHTS", above=0)
    num_sets: int = key("DATASETS.TRAIN", convert=len)
    num_extra_sets: int = key("DATASETS.EXTRA_TRAIN", convert=len)
    filter_empty: bool = key("FILTER_EMPTY_ANNOTATIONS")

    def check(self, problems: Problems) -> None:
        if self.set_weights:
            problems.length("DATASETS.TRAIN_WEIGHTS", self.num_sets + self.num_extra_sets)
        if self.sampler != _REPEAT:
            return
        if not 0 < self.repeat_threshold <= 1:
            problems.add(
                "DATALOADER.REPEAT_THRESHOLD",
                "expected the fraction of images below which a class is rare, such as 0.1, for "
                f"DATALOADER.SAMPLER_TRAIN {_REPEAT}; at 0 it would repeat nothing",
            )
        if self.balance_by:
            problems.add("DATALOADER.BALANCE_BY", f'expected "" with {_REPEAT}: only one of them is possible')

    def order(self, dataset: CocoDataset, seed: int, stream: int = ORDER_STREAM) -> EpochOrder:
        """Return the order of a data set's images. Raises DataError if images lack the field `balance_by`."""
        length = None
        if self.sampler == _REPEAT:
            weights = repeat_factors(dataset, self.repeat_threshold, self.repeat_sqrt)
            length = round(float(weights.sum()))
        else:
            weights = balancing_weights(dataset, self.balance_by, self.balance_power)
        if self.set_weights:
            weights = mix(weights, dataset.origins, self.set_weights)
        return EpochOrder(len(dataset), seed, weights, length, stream)


class EpochOrder:
    """The order of images, epoch by epoch.

    weights: (N,) relative frequency of images; None for equal ones. Every epoch has `length` positions (None: N); an
    image of weight w occurs floor or ceil of length w / sum(w) times in it, in random order.
    """

    def __init__(
        self,
        num_images: int,
        seed: int,
        weights: np.ndarray | None = None,
        length: int | None = None,
        stream: int = ORDER_STREAM,
    ) -> None:
        if num_images < 1:
            raise DataError("there are no images to train with; check DATASETS.TRAIN and FILTER_EMPTY_ANNOTATIONS")
        self.num_images = num_images
        self.seed = seed
        self.stream = stream
        self.length = length or num_images
        self._cumulated = None
        if self.length != num_images or (weights is not None and not np.all(weights == weights[0])):
            weights = np.ones(num_images) if weights is None else weights
            self._cumulated = np.cumsum(weights / weights.sum())
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        """Return the index of the image at a position >= 0 of the stream."""
        epoch, within = divmod(position, self.length)
        if epoch != self._epoch:
            self._order, self._epoch = self._order_of(epoch), epoch
        return int(self._order[within])

    def _order_of(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, self.stream, epoch))
        if self._cumulated is None:
            return rng.permutation(self.num_images)
        # Systematic sampling: one random start and even steps make the counts as even as possible.
        points = (rng.random() + np.arange(self.length)) / self.length
        drawn = np.minimum(np.searchsorted(self._cumulated, points, side="right"), self.num_images - 1)
        return rng.permutation(drawn)


class MixedOrder:
    """A mixture of two orders: of every sum(ratio) positions, ratio[1] are from the second one, evenly spread.

    Every batch therefore has both in this ratio, up to one image. members: (N,) image index for each index of the two
    orders.
    """

    def __init__(
        self,
        orders: tuple[EpochOrder, EpochOrder],
        members: tuple[np.ndarray, np.ndarray],
        ratio: tuple[int, int],
    ) -> None:
        self.orders = orders
        self.members = members
        self.ratio = ratio

    def __getitem__(self, position: int) -> int:
        """Return the index of the image at a position >= 0 of the stream."""
        before, after = (place * self.ratio[1] // sum(self.ratio) for place in (position, position + 1))
        which, own = (1, before) if after > before else (0, position - before)
        return int(self.members[which][self.orders[which][own]])


def balancing_weights(dataset: CocoDataset, balance_by: str, power: float) -> np.ndarray | None:
    """Return weights (N,) float64 that balance a data set, or None if there is nothing to balance.

    balance_by: "" for none; "category": images are weighted by their rarest class (by number of images with it), like
    LVIS's repeat factors (Gupta et al. 2019); images without objects like the most frequent one. Else an image field of
    the COCO file, whose values become equally frequent. power: 0 for no balancing, 1 for full balancing.

    Raises DataError if images lack the field.
    """
    if not balance_by or power == 0:
        return None
    if balance_by == "category":
        present = dataset.objects_per_image() > 0
        images_with = np.maximum(present.sum(axis=0), 1)
        weights = np.where(present, 1.0 / images_with, 0.0).max(axis=1, initial=0.0)
        if not weights.any():
            return None
        weights[weights == 0] = weights[weights > 0].min()
        return weights**power
    missing = [record.file_name for record in dataset.images if balance_by not in record.metadata]
    if missing:
        fields = sorted({key for record in dataset.images for key in record.metadata})
        raise DataError(
            f"{dataset.name}: DATALOADER.BALANCE_BY is {balance_by!r}, but {len(missing)} images have no such field "
            f'(the first: {missing[0]}); fields are: {", ".join(fields) or "none"}. DATALOADER.BALANCE_BY "" balances '
            "nothing, category the classes"
        )
    values = [str(record.metadata[balance_by]) for record in dataset.images]
    counts = Counter(values)
    return np.array([1.0 / counts[value] for value in values]) ** power


def repeat_factors(dataset: CocoDataset, threshold: float, square_root: bool = True) -> np.ndarray:
    """Return how many times (N,) float64, 1 or more, every image is repeated in an epoch (Gupta et al. 2019, LVIS,
    3.2).

    A class in a fraction f of the images has the factor max(1, sqrt(threshold / f)), without the root if square_root is
    False; an image has the largest factor of its classes, an image without objects 1. Like Detectron2's
    RepeatFactorTrainingSampler.
    """
    present = dataset.objects_per_image() > 0
    share = np.maximum(present.sum(axis=0), 1) / len(dataset)
    factors = threshold / share
    if square_root:
        factors = np.sqrt(factors)
    return np.where(present, np.maximum(factors, 1.0), 1.0).max(axis=1, initial=1.0)


def mix(weights: np.ndarray | None, origins: np.ndarray, set_weights: Sequence[float]) -> np.ndarray:
    """Return weights (N,) float64 with which data sets have the relative frequencies `set_weights` (S,).

    weights: of the images within their sets, None for equal ones. origins: (N,) the set of every image; a set without
    images (all were left out) is ignored.
    """
    weights = np.ones(len(origins)) if weights is None else weights
    sums = np.bincount(origins, weights=weights, minlength=len(set_weights))
    return weights / sums[origins] * np.asarray(set_weights, dtype=np.float64)[origins]


def without_empty_images(dataset: CocoDataset) -> CocoDataset:
    """Return the data set without the images that have no object (FILTER_EMPTY_ANNOTATIONS)."""
    objects = dataset.objects_per_image().sum(axis=1)
    if not objects.any():
        raise DataError(
            f"{dataset.name}: no image has an object, so nothing is left after DATALOADER.FILTER_EMPTY_ANNOTATIONS"
        )
    return dataset if objects.all() else dataset.select(np.flatnonzero(objects))
