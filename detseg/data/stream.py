"""The endless stream of training samples: read, changed at random, ready for the model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from detseg.augment.policy import TrainPolicy
from detseg.data.coco import CocoDataset
from detseg.data.partners import Pasting
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sample_cache import SampleCache
from detseg.data.sample_reader import SampleReader
from detseg.data.sampling import PASTE_STREAM, SAMPLE_STREAM, EpochOrder, order_from_config, without_empty_images
from detseg.errors import DataError
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.config import Config


class TrainingStream:
    """An endless stream of training samples; `stream[position]` is a function of (seed, position) only.

    dataset: what to draw from. preprocess, policy: what happens to an image and to a sample. order: which image stands
    at which position; None for all equally often. pasting: copy-paste, between geometry and photometry. reader: reads
    the images of `dataset`, where they come from a cache or the pasting has to share them.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        *,
        preprocess: ImagePreprocess,
        policy: TrainPolicy,
        seed: int,
        order: EpochOrder | None = None,
        pasting: Pasting | None = None,
        reader: SampleReader | None = None,
    ) -> None:
        if seed < 0:
            raise DataError(f"the seed of the data is {seed}; expected 0 or more (a negative SEED is drawn before)")
        self.preprocess = preprocess
        self.policy = policy
        self.seed = seed
        self.order = order or EpochOrder(len(dataset), seed)
        self.pasting = pasting
        self.reader = reader or SampleReader(dataset, preprocess)

    @classmethod
    def from_config(cls, cfg: Config, dataset: CocoDataset, seed: int) -> TrainingStream:
        """Read the INPUT and DATALOADER keys; images without objects are left out where they say so."""
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            dataset = without_empty_images(dataset)
        preprocess = ImagePreprocess.from_config(cfg)
        cache = SampleCache.from_config(cfg)
        reader = SampleReader(dataset, preprocess, cache)
        # Crops on rare classes ask how rare these are.
        counts = dataset.objects_per_image().sum(axis=0) if cfg.INPUT.CROP.BALANCE_POWER else ()
        return cls(
            dataset,
            preprocess=preprocess,
            policy=TrainPolicy.from_config(cfg, counts),
            seed=seed,
            order=order_from_config(cfg, dataset, seed),
            pasting=Pasting.from_config(cfg, reader, cache),
            reader=reader,
        )

    @property
    def dataset(self) -> CocoDataset:
        return self.reader.dataset

    def __getitem__(self, position: int) -> Sample:
        return self.expand(self.make(position))

    def make(self, position: int) -> Sample:
        """Return the sample at a position, a single channel not yet repeated (see `expand`): what workers send."""
        rng = np.random.default_rng((self.seed, SAMPLE_STREAM, position))
        index = self.order[position]
        whole = self.reader.read(index)
        value_range = self.policy.value_range(whole.image)
        sample = self.policy.geometry(whole, rng)
        if self.pasting is not None:
            sample = self._paste(self.pasting, sample, whole, index, position)
        return self.policy.photometry(sample, rng, value_range)

    def expand(self, sample: Sample) -> Sample:
        """Return what `make` made as the model takes it."""
        image = self.preprocess.expand(sample.image)
        # What comes from a cache lies in a file that nobody may write to.
        return dataclasses.replace(sample, image=image if image.flags.writeable else image.copy())

    def _paste(self, pasting: Pasting, sample: Sample, whole: Sample, index: int, position: int) -> Sample:
        """Return the sample with objects of its partner, which gets a geometry of its own.

        whole: image `index`, of which `sample` shows what its geometry left. The numbers drawn here are others than the
        sample's own, which stays as it is where nothing is pasted.
        """
        rng = np.random.default_rng((self.seed, PASTE_STREAM, position))
        partner = pasting.draw(self.dataset, index, position, rng)
        if partner is None:
            return sample
        source = self.policy.geometry(whole if partner.reader is None else partner.reader.read(partner.index), rng)
        if source.image.shape[2] != sample.image.shape[2]:  # gray beside RGB
            source, target = (
                dataclasses.replace(one, image=self.preprocess.expand(one.image)) for one in (source, sample)
            )
            pasted = pasting.copy_paste.paste(target, source, rng)
            return sample if pasted is target else pasted
        return pasting.copy_paste.paste(sample, source, rng)

    def file_name(self, position: int) -> str:
        """Return the file name of the image at a position."""
        return str(self.dataset.images[self.order[position]].path)
