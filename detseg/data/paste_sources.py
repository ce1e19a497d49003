"""Copy-paste in training: how often, and from which image, as a function of random generator and target image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.coco.catalog import load_dataset
from detseg.coco.dataset import CocoDataset
from detseg.config.options import Options, Problems, key, part
from detseg.data.augment.copy_paste import CopyPaste
from detseg.data.folds import Folds
from detseg.data.preprocess import ImagePreprocess
from detseg.data.pseudo_labels import NO_PSEUDO_LABELS, PseudoLabels, sure_objects
from detseg.data.sample_cache import SampleCache, SampleReader
from detseg.data.sampling import balancing_weights
from detseg.errors import DataError
from detseg.structures.sample import Sample

# Names in INPUT.COPY_PASTE.SOURCES that are not data sets.
TRAIN, SAME_IMAGE, PSEUDO = "train", "image", "pseudo"


def _names(names: Sequence[str]) -> str | None:
    if not names or not all(name.strip() for name in names):
        return f"expected at least one of {TRAIN}, {SAME_IMAGE}, {PSEUDO} and names of data sets"
    if len(set(names)) != len(names):
        return "expected distinct names; SOURCE_WEIGHTS sets how often each is drawn"
    return None


@dataclass(frozen=True)
class CopyPasteOptions(Options):
    """How often, how, and from where objects are pasted.

    probability: of a sample to get pasted objects. sources: `TRAIN`, `SAME_IMAGE`, `PSEUDO`, or names or paths of data
    sets. pseudo_score: minimum score of objects from PSEUDO. source_weights: relative frequency of each source; empty
    for equal ones. group_by: an image field, in which source and target must agree. balance_power: preference for rare
    classes (see `balancing_weights`). last_iter: nothing is pasted after this iteration; 0 for no end.
    """

    section = "INPUT.COPY_PASTE"

    how: CopyPaste = part(CopyPaste)
    probability: float = key("PROBABILITY", at_least=0, at_most=1)
    sources: tuple[str, ...] = key("SOURCES", test=_names)
    pseudo_score: float = key("PSEUDO_SCORE", at_least=0, at_most=1)
    source_weights: tuple[float, ...] = key("SOURCE_WEIGHTS", above=0)
    group_by: str = key("GROUP_BY")
    balance_power: float = key("BALANCE_POWER", at_least=0, at_most=1)
    last_iter: int = key("LAST_ITER", at_least=0)

    def check(self, problems: Problems) -> None:
        if self.source_weights:
            problems.length("INPUT.COPY_PASTE.SOURCE_WEIGHTS", len(self.sources))
        if PSEUDO in self.sources and not problems.cfg.DATASETS.PSEUDO:
            expected = f"{PSEUDO} stands for DATASETS.PSEUDO, which is empty: set it, or remove {PSEUDO}"
            problems.add("INPUT.COPY_PASTE.SOURCES", expected)


class PasteSourceSet:
    """The images with objects of one data set, in groups; arguments are fields of `CopyPasteOptions`.

    Raises DataError if images lack the field, or none has an object.
    """

    def __init__(self, reader: SampleReader, *, group_by: str = "", balance_power: float = 0.0) -> None:
        self.reader = reader
        dataset = reader.dataset
        filled = np.flatnonzero(dataset.objects_per_image().sum(axis=1))
        if not len(filled):
            raise DataError(f"{dataset.name}: no image has an object that could be pasted (INPUT.COPY_PASTE)")
        weights = balancing_weights(dataset, "category", balance_power)
        weights = np.ones(len(dataset)) if weights is None else weights
        self._group_by = group_by
        groups: dict[str, list[int]] = {}
        for index in filled.tolist():
            groups.setdefault(self.group_of(dataset, index), []).append(index)
        self._groups = {name: (members, _cumulated(weights[members])) for name, members in groups.items()}

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

    def draw(self, group: str, rng: np.random.Generator) -> Sample | None:
        """Draw and read an image of a group; None if there is none."""
        if group not in self._groups:
            return None
        members, cumulated = self._groups[group]
        return self.reader.read(members[_draw(cumulated, rng)])


class PasteStage:
    """Copy-paste as a stage of the training stream, between geometry and intensities.

    how: options of pasting. sources: where objects come from; None stands for the image itself. weights: relative
    frequency of each; empty for equal ones. probability: that anything is pasted. last_position: nothing is pasted from
    this position of the stream on; 0 for no end.
    """

    def __init__(
        self,
        how: CopyPaste,
        sources: Sequence[PasteSourceSet | None],
        weights: Sequence[float] = (),
        *,
        probability: float = 1.0,
        last_position: int = 0,
    ) -> None:
        self.how = how
        self.sources = list(sources)
        self._cumulated = _cumulated(np.asarray(weights or [1.0] * len(self.sources), dtype=np.float64))
        self.probability = probability
        self.last_position = last_position

    @classmethod
    def open(
        cls,
        options: CopyPasteOptions,
        train: SampleReader,
        *,
        preprocess: ImagePreprocess,
        cache: SampleCache | None,
        folds: Folds,
        labels: PseudoLabels = NO_PSEUDO_LABELS,
        iteration_size: int,
    ) -> PasteStage:
        """Load the data sets in the options; objects are matched to the training's classes by name.

        iteration_size: images of one iteration.

        Raises:
            DataError: a data set cannot be read, has no class of the training data, or lacks the group field.
        """
        readers: dict[str, SampleReader | None] = {TRAIN: train, SAME_IMAGE: None}
        is_pseudo = labels.is_pseudo(train.dataset)
        if is_pseudo.any():
            labelled, pseudo = (train.dataset.select(np.flatnonzero(which)) for which in (~is_pseudo, is_pseudo))
            train = readers[TRAIN] = SampleReader(labelled, preprocess, cache, labels)
            if PSEUDO in options.sources:
                sure = sure_objects(pseudo, options.pseudo_score)
                readers[PSEUDO] = SampleReader(sure, preprocess, cache, labels)
        for name in options.sources:
            if name not in readers:
                dataset = folds.without_fold(load_dataset(name)).with_classes(train.dataset.class_names, drop=True)
                dataset.check_images_exist()
                readers[name] = SampleReader(dataset, preprocess, cache)
        how = options.how
        if options.balance_power:  # sampling weights of objects: 1 / number in their class, to the power
            counts = np.maximum(train.dataset.objects_per_image().sum(axis=0), 1)
            weights = tuple((counts.min() / counts) ** options.balance_power)
            how = dataclasses.replace(how, class_weights=weights)
        return cls(
            how,
            [
                reader and PasteSourceSet(reader, group_by=options.group_by, balance_power=options.balance_power)
                for reader in (readers[name] for name in options.sources)
            ],
            options.source_weights,
            probability=options.probability,
            last_position=options.last_iter * iteration_size,
        )

    def draw(
        self, dataset: CocoDataset, index: int, whole: Sample, position: int, rng: np.random.Generator
    ) -> Sample | None:
        """Draw and read the source image; None if nothing is pasted at this position.

        whole: image `index` of the training data `dataset`, on which they are pasted.
        """
        if (self.last_position and position >= self.last_position) or rng.random() >= self.probability:
            return None
        source = self.sources[_draw(self._cumulated, rng)]
        return whole if source is None else source.draw(source.group_of(dataset, index), rng)


def _cumulated(weights: np.ndarray) -> np.ndarray:
    return np.cumsum(weights / weights.sum())


def _draw(cumulated: np.ndarray, rng: np.random.Generator) -> int:
    """Draw an index; `cumulated`: the sums of the probabilities up to each."""
    return min(int(np.searchsorted(cumulated, rng.random(), side="right")), len(cumulated) - 1)
