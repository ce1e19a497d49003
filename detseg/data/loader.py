"""From a data set to batches of samples, in this process or in workers, with identical samples."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import signal
import traceback
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detseg.coco.dataset import CocoDataset
from detseg.config.options import Options, key, part
from detseg.data.augment.policy import TrainPolicy
from detseg.data.folds import Folds
from detseg.data.paste_sources import CopyPasteOptions, PasteStage
from detseg.data.preprocess import ImagePreprocess
from detseg.data.pseudo_labels import NO_PSEUDO_LABELS, PseudoLabels
from detseg.data.sample_cache import CacheOptions, SampleReader
from detseg.data.sampling import (
    PASTE_STREAM,
    SAMPLE_STREAM,
    EpochOrder,
    MixedOrder,
    SamplingOptions,
    without_empty_images,
)
from detseg.errors import DataError, DetsegError, first_line
from detseg.files.processes import end_with_parent
from detseg.structures.sample import Sample

logger = logging.getLogger(__name__)

# Batches that every worker prepares ahead.
_PREFETCH = 2
# Start of PyTorch's RuntimeError after the system has killed a worker.
_WORKER_DIED = "DataLoader worker"


@dataclass(frozen=True)
class LoaderOptions(Options):
    """Options from data set to training batches. workers: processes. batch_size: images over all processes."""

    preprocess: ImagePreprocess = part(ImagePreprocess)
    policy: TrainPolicy = part(TrainPolicy)
    sampling: SamplingOptions = part(SamplingOptions)
    copy_paste: CopyPasteOptions = part(CopyPasteOptions)
    folds: Folds = part(Folds)
    pseudo_labels: PseudoLabels = part(PseudoLabels)
    cache: CacheOptions = part(CacheOptions)
    workers: int = key("DATALOADER.NUM_WORKERS", at_least=0)
    batch_size: int = key("SOLVER.IMS_PER_BATCH", at_least=1)
    accumulate: int = key("SOLVER.ACCUMULATE", at_least=1)


class Stream(Protocol):
    """The source of a TrainLoader: an endless stream of items, each a function of (seed, position) only."""

    seed: int

    def make(self, position: int) -> Any:
        """Return the item at a position, in the form that workers send."""

    def expand(self, made: Any) -> Any:
        """Convert the result of `make` to the form for training."""

    def file_name(self, position: int) -> str:
        """Return the file name of the image at a position."""


class TrainingStream:
    """An endless stream of training samples; `stream[position]` is a function of (seed, position) only.

    dataset: the images. preprocess, policy: preprocessing of images and augmentation of samples. order: index of the
    image at each position; None for equally often. pasting: copy-paste. reader: reads the images of `dataset`, given if
    they come from a cache or are shared with the pasting. labels: which images have pseudo-labels, and their treatment.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        *,
        preprocess: ImagePreprocess,
        policy: TrainPolicy,
        seed: int,
        order: EpochOrder | MixedOrder | None = None,
        pasting: PasteStage | None = None,
        reader: SampleReader | None = None,
        labels: PseudoLabels = NO_PSEUDO_LABELS,
    ) -> None:
        if seed < 0:
            raise DataError(f"the seed of the data is {seed}; expected 0 or more (a negative SEED is replaced earlier)")
        self.preprocess = preprocess
        self.policy = policy
        self.seed = seed
        self.order = order or EpochOrder(len(dataset), seed)
        self.pasting = pasting
        self.reader = reader or SampleReader(dataset, preprocess)
        self._is_pseudo = labels.is_pseudo(dataset)
        self._intensities = labels.intensities

    @classmethod
    def build(cls, options: LoaderOptions, dataset: CocoDataset, seed: int) -> TrainingStream:
        """Build the stream of a data set; images without objects are left out if the options say so."""
        if options.sampling.filter_empty:
            dataset = without_empty_images(dataset)
        cache = options.cache.open()
        labels = options.pseudo_labels
        reader = SampleReader(dataset, options.preprocess, cache, labels)
        pasting = None
        if options.copy_paste.probability:
            pasting = PasteStage.open(
                options.copy_paste,
                reader,
                preprocess=options.preprocess,
                cache=cache,
                folds=options.folds,
                labels=labels,
                iteration_size=options.batch_size * options.accumulate,
            )
        return cls(
            dataset,
            preprocess=options.preprocess,
            policy=options.policy.for_data(dataset),
            seed=seed,
            order=labels.order(options.sampling, dataset, seed),
            pasting=pasting,
            reader=reader,
            labels=labels,
        )

    @property
    def dataset(self) -> CocoDataset:
        return self.reader.dataset

    def __getitem__(self, position: int) -> Sample:
        return self.expand(self.make(position))

    def make(self, position: int) -> Sample:
        """Return the sample at a position as workers send it: a single channel is not repeated (see `expand`)."""
        rng = np.random.default_rng((self.seed, SAMPLE_STREAM, position))
        index = self.order[position]
        whole = self.reader.read(index)
        value_range = self.preprocess.value_range(whole.image)
        sample = self.policy.geometry(whole, rng)
        if self.pasting is not None:
            sample = self._paste(self.pasting, sample, whole, index, position)
        sample = self.policy.photometry(sample, rng, value_range)
        return self._intensities.photometry(sample, rng, value_range) if self._is_pseudo[index] else sample

    def expand(self, sample: Sample) -> Sample:
        """Convert the result of `make` to the model's input."""
        image = self.preprocess.expand(sample.image)
        # Samples from a cache are mapped read-only.
        return dataclasses.replace(sample, image=image if image.flags.writeable else image.copy())

    def _paste(self, pasting: PasteStage, sample: Sample, whole: Sample, index: int, position: int) -> Sample:
        """Return the sample with objects of its source image, which gets its own random geometry.

        whole: image `index`, of which `sample` is a part after its geometry. Random numbers here are separate from the
        sample's own, which is unchanged if nothing is pasted.
        """
        rng = np.random.default_rng((self.seed, PASTE_STREAM, position))
        source = pasting.draw(self.dataset, index, whole, position, rng)
        if source is None:
            return sample
        source, target = self.policy.geometry(source, rng), sample
        if source.image.shape[2] != target.image.shape[2]:  # grayscale and RGB
            source, target = (
                dataclasses.replace(one, image=self.preprocess.expand(one.image)) for one in (source, target)
            )
        pasted = pasting.how.paste(target, source, rng)
        return sample if pasted is target else pasted

    def file_name(self, position: int) -> str:
        """Return the file name of the image at a position."""
        return str(self.dataset.images[self.order[position]].path)


@dataclass(frozen=True)
class Share:
    """The part of every batch for one of `count` processes: consecutive positions, equally many in each process.

    Together they use the same images as a single process would, independent of the number of processes.
    """

    rank: int = 0
    count: int = 1

    def of(self, positions: range) -> range:
        size = -(-len(positions) // self.count)
        return positions[self.rank * size : (self.rank + 1) * size]


@dataclass(frozen=True)
class _Failure:
    """An error in a worker, to be raised where the batch is used."""

    message: str
    details: str


@dataclass
class _Batches(Dataset):
    """Map-style data set of the loader: batch number -> list of items of the stream, or a _Failure."""

    stream: Stream
    batch_size: int
    start: int
    total: int
    share: Share

    def __len__(self) -> int:
        return max(-(-(self.total - self.start) // self.batch_size), 0)

    def positions(self, batch: int) -> range:
        first = self.start + batch * self.batch_size
        return self.share.of(range(first, min(first + self.batch_size, self.total)))

    def __getitem__(self, batch: int) -> list[Any] | _Failure:
        samples = []
        for position in self.positions(batch):
            try:
                samples.append(self.stream.make(position))
            except DetsegError as error:
                return _Failure(str(error), traceback.format_exc())
            except Exception as error:
                name = self.stream.file_name(position)
                reason = f"{type(error).__name__}: {error}"
                return _Failure(f"{name}: no training sample could be made ({reason})", traceback.format_exc())
        return samples


class TrainLoader:
    """Iterable over batches, lists of items at the positions start_position .. total - 1 of a stream.

    workers: processes that prepare batches ahead; 0 prepares them here. context: how they start ("spawn", "fork",
    "forkserver"; None: the system's default). share: the part of each batch for this process. The global random
    generators are not used.

    Raises, while iterating:
        DataError: a sample could not be made, or a worker died; the message names the files.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int,
        start_position: int,
        total: int,
        workers: int = 0,
        context: str | None = None,
        share: Share = Share(),
    ) -> None:
        self.stream = stream
        self.workers = workers
        self.context = context
        self._batches = _Batches(stream, batch_size, start_position, total, share)
        self._asked = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Any]]:
        loader = DataLoader(
            self._batches,
            batch_size=None,
            shuffle=False,
            num_workers=self.workers,
            collate_fn=_unchanged,
            prefetch_factor=_PREFETCH if self.workers else None,
            multiprocessing_context=self.context if self.workers else None,
            worker_init_fn=_start_worker if self.workers else None,
            generator=torch.Generator().manual_seed(self.stream.seed),
        )
        before = multiprocessing.active_children()
        iterator = iter(loader)
        workers = [one for one in multiprocessing.active_children() if one not in before]
        if workers:  # priority: before Python terminates them by SIGTERM
            Finalize(None, _end_workers, args=(weakref.ref(iterator), workers), exitpriority=10)
        for number in range(len(self._batches)):
            self._asked = number
            with self.watched():
                batch = next(iterator)
            if isinstance(batch, _Failure):
                logger.debug("in a loader's worker:\n%s", batch.details)
                raise DataError(batch.message)
            yield [self.stream.expand(sample) for sample in batch]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Convert the death of a worker to a DataError, even while no batch is requested.

        PyTorch raises an error wherever the program happens to be, even while it writes a file, whose own error may
        then be added: iterate inside this context.
        """
        try:
            yield
        except Exception as raised:
            error: BaseException | None = raised
            while error is not None and not (isinstance(error, RuntimeError) and _WORKER_DIED in str(error)):
                error = error.__cause__ or error.__context__
            if error is None:
                raise
            last = min(self._asked + _PREFETCH * max(self.workers, 1), len(self._batches))
            positions = [p for number in range(self._asked, last) for p in self._batches.positions(number)]
            raise DataError(
                f"a worker process of the data loader died ({first_line(error)}), usually for lack of memory: lower "
                "DATALOADER.NUM_WORKERS, or set it to 0 to see the error itself. It was reading one of: "
                f"{', '.join(map(self.stream.file_name, positions))}"
            ) from raised


def _unchanged(batch: list[Any] | _Failure) -> list[Any] | _Failure:
    return batch


def _end_workers(iterator: weakref.ref, workers: list[multiprocessing.Process]) -> None:
    """Stop the workers of a remaining loader when Python exits, because they ignore its SIGTERM."""
    alive = iterator()
    if alive is not None:
        alive._shutdown_workers()  # a clean request, which PyTorch does not count as a failure
    for worker in workers:
        worker.kill()


def _start_worker(worker: int) -> None:
    # Ctrl-C is sent to all processes of a terminal, and SIGTERM of schedulers and `timeout` to a whole group, but the
    # training stops its workers itself, after the iteration. A forked worker would run the training's handler.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    # Workers share the cores with each other and the training; OpenCV would start a thread per core in each.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def build_train_loader(
    options: LoaderOptions,
    dataset: CocoDataset,
    start_position: int,
    total: int,
    *,
    seed: int,
    share: Share = Share(),
) -> TrainLoader:
    """Build the loader of training batches.

    Args:
        dataset: the images to train on.
        start_position: first position of the sample stream, that of the checkpoint if training resumes.
        total: the position after the last.
        seed: of the data, >= 0.
        share: the part of each batch for this process, if there are several.

    Raises:
        DataError: images are missing, or the data do not match the options.
    """
    dataset.check_images_exist()
    return TrainLoader(
        TrainingStream.build(options, dataset, seed),
        batch_size=options.batch_size,
        start_position=start_position,
        total=total,
        workers=possible_workers(options.workers),
        share=share,
    )


def possible_workers(wanted: int) -> int:
    """Return how many workers this process can start: 0 if it is one itself."""
    if wanted and multiprocessing.current_process().daemon:
        logger.info("a daemonic process cannot start workers: samples are prepared in this process")
        return 0
    return wanted
