"""Images of a data set, decoded and prepared, from their files or from a cache."""

from __future__ import annotations

import dataclasses
import hashlib

from detseg import __version__
from detseg.data.coco import CocoDataset
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sample_cache import SampleCache
from detseg.data.shared_dataset import SharedDataset
from detseg.structures.sample import Sample


class SampleReader:
    """Reads samples of a data set: the image prepared (not expanded: see `ImagePreprocess.expand`), its objects."""

    def __init__(
        self, dataset: CocoDataset | SharedDataset, preprocess: ImagePreprocess, cache: SampleCache | None = None
    ) -> None:
        self._shared = dataset if isinstance(dataset, SharedDataset) else SharedDataset(dataset)
        self._preprocess = preprocess
        self._cache = cache
        self._keys: dict[int, str] = {}

    @property
    def dataset(self) -> CocoDataset:
        return self._shared.dataset

    def read(self, index: int) -> Sample:
        """Read image number `index`; its arrays may be read-only. Raises DataError where it cannot be read."""
        if self._cache is None:
            return self._read(index)
        key = self._keys.get(index) or self._key(index)
        if key is None:
            return self._read(index)
        self._keys[index] = key
        cached = self._cache.get(key)
        if cached is None:
            sample = self._read(index)
            self._cache.put(key, sample)
            return sample
        record = self.dataset.images[index]
        return dataclasses.replace(cached, image_id=record.image_id, file_name=record.file_name)

    def _read(self, index: int) -> Sample:
        sample = self.dataset.read_sample(index)
        image = self._preprocess.prepare(sample.image, source=sample.file_name, facts=sample.metadata)
        return dataclasses.replace(sample, image=image)

    def _key(self, index: int) -> str | None:
        """Return a hash of all that a sample is made of; None where the image file is not there."""
        record, table = self.dataset.images[index], self.dataset.table
        try:
            status = record.path.stat()
        except OSError:
            return None
        rows = table.rows(index)
        known = (
            __version__,
            str(record.path.absolute()),
            status.st_size,
            status.st_mtime_ns,
            record.height,
            record.width,
            self._preprocess,
            record.metadata,
            table.classes[rows].tolist(),
            table.crowd[rows].tolist(),
        )
        digest = hashlib.blake2b(repr(known).encode("utf-8", "surrogateescape"), digest_size=16)
        for start, end in zip(table.starts[rows], table.ends[rows], strict=True):
            digest.update(table.text[start:end])
        return digest.hexdigest()
