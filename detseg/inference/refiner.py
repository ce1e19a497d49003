"""Redraw the predictions of any model, or of a file, with Segment Anything: see `models.prompted`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detseg.coco.dataset import ImageRecord
from detseg.coco.pairing import ImageIndex
from detseg.coco.predictions_file import PredictionsFile
from detseg.config import load_config
from detseg.data.preprocess import ImagePreprocess
from detseg.errors import ConfigError, DataError
from detseg.files.run_files import CONFIG_FILE
from detseg.images.reading import read_picture
from detseg.inference.image_list import SkippedImage
from detseg.inference.loading import find_checkpoint, find_run_folder, load_model
from detseg.models.devices import choose_device
from detseg.models.prompted.options import RefineOptions, SamOptions
from detseg.models.prompted.refine import refine
from detseg.models.prompted.sam import Sam, load_sam
from detseg.models.prompted.segmenter import PromptedSAM
from detseg.structures.predictions import Predictions


@dataclasses.dataclass(frozen=True)
class Refiner:
    """A SAM with its prompts and preprocessing. name: for provenance."""

    sam: Sam
    options: RefineOptions
    preprocess: ImagePreprocess
    name: str

    @classmethod
    def published(cls, words: Sequence[str], *, device: str = "auto") -> Refiner:
        """Return a published SAM; words: KEY VALUE arguments that change the keys MODEL.SAM.* and INPUT.*.

        Raises:
            ConfigError: wrong keys or values. WeightsError: see `load_sam`.
        """
        cfg = load_config(None, words)
        options = SamOptions.from_config(cfg)
        sam = load_sam(options.name).to(choose_device(device))
        return cls(sam, options.refine, ImagePreprocess.from_config(cfg), options.name)

    @classmethod
    def of_run(cls, folder: str, *, device: str = "auto") -> Refiner:
        """Return the SAM fine-tuned in a run of PromptedSAM, with its settings. Raises ConfigError for other runs."""
        run = find_run_folder(Path(folder))
        cfg = load_config(run / CONFIG_FILE)
        if cfg.MODEL.META_ARCHITECTURE != "PromptedSAM":
            raise ConfigError(
                f"--refine-with {folder}: a run of {cfg.MODEL.META_ARCHITECTURE}; expected sam, or a run of PromptedSAM"
            )
        loaded = load_model(find_checkpoint(run), cfg, device=device, is_of_run=True)
        model, options = loaded["model"], loaded["options"]
        assert isinstance(model, PromptedSAM)
        return cls(model.sam, model.options.sam.refine, options.preprocess, str(run))

    def __call__(self, record: ImageRecord, predictions: Predictions) -> Predictions:
        """Return the predictions of an image with SAM's masks. Raises DataError if the image cannot be read."""
        pixels, facts = read_picture(record.path, record.metadata)
        if pixels.shape[:2] != (predictions.height, predictions.width):
            raise DataError(
                f"{record.file_name}: has {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width), but its "
                f"predictions {predictions.height} x {predictions.width}: give the images that were predicted"
            )
        image = self.preprocess(pixels, source=record.file_name, facts=facts)
        soft = predictions.soft_masks is not None
        return refine(self.sam, image, predictions, self.options, soft_masks=soft)

    def describe(self) -> dict[str, Any]:
        """Return what a Predictions file records about it."""
        return {"sam": self.name, **dataclasses.asdict(self.options)}

    def refine_file(
        self, file: PredictionsFile, records: Sequence[ImageRecord], skipped: list[SkippedImage]
    ) -> Iterator[Predictions]:
        """Yield the redrawn predictions of a file for images.

        skipped: images that cannot be read or that the file lacks are appended here and left out.
        """
        index = ImageIndex(list(file), str(file.path))
        for record in records:
            try:
                found = index.find(record)
                if found is None:
                    raise DataError(f"{record.file_name}: {file.path} has no such image")
                found = dataclasses.replace(found, image_id=record.image_id, file_name=record.file_name)
                yield self(record, found)
            except DataError as error:
                skipped.append(SkippedImage(record.file_name, str(error)))
