"""The job of `predict`: images, models and views, boxes and tiles, according to its options (predict_options.py)."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import logging
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from detseg.coco.dataset import ImageRecord
    from detseg.inference.image_list import ImageList, SkippedImage
    from detseg.inference.predictor import BoxLookup, Predictor
    from detseg.inference.tile_predictor import TilePredictor
    from detseg.inference.tta import TestTimeAugmentation
    from detseg.structures.predictions import Predictions
    from detseg.tuning.triage import Choice, Triage

_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")
_EVERY = range(10**6)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Images, the models that predict them, external boxes, if any, and the triage that chooses by kind of image.

    predictors: one, or one per model of the triage.
    """

    arguments: argparse.Namespace
    images: ImageList
    predictors: tuple[Predictor, ...]
    boxes: BoxLookup | None = None
    triage: Triage | None = None
    _chosen: dict[int | str, tuple[str, Choice]] = field(default_factory=dict, init=False, repr=False)

    @property
    def predictor(self) -> Predictor:
        """The only predictor, or the first."""
        return self.predictors[0]

    def predictor_of(self, record: ImageRecord) -> Predictor:
        """Return the predictor for an image."""
        return self.predictor if len(self.predictors) == 1 else self.predictors[self._choice_of(record)[1].model]

    def tiles(self, predictor: Predictor, **options: Any) -> TilePredictor:
        """Return what predicts images in tiles; options: further arguments of TilePredictor."""
        arguments = self.arguments
        return predictor.tile_predictor(batch_size=arguments.batch_size, workers=arguments.workers, **options)

    def predict(
        self, records: Iterable[ImageRecord], skipped: list[SkippedImage], **tile_options: Any
    ) -> Iterator[Predictions]:
        """Predict images; those that cannot be predicted are appended to `skipped`."""
        for predictor, group in itertools.groupby(records, self.predictor_of):
            of_group = {record.image_id: record for record in group}
            found = predictor.predict_records(
                of_group.values(),
                batch_size=self.arguments.batch_size,
                soft_masks=self.arguments.soft_masks,
                skipped=skipped,
                boxes=self.boxes,
                workers=self.arguments.workers,
                tiles=self.tiles(predictor, **tile_options),
            )
            for predictions in found:
                if self.triage is not None:
                    kind, choice = self._choice_of(of_group[predictions.image_id])
                    predictions.provenance["kind"] = kind
                    predictions = choice.settings.for_classes(predictor.classes).apply(predictions)
                yield predictions

    def _choice_of(self, record: ImageRecord) -> tuple[str, Choice]:
        """Return the kind of an image and its choice; an unreadable one gets the default, which reports the error."""
        if record.image_id not in self._chosen:
            try:
                found = self.triage.choice_of(record.path, record.metadata)
            except DataError:
                found = "", self.triage.usual
            self._chosen[record.image_id] = found
        return self._chosen[record.image_id]

    def info(self) -> dict[str, Any]:
        """Return the provenance in the Predictions file."""
        from detseg.data.trained_images import FIELD
        from detseg.files.hashing import hash_file

        predictor = self.predictor
        about = {**predictor.provenance, **predictor.detector.describe()}
        about["given"] = {
            name: value for name in ("run", "weights", "triage") if (value := getattr(self.arguments, name))
        }
        if self.triage is not None:
            about["triage_hash"] = hash_file(Path(self.arguments.triage))
        if len(self.predictors) > 1:
            about["models"] = [{**one.provenance, **one.detector.describe()} for one in self.predictors]
        if predictor.detector.sizing_model is not None:
            about["given"]["diameter"] = predictor.diameter or "auto"
        if self.arguments.boxes:
            about["boxes"] = self.arguments.boxes
        # Images seen in training: whatever is learned from these predictions must not be validated on them.
        known = [images for one in self.predictors for images in one.trained_images]
        if None not in known:
            about[FIELD] = functools.reduce(operator.or_, known).to_plain()
        postprocess = None if predictor.postprocess is None else predictor.postprocess.to_dict()
        return {"description": "predictions of detseg", **about, "postprocess": postprocess}


def find_job_images(arguments: argparse.Namespace) -> ImageList:
    """Return the images, or those of the fold of a run; --z and --t may be ranges: all, or 3-10."""
    from detseg.cli.image_fields import image_fields
    from detseg.inference.image_list import ImageList, expand_stacks, find_images

    if arguments.fold is not None:
        from detseg.engine.trained_folds import validation_part_of

        return ImageList.of_dataset(validation_part_of(Path(arguments.run[0])))
    single, several = argparse.Namespace(**vars(arguments)), {}
    for name in ("z", "t"):
        text = getattr(arguments, name)
        match = _RANGE.fullmatch(text or "")
        several[name] = _EVERY if text == "all" else range(int(match[1]), int(match[2]) + 1) if match else None
        if several[name] is not None:
            setattr(single, name, None)
    images = find_images(arguments.images, image_root=arguments.image_root, fields=image_fields(single))
    return images if several == {"z": None, "t": None} else expand_stacks(images, **several)


def load_job(arguments: argparse.Namespace, images: ImageList) -> Job:
    """Load models and boxes.

    Raises:
        ConfigError: the models do not fit together, or do not support the options.
    """
    from detseg.inference.external_boxes import read_boxes
    from detseg.tuning.triage import Triage

    triage = Triage.load(arguments.triage) if arguments.triage else None
    if triage is not None and len(triage.models) > 1:
        predictors = _load_models_of_triage(arguments, triage)
    else:
        predictors = (_load_predictor(arguments),)
    for predictor in predictors:
        predictor.require(soft_masks=arguments.soft_masks, boxes=bool(arguments.boxes))
    classes = predictors[0].classes
    for choice in [] if triage is None else [triage.usual, *triage.own.values()]:
        if choice.settings.for_classes(classes).needs_soft_masks and not arguments.soft_masks:
            raise ConfigError(f"{arguments.triage}: its settings need mask probabilities; give --soft-masks too")
    boxes = read_boxes(arguments.boxes, images, classes) if arguments.boxes else None
    return Job(arguments, images, predictors, boxes, triage)


def _load_models_of_triage(arguments: argparse.Namespace, triage: Triage) -> tuple[Predictor, ...]:
    """Load the models that a triage chooses from, each as a predictor of its own."""
    named = ", ".join(model.name for model in triage.models)
    together = [name for name in ("model_weights", "boxes_of", "masks_of") if getattr(arguments, name)]
    if together:
        option = together[0].replace("_", "-")
        raise ConfigError(f"--{option}: {arguments.triage} uses one model per image; leave it out")
    given = [{"run": [run], "weights": []} for run in arguments.run]
    given += [{"run": [], "weights": [weights]} for weights in arguments.weights]
    if len(given) != len(triage.models):
        raise ConfigError(
            f"{arguments.triage} chooses from {len(triage.models)} models, and {len(given)} are given; name those that "
            f"made the files of fit_triage, in their order ({named}): --run A --run B"
        )
    predictors = tuple(_load_predictor(argparse.Namespace(**{**vars(arguments), **one})) for one in given)
    for number, (predictor, model) in enumerate(zip(predictors, triage.models, strict=True), start=1):
        if predictor.classes != predictors[0].classes:
            raise ConfigError(
                f"the first model finds {', '.join(predictors[0].classes)}, model {number} "
                f"{', '.join(predictor.classes)}; expected the same classes in the same order"
            )
        if model.checkpoint not in ("", predictor.provenance.get("checkpoint_hash")):
            raise ConfigError(
                f"model {number} has other weights than those that made {model.name}; give the models in the order of "
                f"{arguments.triage} ({named}), or fit it again"
            )
    return predictors


def _load_predictor(arguments: argparse.Namespace) -> Predictor:
    from detseg.data.object_size import check_diameter
    from detseg.fusion.postprocess import Postprocess
    from detseg.inference.combine import combine

    predictors = _load_models(arguments)
    predictor, settings = predictors[0], _tta_settings(arguments, predictors)
    if len(predictors) > 1 or settings != predictor.tta:
        if predictor.postprocess is not None and not arguments.boxes:
            _logger.warning(
                "the thresholds of %s were chosen for other views or models than these: for the best score, choose "
                "them again on --raw predictions of annotated images",
                predictor.postprocess.source,
            )
        predictor = combine(
            predictors,
            settings=settings,
            weights=arguments.model_weights,
            boxes_of=[number - 1 for number in arguments.boxes_of],
            masks_of=[number - 1 for number in arguments.masks_of],
        )
    if arguments.boxes and predictor.postprocess is not None and not arguments.postprocess:
        # a run's score threshold applies to its own scores, not to those of another detector
        predictor.postprocess = predictor.postprocess.without_score_threshold()
    base = predictor.postprocess or Postprocess(resolve_overlaps=False)
    if arguments.score_threshold is not None:
        base = predictor.postprocess = dataclasses.replace(base, score_threshold=arguments.score_threshold)
    if arguments.rescore:
        predictor.postprocess = dataclasses.replace(base, mask_quality=arguments.rescore)
    tiling: dict[str, Any] = {"overlap": arguments.overlap, "scale": arguments.tile_scale}
    if arguments.tile.isdigit():
        tiling |= {"when": "always", "tile": int(arguments.tile)}
    elif arguments.tile == "off":
        if arguments.overlap is not None or arguments.tile_scale is not None:
            raise ConfigError("--tile off: without tiles, --overlap and --tile-scale have no effect; leave them out")
        tiling["when"] = "never"
    predictor.tiling = dataclasses.replace(predictor.tiling, **tiling)
    if arguments.diameter != "auto":
        if predictor.detector.sizing_model is None:
            raise ConfigError(
                "--diameter: this model was not trained with objects of one size (INPUT.OBJECT_SIZE), and sees images "
                "at a size that does not depend on their objects; leave it out, or name views: --tta scale=2"
            )
        predictor.diameter = check_diameter(_number(arguments.diameter), "--diameter")
    return predictor


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _load_models(arguments: argparse.Namespace) -> list[Predictor]:
    """Return the predictors of all runs, then those of all weights."""
    from detseg.config import load_config
    from detseg.engines.validation import run_imports
    from detseg.fusion.postprocess import Postprocess
    from detseg.inference.predictor import Predictor

    options = {"device": arguments.device, "precision": arguments.precision}
    from_file = arguments.postprocess or not arguments.raw  # a run's own, unless --postprocess or --raw is given
    checkpoint = arguments.checkpoint
    predictors = [
        Predictor.from_run(run, checkpoint=checkpoint, postprocess=from_file, **options) for run in arguments.run
    ]
    cfg = None
    if arguments.config:
        cfg = load_config(arguments.config, arguments.overrides, imports=run_imports)
    postprocess = Postprocess.load(arguments.postprocess) if arguments.postprocess else None
    for weights in arguments.weights:
        predictors.append(Predictor.from_checkpoint(weights, cfg, postprocess=postprocess, **options))
    return predictors


def _tta_settings(arguments: argparse.Namespace, predictors: Sequence[Predictor]) -> TestTimeAugmentation:
    """Return views, mode and fusion: those of the first model, changed by the options."""
    from detseg.fusion.options import FusionOptions
    from detseg.inference.views import PLAIN, parse_views

    changes: dict[str, Any] = {}
    if arguments.tta:
        changes["views"] = [PLAIN] if arguments.tta == ["off"] else parse_views(arguments.tta)
    if arguments.tta_mode:
        changes["mode"] = arguments.tta_mode
    if arguments.fusion:
        changes["fusion"] = FusionOptions.load(arguments.fusion).for_classes(predictors[0].classes)
    if len(predictors) > 1:
        most = [predictor.tta.max_detections for predictor in predictors]
        changes["max_detections"] = max(most) if all(most) else 0
    return predictors[0].tta.replace(**changes)
