"""A trained model together with all processing of its images and predictions.

image file --(read_picture)--> (H, W, C) --(Detector: channels, size, model)--> Predictions at the size of the file
--(Postprocess, if any)--> Predictions
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detseg.coco.dataset import ImageRecord
from detseg.config import Config, load_config
from detseg.data.intensity_range import IntensityRange
from detseg.data.object_size import DIAMETER, DIAMETER_FROM, check_diameter
from detseg.data.trained_images import TrainedImages, was_in_training
from detseg.errors import ConfigError, DataError, OutputError
from detseg.files.atomic import read_json
from detseg.files.run_files import CONFIG_FILE, METRICS_FILE, POSTPROCESS_FILE
from detseg.fusion.postprocess import Postprocess
from detseg.images.pixel_source import ArraySource, PixelSource, as_image
from detseg.images.reading import read_picture
from detseg.inference.detector import Detector, PreparedImage
from detseg.inference.image_list import SkippedImage
from detseg.inference.image_model import ImageModel, InputImage
from detseg.inference.loading import find_checkpoint, find_run_folder, load_model
from detseg.inference.precision import AUTO, MEASURED, choose_precision
from detseg.inference.prefetch import batches, prefetch
from detseg.inference.tile_predictor import TilePredictor
from detseg.inference.tiling import Tiling
from detseg.inference.tta import TestTimeAugmentation
from detseg.inference.validation import InferenceOptions
from detseg.inference.views import PLAIN
from detseg.models.base import Segmenter
from detseg.runs.threads import follow_load
from detseg.structures.predictions import IN_TRAINING, Predictions, image_level_fields
from detseg.structures.sample import pixel_size_of
from detseg.version import __version__

logger = logging.getLogger(__name__)

# Returns the external boxes for an image of (height, width), in its pixels, with classes and scores.
BoxLookup = Callable[[ImageRecord, int, int], Predictions]


@dataclass(frozen=True)
class _OpenedImage:
    """An image that is ready for the detector or open for reading tiles, or the reason why it cannot be predicted.

    facts: known properties of the image. boxes: external ones.
    """

    record: ImageRecord
    content: PreparedImage | PixelSource | DataError
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    boxes: Predictions | None = None


class Predictor:
    """Predict images, one by one or many.

    Args:
        model: with its preprocessing.
        classes: class names by index.
        postprocess: applied to all predictions; None returns the model's own.
        provenance: plain values added to every Predictions (hashes of config and weights, engine).
        tta: test-time augmentation; None, or the unchanged image as the only view, predicts every image once.
        tiling: which images are predicted in tiles; the attribute of this name may be replaced.
        diameter: of the objects in all images, in pixels of their files, for a model with INPUT.OBJECT_SIZE; None: it
        is estimated for each image, unless the image's facts give it. The attribute may be replaced.
        trained_images: the images that the model was trained with, None if not known.

    Raises:
        ConfigError: the postprocess has other classes, or the model does not support the augmentation mode.
        DataError: an invalid diameter.
    """

    def __init__(
        self,
        model: ImageModel,
        classes: Sequence[str],
        *,
        postprocess: Postprocess | None = None,
        provenance: dict[str, Any] | None = None,
        tta: TestTimeAugmentation | None = None,
        tiling: Tiling | None = None,
        trained_images: TrainedImages | None = None,
        diameter: float | None = None,
    ) -> None:
        self.tta = tta or TestTimeAugmentation()
        self.detector = Detector([model], self.tta)
        self.tiling = tiling or Tiling()
        self.classes = tuple(classes)
        self.postprocess = None if postprocess is None else postprocess.for_classes(classes)
        self.trained_images = (trained_images,)  # one entry per model
        self.diameter = None if diameter is None else check_diameter(diameter, "the predictor")
        self.provenance = {"detseg_version": __version__, **(provenance or {})}

    @property
    def model(self) -> Segmenter:
        """The model; if several are combined, the first."""
        return self.detector.models[0].segmenter

    @classmethod
    def from_model(
        cls,
        model: Segmenter,
        options: InferenceOptions,
        classes: Sequence[str],
        *,
        postprocess: Postprocess | None = None,
        precision: str = "float32",
        provenance: dict[str, Any] | None = None,
        augmented: bool = True,
        intensities: IntensityRange | None = None,
        trained_images: TrainedImages | None = None,
        typical_diameter: float | None = None,
    ) -> Predictor:
        """Return a predictor for a model that is already loaded, with the options of a configuration.

        precision, intensities, typical_diameter: see ImageModel; the provenance records the precision. augmented:
        whether TEST.AUG is applied.
        """
        tta = TestTimeAugmentation.from_options(options.augmentation)
        image_model = ImageModel(
            model, options.preprocess, options.size, precision, intensities, typical_diameter=typical_diameter
        )
        return cls(
            image_model,
            classes,
            postprocess=postprocess,
            provenance={**(provenance or {}), "precision": image_model.precision},
            tta=tta if augmented else tta.replace(views=(PLAIN,)),
            tiling=options.tiling(model),
            trained_images=trained_images,
        )

    @classmethod
    def from_run(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        checkpoint: str = "best",
        postprocess: bool | str | os.PathLike[str] = True,
        precision: str = AUTO,
    ) -> Predictor:
        """Return a predictor for the model of a run folder, with the thresholds that its training chose.

        Args:
            folder: a run (`runs/quickstart_mask_rcnn/003`), or the folder of its runs: then the newest one.
            device: "auto" (CUDA if available), "cpu", "cuda:1" ...
            checkpoint: "best" (the last one if the run has no evaluation yet), "last", or a file.
            postprocess: True: the run's postprocess.yaml if it has one; False: none; or a file.
            precision: "float32", "bfloat16" and others, or "auto": that of the run's evaluation (TEST.PRECISION), see
                `inference.precision`.

        Raises:
            RunError: the folder has no run, or the run no checkpoint. WeightsError, ConfigError: they do not fit.
        """
        run = find_run_folder(Path(folder))
        cfg = load_config(run / CONFIG_FILE)
        loaded = load_model(find_checkpoint(run, checkpoint), cfg, device=device, is_of_run=True)
        file: str | os.PathLike[str] | None = None if isinstance(postprocess, bool) else postprocess
        if postprocess is True and (run / POSTPROCESS_FILE).is_file():
            file = run / POSTPROCESS_FILE
        elif postprocess is True:
            logger.warning("%s has no %s (no evaluation yet): all detections are kept", run, POSTPROCESS_FILE)
        chosen = None if file is None else Postprocess.load(file)
        if precision == AUTO:  # use that of the evaluation that chose the thresholds
            precision = cfg.TEST.PRECISION
        if precision == AUTO and (run / METRICS_FILE).is_file():
            measured = read_json(run / METRICS_FILE).get(MEASURED, {})
            precision = choose_precision(loaded["model"], measured)
        return cls.from_model(**loaded, postprocess=chosen, precision=precision)

    @classmethod
    def from_checkpoint(
        cls,
        weights: str | os.PathLike[str],
        cfg: Config | None = None,
        *,
        device: str = "auto",
        postprocess: Postprocess | None = None,
        precision: str = AUTO,
    ) -> Predictor:
        """Return a predictor for the model of a weights file.

        Args:
            weights: a checkpoint of detseg; other state_dict files need `cfg`.
            cfg: the configuration; None takes the one stored in the checkpoint.

        Raises:
            WeightsError: the file cannot be read, does not fit, or has no configuration and none was given.
        """
        loaded = load_model(weights, cfg, device=device)
        return cls.from_model(**loaded, postprocess=postprocess, precision=precision)

    def move_to(self, device: torch.device | str, precision: str = AUTO) -> None:
        """Predict on another device from now on; precision: see `from_checkpoint`."""
        for model in self.detector.models:
            model.segmenter.to(device).prefer_speed()
            model.precision = choose_precision(model.segmenter, {}) if precision == AUTO else precision

    def __call__(
        self,
        image: np.ndarray | str | os.PathLike[str],
        *,
        soft_masks: bool = False,
        facts: Mapping[str, Any] | None = None,
        boxes: Predictions | None = None,
    ) -> Predictions:
        """Predict one image.

        Args:
            image: (H, W) or (H, W, C) uint8, uint16 or float, RGB where C = 3; or an image file.
            facts: properties of the image that its file does not give, with the names of COCO image fields:
                `pixel_size` (micrometres), `channel_names`, `plane` ({"z": 3} of a stack).
            soft_masks: keep the mask probabilities within each box.
            boxes: external boxes, in pixels of the image, for which masks are predicted.

        Returns:
            Predictions at the image's own size; `image_id` is 1, `file_name` the file's name or "".

        Raises:
            DataError: the image cannot be read or the model does not accept it. OutputError: the model's outputs are
                not finite. ConfigError: see `require`.
        """
        self.require(soft_masks=soft_masks, boxes=boxes is not None)
        source = None
        if isinstance(image, (str, os.PathLike)):
            path = Path(image)
            record = ImageRecord(1, path.name, path, 0, 0, dict(facts or {}))
        else:
            source = ArraySource(as_image(image), facts or {})
            record = ImageRecord(1, "", Path(), source.height, source.width, {})
        lookup = None if boxes is None else lambda *_: boxes
        tiles = self.tile_predictor()
        return next(self._predict_opened([self._open(record, lookup, tiles, source)], tiles, soft_masks))

    def predict_records(
        self,
        records: Iterable[ImageRecord],
        *,
        batch_size: int = 1,
        soft_masks: bool = False,
        skipped: list[SkippedImage] | None = None,
        boxes: BoxLookup | None = None,
        workers: int = 0,
        tiles: TilePredictor | None = None,
    ) -> Iterator[Predictions]:
        """Predict the images of a data set in order; at most one batch is in memory.

        Args:
            records: the images; height and width are 0 if unknown before the file is read.
            batch_size: images per batch; only consecutive images of one size at the network share a batch, so that a
            prediction does not depend on other images.
            soft_masks: keep the mask probabilities within each box.
            skipped: images that cannot be read, are not accepted, or for which the model's outputs are not finite, are
            appended here and left out; None raises at the first.
            boxes: returns the boxes whose masks are predicted, instead of the model's own.
            workers: threads that read and prepare images (or tiles of large ones) in advance.
            tiles: predicts tiled images; None: according to `tiling`, with the predictions of tiles in memory.

        Raises:
            DataError, OutputError: see `skipped`. ConfigError: see `require`.
        """
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}; expected at least 1")
        self.require(soft_masks=soft_masks, boxes=boxes is not None)
        tiles = tiles or self.tile_predictor(batch_size=batch_size, workers=workers)
        opened = prefetch(lambda record: self._open(record, boxes, tiles), records, workers)
        yield from self._predict_opened(opened, tiles, soft_masks, batch_size, skipped)

    def require(self, *, soft_masks: bool, boxes: bool) -> None:
        """Raise ConfigError if the models do not provide soft masks, or do not accept external boxes, as required."""
        name = type(self.model).__name__
        if boxes and not self.detector.takes_boxes:
            raise ConfigError(
                f"{name} cannot predict masks for external boxes (--boxes): that needs models that find boxes before "
                "masks, with MODEL.MASK_ON"
            )
        if self.needs_soft_masks(soft_masks) and not self.detector.gives_soft_masks:
            reason = "predict without soft masks (--soft-masks)"
            if not soft_masks:
                reason = f"{self.postprocess.source} needs them: set its mask_threshold to null and mask_quality to 0"
            raise ConfigError(f"{name} gives no mask probabilities; {reason}")

    def needs_soft_masks(self, asked: bool) -> bool:
        """Whether the model must return soft masks: if requested, or if the postprocess needs them."""
        return asked or (self.postprocess is not None and self.postprocess.needs_soft_masks)

    def tile_predictor(self, **options: Any) -> TilePredictor:
        """Return a predictor for the images that `tiling` cuts; options: further arguments of TilePredictor."""
        return TilePredictor(
            self.detector,
            self.tiling,
            postprocess=self.postprocess,
            identity=self.provenance,
            diameter=self.diameter,
            **options,
        )

    def _open(
        self, record: ImageRecord, boxes: BoxLookup | None, tiles: TilePredictor, source: PixelSource | None = None
    ) -> _OpenedImage:
        """Open an image (unless `source` is given) and, unless it is tiled, prepare it for the detector."""
        name = record.file_name or "image"
        try:
            if source is None:
                source = tiles.open(record) or ArraySource(*read_picture(record.path, record.metadata), name)
            size, facts = (source.height, source.width), source.facts
            if record.height and record.width and (record.height, record.width) != size:
                raise DataError(
                    f"{name}: the file has {size[0]} x {size[1]} pixels (height x width), but the data set says "
                    f"{record.height} x {record.width}; its masks belong to another version of the image"
                )
            pixel_size_of(facts, name)  # raises DataError if invalid
            given = None if boxes is None else boxes(record, *size)
            tiles.find_diameter(source)
            if tiles.applies(source):
                return _OpenedImage(record, source, facts, given)
            image = InputImage(source.read(0, 0, *size), facts, name)
            self.detector.check_intensities(image)
            return _OpenedImage(record, self.detector.prepare(image), facts, given)
        except DataError as error:
            if source is not None:
                source.close()
            return _OpenedImage(record, error)

    def _predict_opened(
        self,
        images: Iterable[_OpenedImage],
        tiles: TilePredictor,
        soft_masks: bool,
        batch_size: int = 1,
        skipped: list[SkippedImage] | None = None,
    ) -> Iterator[Predictions]:
        needed = self.needs_soft_masks(soft_masks)
        for batch in batches(images, batch_size, lambda image: getattr(image.content, "key", object())):
            follow_load()
            try:
                found = self._predict_batch(batch, tiles, needed)
            except (DataError, OutputError) as error:
                if len(batch) > 1:  # predict one by one to find the image whose outputs are not finite
                    yield from self._predict_opened(batch, tiles, soft_masks, 1, skipped)
                    continue
                if skipped is None:
                    raise
                name, reason = batch[0].record.file_name, str(error)
                if isinstance(error, OutputError):
                    reason = f"{name}: {reason}"
                    if not skipped:
                        logger.warning("%s; the other images are predicted", reason)
                skipped.append(SkippedImage(name, reason))
                continue
            for predictions in found:
                yield predictions if soft_masks else dataclasses.replace(predictions, soft_masks=None)

    def _predict_batch(
        self, batch: Sequence[_OpenedImage], tiles: TilePredictor, soft_masks: bool
    ) -> list[Predictions]:
        """Predict images of one size at the network, or a single image in tiles."""
        first = batch[0]
        if isinstance(first.content, DataError):
            raise first.content
        if isinstance(first.content, PixelSource):
            with first.content as source:
                found = tiles.predict(first.record, source, soft_masks=soft_masks, boxes=first.boxes)
            return [self._named(found, first)]
        boxes = None if first.boxes is None else [image.boxes for image in batch]
        keep = None if self.postprocess is None else self.postprocess.may_stay
        found = self.detector.predict([image.content for image in batch], soft_masks=soft_masks, boxes=boxes, keep=keep)
        named = [self._named(predictions, image) for predictions, image in zip(found, batch, strict=True)]
        return named if self.postprocess is None else [self.postprocess.apply(predictions) for predictions in named]

    def _named(self, predictions: Predictions, image: _OpenedImage) -> Predictions:
        """Return the predictions with the names of their image and their provenance."""
        provenance = {**predictions.provenance, **self.provenance, **self.detector.describe()}
        if DIAMETER_FROM in image.facts:
            provenance[DIAMETER], provenance[DIAMETER_FROM] = image.facts[DIAMETER], image.facts[DIAMETER_FROM]
        if (in_training := was_in_training(image.record, self.trained_images)) is not None:
            provenance[IN_TRAINING] = in_training
        return dataclasses.replace(
            predictions,
            image_id=image.record.image_id,
            file_name=image.record.file_name,
            pixel_size=pixel_size_of(image.facts, image.record.file_name or "image"),
            metadata=image_level_fields(image.record.metadata),
            provenance=provenance,
        )
