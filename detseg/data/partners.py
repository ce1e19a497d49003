"""Which image copy-paste takes objects from: a function of the random generator and the image that they go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detseg.augment.copy_paste import CopyPaste
from detseg.data.catalog import load_dataset
from detseg.data.coco import CocoDataset
from detseg.data.folds import training_part
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sample_cache import SampleCache
from detseg.data.sample_reader import SampleReader
from detseg.data.sampling import balancing_weights
from detseg.errors import DataError

if TYPE_CHECKING:
    from detseg.config import Config

# Names in INPUT.COPY_PASTE.SOURCES that are no data sets.
TRAIN, SAME_IMAGE = "train", "image"


class Partners:
    """The images of one data set that have objects, in groups.

    group_by: the image-level field by which images are grouped, "" for one group. power: how far images with rare
    classes are preferred (see `balancing_weights`).

    Raises DataError where images lack the field, or none has an object.
    """

    def __init__(self, reader: SampleReader, *, group_by: str = "", power: float = 0.0) -> None:
        self.reader = reader
        dataset = reader.dataset
        filled = np.flatnonzero(dataset.objects_per_image().sum(axis=1))
        if not len(filled):
            raise DataError(f"{dataset.name}: no image has an object that could be pasted (INPUT.COPY_PASTE)")
        weights = balancing_weights(dataset, "category", power)
        weights = np.ones(len(dataset)) if weights is None else weights
        self._group_by = group_by
        groups: dict[str, list[int]] = {}
        for index in filled.tolist():
            groups.setdefault(self.group_of(dataset, index), []).append(index)
        self._groups = {name: _Choice(np.array(members), weights[members]) for name, members in groups.items()}

    def group_of(self, dataset: CocoDataset, index: int) -> str:
        """Return the group of an image, of this or another data set."""
        if not self._group_by:
            return ""
        record = dataset.images[index]
        if self._group_by not in record.metadata:
            raise DataError(
                f"{dataset.name}: INPUT.COPY_PASTE.GROUP_BY is {self._group_by!r}, but {record.file_name} has no such "
                f"field; its fields are: {', '.join(sorted(record.metadata)) or 'none'}"
            )
        return str(record.metadata[self._group_by])

    def draw(self, group: str, rng: np.random.Generator) -> int | None:
        """Draw an image of a group; None where there is none."""
        choice = self._groups.get(group)
        return None if choice is None else choice.draw(rng)


class _Choice:
    """A weighted choice among numbers."""

    def __init__(self, values: np.ndarray, weights: np.ndarray) -> None:
        self._values = values
        self._cumulated = np.cumsum(weights / weights.sum())

    def draw(self, rng: np.random.Generator) -> int:
        place = np.searchsorted(self._cumulated, rng.random(), side="right")
        return int(self._values[min(place, len(self._values) - 1)])


class Partner(NamedTuple):
    """The image that objects come from: number `index` of what `reader` reads; None is the image that they go to."""

    reader: SampleReader | None
    index: int


class Pasting:
    """Copy-paste as a stage of the training stream, between geometry and photometry.

    sources: where objects come from; None stands for the image itself. weights: how often each is drawn, relative to
    each other. last_position: nothing is pasted from this position of the stream on; 0 for no end.
    """

    def __init__(
        self,
        copy_paste: CopyPaste,
        sources: Sequence[Partners | None],
        weights: Sequence[float] = (),
        *,
        probability: float = 1.0,
        last_position: int = 0,
    ) -> None:
        self.copy_paste = copy_paste
        self.sources = list(sources)
        weights = weights or [1.0] * len(self.sources)
        self._choice = _Choice(np.arange(len(self.sources)), np.asarray(weights, dtype=np.float64))
        self.probability = probability
        self.last_position = last_position

    @classmethod
    def from_config(cls, cfg: Config, train: SampleReader, cache: SampleCache | None) -> Pasting | None:
        """Read INPUT.COPY_PASTE and load the data sets that it names; None where nothing shall be pasted.

        Raises:
            DataError: a data set cannot be read, has no class of the training data, or lacks GROUP_BY.
        """
        keys = cfg.INPUT.COPY_PASTE
        if not keys.PROBABILITY:
            return None
        readers: dict[str, SampleReader | None] = {TRAIN: train, SAME_IMAGE: None}
        for name in keys.SOURCES:
            if name not in readers:
                dataset = training_part(cfg, load_dataset(name)).with_objects_of(train.dataset.class_names)
                dataset.check_images_exist()
                readers[name] = SampleReader(dataset, ImagePreprocess.from_config(cfg), cache)
        sources = [
            reader and Partners(reader, group_by=keys.GROUP_BY, power=keys.BALANCE_POWER)
            for reader in (readers[name] for name in keys.SOURCES)
        ]
        weights = _class_weights(train.dataset, keys.BALANCE_POWER)
        return cls(
            CopyPaste.from_config(cfg, weights),
            sources,
            keys.SOURCE_WEIGHTS,
            probability=keys.PROBABILITY,
            last_position=keys.LAST_ITER * cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE,
        )

    def draw(self, dataset: CocoDataset, index: int, position: int, rng: np.random.Generator) -> Partner | None:
        """Draw where the objects come from that go to image `index` of the training data; None where nothing shall be
        pasted at this position of the stream.
        """
        if (self.last_position and position >= self.last_position) or rng.random() >= self.probability:
            return None
        source = self.sources[self._choice.draw(rng)]
        if source is None:
            return Partner(None, index)
        chosen = source.draw(source.group_of(dataset, index), rng)
        return None if chosen is None else Partner(source.reader, chosen)


def _class_weights(dataset: CocoDataset, power: float) -> tuple[float, ...]:
    """Return for every class how likely its objects are drawn: 1 / their number, to the power; () for equally."""
    if not power:
        return ()
    counts = np.maximum(dataset.objects_per_image().sum(axis=0), 1)
    return tuple((counts.min() / counts) ** power)
