"""A trained model together with all that its images go through before and its answers after.

    image file --(read_picture)--> (H, W, C) --(Detector: channels, size, model)--> Predictions at the size of the file
    --(Postprocess, if any)--> Predictions

The Detector is one model (ImageModel), or views of the image and several models put together (CombinedDetector). The
model is known by its `Segmenter.predict` and `Segmenter.look` alone.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import detseg
from detseg.coco.dataset import ImageRecord
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.errors import ConfigError, DataError
from detseg.fusion.postprocess import Postprocess
from detseg.images.pixel_source import ArraySource, PixelSource
from detseg.images.reading import read_picture
from detseg.inference.combined import CombinedDetector, Member
from detseg.inference.detector import Detector, InputImage, Prepared, as_image, check_size, map_ahead
from detseg.inference.image_model import ImageModel
from detseg.inference.large_images import LargeImages
from detseg.inference.tiling import Tiling
from detseg.inference.views import PLAIN, TestTimeAugmentation
from detseg.models.base import Segmenter
from detseg.structures.pixel_size import FIELD, PixelSize, parse_pixel_size
from detseg.structures.predictions import Predictions

if TYPE_CHECKING:
    from detseg.config import Config

# Boxes of somebody else's for an image of (height, width): in its pixels, with classes and scores.
BoxSource = Callable[[ImageRecord, int, int], Predictions]


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be predicted, and why."""

    file_name: str
    reason: str


@dataclass(frozen=True)
class _Prepared:
    """An image ready for the detector, the size of its pixels where that is known, and boxes given for it."""

    record: ImageRecord
    image: Prepared
    pixel_size: PixelSize | None
    boxes: Predictions | None


class Predictor:
    """Predicts images, one by one or many.

    Args:
        model: any Segmenter; it is predicted with where it is (its device) and never trained here.
        preprocess: channels, scaling and inversion, as in training.
        classes: names of the classes by index.
        min_size_test, max_size_test: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST: images are resized so that the shorter edge
            has the first many pixels and the longer at most the second; 0 for the first leaves images as they are.
        pixel_size: INPUT.PIXEL_SIZE: micrometres to which images are brought before that; 0 leaves them.
        postprocess: applied to every answer; None gives the model's own.
        precision: "float32", or "bfloat16" / "float16" for automatic mixed precision.
        provenance: plain values that every Predictions carries (hashes of config and weights, engine).
        tta: augmentation at test time; None, or the image as it is as the only view, predicts every image once.
        tiling: which images are predicted in tiles; the attribute of this name may be replaced.

    Attributes:
        detector: what finds the objects of one array; it may be replaced by one that goes around it (a sliding window).

    Raises:
        ConfigError: a precision that does not exist, or a postprocess that was made for other classes.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        preprocess: ImagePreprocess,
        classes: Sequence[str],
        min_size_test: int = 0,
        max_size_test: int = 0,
        pixel_size: float = 0.0,
        postprocess: Postprocess | None = None,
        precision: str = "float32",
        provenance: dict[str, Any] | None = None,
        tta: TestTimeAugmentation | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        if postprocess is not None and postprocess.classes and tuple(postprocess.classes) != tuple(classes):
            raise ConfigError(
                f"{postprocess.source} was made for the classes {', '.join(postprocess.classes)}, but the model finds "
                f"{', '.join(classes)}; use the file of this model, or predict without it (--raw)"
            )
        self.image_model = ImageModel(
            model,
            preprocess=preprocess,
            min_size_test=min_size_test,
            max_size_test=max_size_test,
            pixel_size=pixel_size,
            precision=precision,
        )
        self.tta = tta or TestTimeAugmentation()
        self.detector: Detector = self.image_model
        if not self.tta.changes_nothing:
            self.detector = CombinedDetector([Member(self.image_model)], self.tta)
        self.tiling = tiling or Tiling()
        self.classes = tuple(classes)
        self.postprocess = postprocess
        self.provenance = {"detseg_version": detseg.__version__, **(provenance or {})}

    @property
    def model(self) -> Segmenter:
        """The model; of several that are combined, the first."""
        return self.image_model.model

    def with_detector(self, detector: Detector, provenance: Mapping[str, Any] | None = None) -> Predictor:
        """Return this predictor with another detector and more provenance."""
        changed = copy.copy(self)
        changed.detector = detector
        changed.provenance = {**self.provenance, **(provenance or {})}
        return changed

    @classmethod
    def from_model(
        cls,
        model: Segmenter,
        cfg: Config,
        classes: Sequence[str],
        *,
        postprocess: Postprocess | None = None,
        precision: str = "float32",
        provenance: dict[str, Any] | None = None,
        augmented: bool = True,
    ) -> Predictor:
        """A predictor with the INPUT and TEST settings of a configuration, around a model that is there already.

        augmented: whether images are augmented where TEST.AUG says so.
        """
        tta = TestTimeAugmentation.from_config(cfg)
        size = TestSizeOptions.from_config(cfg)
        return cls(
            model,
            preprocess=ImagePreprocess.from_config(cfg),
            classes=classes,
            min_size_test=size.min_size,
            max_size_test=size.max_size,
            pixel_size=size.pixel_size,
            postprocess=postprocess,
            precision=precision,
            provenance=provenance,
            tta=tta if augmented else tta.replace(views=(PLAIN,)),
            tiling=Tiling.from_config(cfg),
        )

    @classmethod
    def from_run(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        checkpoint: str = "best",
        postprocess: bool | str | os.PathLike[str] = True,
        precision: str = "float32",
    ) -> Predictor:
        """The model of a run folder, with the thresholds that its training chose.

        Args:
            folder: a run (`runs/quickstart_mask_rcnn/003`), or the folder of its runs: then the newest one.
            device: "auto" (CUDA where there is one), "cpu", "cuda:1" ...
            checkpoint: "best" (the last one where the run has no evaluation yet), "last", or a file.
            postprocess: True: the run's postprocess.yaml if it has one; False: none; or a file.

        Raises:
            RunError: no run there, or no checkpoint in it. WeightsError, ConfigError: what is there does not fit.
        """
        from detseg.inference.loading import load_run

        return load_run(folder, device=device, checkpoint=checkpoint, postprocess=postprocess, precision=precision)

    @classmethod
    def from_checkpoint(
        cls,
        weights: str | os.PathLike[str],
        cfg: Config | None = None,
        *,
        device: str = "auto",
        postprocess: Postprocess | None = None,
        precision: str = "float32",
    ) -> Predictor:
        """The model of a weights file.

        Args:
            weights: a checkpoint of detseg; other state_dict files need `cfg`.
            cfg: the configuration; None takes the one stored in the checkpoint.

        Raises:
            WeightsError: the file cannot be read, does not fit, or has no configuration and none was given.
        """
        from detseg.inference.loading import load_checkpoint_predictor

        return load_checkpoint_predictor(weights, cfg, device=device, postprocess=postprocess, precision=precision)

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
            boxes: found by somebody else, in pixels of the image: their masks are predicted.

        Returns:
            Predictions at the image's own size; `image_id` is 1, `file_name` the file's name or "".

        Raises:
            DataError: an image that cannot be read or that the model cannot take.
        """
        if isinstance(image, (str, os.PathLike)):
            path = Path(image)
            record = ImageRecord(1, path.name, path, 0, 0, dict(facts or {}))
            found = self._opened(record, None if boxes is None else lambda *_: boxes, self.large_images())[1]
        else:
            image = as_image(image)
            record = ImageRecord(1, "", Path(), *image.shape[:2], {})
            found = ArraySource(image, facts or {})
            if not self.large_images().claims(found):
                found = self._prepare(record, image, facts or {}, boxes)
        if isinstance(found, _Prepared):
            return self._predict([found], soft_masks)[0]
        given = None if boxes is None else lambda *_: boxes
        return self._tiled(record, found, self.large_images(), soft_masks, given)

    def predict_records(
        self,
        records: Iterable[ImageRecord],
        *,
        batch_size: int = 1,
        soft_masks: bool = False,
        skipped: list[SkippedImage] | None = None,
        boxes: BoxSource | None = None,
        workers: int = 0,
        large: LargeImages | None = None,
    ) -> Iterator[Predictions]:
        """Predict images of a data set one after the other, in their order; no more than a batch is in memory.

        Args:
            records: which images; height and width 0 where they are not known before the file is read.
            batch_size: images at once; only neighbours that have one size at the model are taken together, so
                that an answer does not depend on the other images.
            soft_masks: keep the probabilities of every box's pixels.
            skipped: images that cannot be read or taken are appended here and left out; None raises at the first.
            boxes: gives the boxes whose masks are predicted, in place of the model's own.
            workers: threads that read and prepare images (of large ones, tiles) ahead.
            large: predicts those that are cut into tiles; None: as `tiling` says, answers in memory.

        Raises:
            DataError: see `skipped`.
        """
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}; expected at least 1")
        large = large or self.large_images(batch_size=batch_size, workers=workers)
        batch: list[_Prepared] = []
        opened = map_ahead(lambda record: self._opened(record, boxes, large), records, workers)
        for record, prepared in opened:
            if isinstance(prepared, _Prepared):
                if batch and (len(batch) == batch_size or batch[0].image.key != prepared.image.key):
                    yield from self._predict(batch, soft_masks)
                    batch = []
                batch.append(prepared)
                continue
            yield from self._predict(batch, soft_masks)
            batch = []
            try:
                answer = self._tiled(record, prepared, large, soft_masks, boxes)
            except DataError as error:
                if skipped is None:
                    raise
                skipped.append(SkippedImage(record.file_name, str(error)))
                continue
            yield answer
        yield from self._predict(batch, soft_masks)

    def _tiled(
        self,
        record: ImageRecord,
        source: PixelSource | DataError,
        large: LargeImages,
        soft_masks: bool,
        boxes: BoxSource | None,
    ) -> Predictions:
        """Predict an image that is open for reading tiles, or raise why it is not."""
        if isinstance(source, DataError):
            raise source
        with source:
            given = None if boxes is None else boxes(record, source.height, source.width)
            answer = large.predict(record, source, soft_masks=soft_masks, boxes=given)
        return self._named(answer, record, _pixel_size(source.facts, record))

    def large_images(self, **options: Any) -> LargeImages:
        """What predicts the images that `tiling` cuts; options: those of LargeImages."""
        return LargeImages(self.detector, self.postprocess, self.tiling, identity=self.provenance, **options)

    def _opened(
        self, record: ImageRecord, boxes: BoxSource | None, large: LargeImages
    ) -> tuple[ImageRecord, _Prepared | PixelSource | DataError]:
        """The image, ready for the detector, or open for reading tiles, or why it cannot be predicted."""
        try:
            source = large.claim(record)
            if source is not None:
                try:
                    check_size(record, source.height, source.width)
                except DataError:
                    source.close()
                    raise
                return record, source
            image, facts = read_picture(record.path, record.metadata)
            whole = ArraySource(image, facts, record.file_name or "image")
            if large.claims(whole):
                check_size(record, whole.height, whole.width)
                return record, whole
            given = None if boxes is None else boxes(record, *image.shape[:2])
            return record, self._prepare(record, image, facts, given)
        except DataError as error:
            return record, error

    def _prepare(
        self, record: ImageRecord, image: np.ndarray, facts: Mapping[str, Any], boxes: Predictions | None
    ) -> _Prepared:
        """Bring an image (H, W, C) as it was read, and what is known of it, to what the detector takes."""
        check_size(record, *image.shape[:2])
        prepared = self.detector.prepare(InputImage(image, facts, record.file_name or "image"))
        return _Prepared(record, prepared, _pixel_size(facts, record), boxes)

    def _predict(self, batch: Sequence[_Prepared], soft_masks: bool) -> list[Predictions]:
        if not batch:
            return []
        boxes = None if batch[0].boxes is None else [prepared.boxes for prepared in batch]
        answers = self.detector.predict([prepared.image for prepared in batch], soft_masks=soft_masks, boxes=boxes)
        named = [
            self._named(answer, prepared.record, prepared.pixel_size)
            for prepared, answer in zip(batch, answers, strict=True)
        ]
        return named if self.postprocess is None else [self.postprocess.apply(answer) for answer in named]

    def _named(self, answer: Predictions, record: ImageRecord, pixel_size: PixelSize | None) -> Predictions:
        """An answer that says which image it is of, and who gave it."""
        return dataclasses.replace(
            answer,
            image_id=record.image_id,
            file_name=record.file_name,
            pixel_size=pixel_size,
            provenance={**answer.provenance, **self.provenance, **self.detector.describe()},
        )


def _pixel_size(facts: Mapping[str, Any], record: ImageRecord) -> PixelSize | None:
    return None if facts.get(FIELD) is None else parse_pixel_size(facts[FIELD], record.file_name or "image")
