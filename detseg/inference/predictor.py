"""A trained model together with all that its images and predictions go through.

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

# External boxes for an image of (height, width): in its pixels, with classes and scores.
BoxLookup = Callable[[ImageRecord, int, int], Predictions]


@dataclass(frozen=True)
class _OpenedImage:
    """An image ready for the detector, or open for reading tiles, or why it cannot be predicted.

    facts: what is known of it. boxes: external ones.
    """

    record: ImageRecord
    content: PreparedImage | PixelSource | DataError
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    boxes: Predictions | None = None


class Predictor:
    """Predicts images, one by one or many.

    Args:
        model: with its preprocessing.
        classes: names of the classes by index.
        postprocess: applied to all predictions; None gives the model's own.
        provenance: plain values that every Predictions carries (hashes of config and weights, engine).
        tta: test-time augmentation; None, or the image as it is as the only view, predicts every image once.
        tiling: which images are predicted in tiles; the attribute of this name may be replaced.
        diameter: of the objects of all images, in pixels of their files, for a model with INPUT.OBJECT_SIZE; None: it
            is estimated image by image, where an image's facts do not say it. The attribute may be replaced.
        trained_images: those that the model was trained with, None where they are not known.

    Raises:
        ConfigError: a postprocess of other classes, a mode of augmentation that the model does not allow.
        DataError: a diameter that is none.
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
        self.trained_images = (trained_images,)  # of every model
        self.diameter = None if diameter is None else check_diameter(diameter, "the predictor")
        self.provenance = {"detseg_version": __version__, **(provenance or {})}

    @property
    def model(self) -> Segmenter:
        """The model; of several that are combined, the first."""
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
        """A predictor with the options of a configuration, around a model that is there already.

        precision, intensities, typical_diameter: see ImageModel; the provenance says which precision it is. augmented:
        whether images are augmented where TEST.AUG says so.
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
        """The model of a run folder, with the thresholds that its training chose.

        Args:
            folder: a run (`runs/quickstart_mask_rcnn/003`), or the folder of its runs: then the newest one.
            device: "auto" (CUDA where there is one), "cpu", "cuda:1" ...
            checkpoint: "best" (the last one where the run has no evaluation yet), "last", or a file.
            postprocess: True: the run's postprocess.yaml if it has one; False: none; or a file.
            precision: "float32", "bfloat16" and others, or "auto": that of the run's evaluation (TEST.PRECISION), see
                `inference.precision`.

        Raises:
            RunError: no run there, or no checkpoint in it. WeightsError, ConfigError: what is there does not fit.
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
        if precision == AUTO:  # as in the evaluation that chose the thresholds
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
        """The model of a weights file.

        Args:
            weights: a checkpoint of detseg; other state_dict files need `cfg`.
            cfg: the configuration; None takes the one stored in the checkpoint.

        Raises:
            WeightsError: the file cannot be read, does not fit, or has no configuration and none was given.
        """
        loaded = load_model(weights, cfg, device=device)
        return cls.from_model(**loaded, postprocess=postprocess, precision=precision)

    def move_to(self, device: torch.device | str, precision: str = AUTO) -> None:
        """Predict on another device from now on; precision: as of `from_checkpoint`."""
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
            facts: what is known of the image and its file does not say, as the fields of a COCO image: `pixel_size`
                (micrometres), `channel_names`, `plane` ({"z": 3} of a stack).
            soft_masks: keep the probabilities of every box's pixels.
            boxes: external boxes, in pixels of the image: their masks are predicted.

        Returns:
            Predictions at the image's own size; `image_id` is 1, `file_name` the file's name or "".

        Raises:
            DataError: an image that cannot be read or that the model cannot take. OutputError: the model's outputs are
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
        """Predict images of a data set one after the other, in their order; no more than a batch is in memory.

        Args:
            records: which images; height and width 0 where they are not known before the file is read.
            batch_size: images at once; only neighbours that have one size at the network are taken together, so
                that a prediction does not depend on the other images.
            soft_masks: keep the probabilities of every box's pixels.
            skipped: images that cannot be read or taken, or for which the model's outputs are not finite, are appended
                here and left out; None raises at the first.
            boxes: gives the boxes whose masks are predicted, in place of the model's own.
            workers: threads that read and prepare images (of large ones, tiles) before they are needed.
            tiles: predicts images that are cut into tiles; None: as `tiling` says, predictions of tiles in memory.

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
        """Raise ConfigError where the model, or models, cannot give soft masks or take external boxes."""
        name = type(self.model).__name__
        if boxes and not self.detector.takes_boxes:
            raise ConfigError(
                f"{name} gives no masks to external boxes (--boxes): that needs models that find boxes before masks, "
                "and have masks (MODEL.MASK_ON)"
            )
        if self.needs_soft_masks(soft_masks) and not self.detector.gives_soft_masks:
            reason = "predict without soft masks (--soft-masks)"
            if not soft_masks:
                reason = f"{self.postprocess.source} needs them: set its mask_threshold to null and mask_quality to 0"
            raise ConfigError(f"{name} gives no mask probabilities; {reason}")

    def needs_soft_masks(self, asked: bool) -> bool:
        """Whether the model must give soft masks: where they are asked for, or the postprocess works on them."""
        return asked or (self.postprocess is not None and self.postprocess.needs_soft_masks)

    def tile_predictor(self, **options: Any) -> TilePredictor:
        """What predicts the images that `tiling` cuts; options: further ones of TilePredictor."""
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
        """Open an image, unless `source` is it, and prepare it for the detector where it is not cut into tiles."""
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
            pixel_size_of(facts, name)  # which may be none
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
                if len(batch) > 1:  # whose outputs are not finite tells each image alone
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
        """Predict images of one size at the network, or the only one of the batch in tiles."""
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
        """Predictions that say which image they are of, and what made them."""
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
