"""What `predict` predicts: images, models and views, boxes and tiles, as its options say."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detseg.coco.dataset import ImageRecord
    from detseg.inference.image_list import ImageList, SkippedImage
    from detseg.inference.predictor import BoxLookup, Predictor
    from detseg.inference.tile_predictor import TilePredictor
    from detseg.inference.tta import TestTimeAugmentation
    from detseg.structures.predictions import Predictions
    from detseg.tuning.triage import Triage

_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")
_EVERY = range(10**6)
_logger = logging.getLogger(__name__)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("the model: a run, or weights; given several times, they are combined")
    model.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="DIR",
        help="a run folder: its configuration, best weights and thresholds",
    )
    model.add_argument(
        "--folds",
        nargs="+",
        default=[],
        metavar="DIR",
        help="the folder of a training with --fold all, or the runs of all its folds, in place of --run and --images: "
        "every image by the model that was not trained with it, without thresholds",
    )
    model.set_defaults(fold=None, triage=None)  # which of --folds is predicted at a time
    model.add_argument(
        "--checkpoint", default="best", metavar="NAME", help="of the run: best (default), last or a file"
    )
    model.add_argument("--config", "--config-file", metavar="FILE", help="YAML configuration, for --weights")
    model.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="FILE",
        help="a checkpoint; without --config its own configuration is used",
    )
    model.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda:1 ...")
    model.add_argument(
        "--precision",
        default="auto",
        help="float32, bfloat16, float16, bfloat16_masks (the mask head alone); auto (default): the fastest with which "
        "the run's object AP was that of float32",
    )
    model.add_argument(
        "--diameter",
        default="auto",
        metavar="PIXELS",
        help="of the typical object in the images' own pixels, for models with INPUT.OBJECT_SIZE; auto (default): "
        "estimated image by image",
    )
    views = parser.add_argument_group("several views or models (docs/inference.md)")
    views.add_argument(
        "--tta",
        nargs="+",
        metavar="VIEW",
        help="views instead of the configuration's: flips, eight, or such as none h scale=1.25 h+clahe; off for none",
    )
    modes = ("merge_then_mask", "fuse", "average_maps")
    views.add_argument("--tta-mode", choices=modes, help="instead of TEST.AUG.MODE")
    views.add_argument("--fusion", metavar="FILE", help="YAML of fusion options instead of TEST.AUG.METHOD and others")
    views.add_argument(
        "--model-weights", nargs="+", type=float, default=[], metavar="X", help="one a model, in their order"
    )
    for name in ("boxes", "masks"):
        views.add_argument(
            f"--{name}-of",
            nargs="+",
            type=int,
            default=[],
            metavar="N",
            help=f"only these models give {name}, counted from 1, runs first",
        )


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    tiles = parser.add_argument_group("large images (docs/inference.md)")
    tiles.add_argument(
        "--tile",
        default="auto",
        metavar="N",
        help="edge of tiles in pixels of the file; auto (default): only images of more than 4096 x 4096 pixels at the "
        "model are cut, into tiles that suit it; off",
    )
    tiles.add_argument("--overlap", type=int, metavar="N", help="pixels that neighbouring tiles share")
    tiles.add_argument(
        "--tile-scale",
        type=float,
        metavar="X",
        help="pixels at the model per pixel of a tile; default: of the whole image",
    )
    work = parser.add_argument_group("speed")
    work.add_argument(
        "--num-threads",
        type=int,
        metavar="N",
        help="threads to compute with; default: as many as cores are free at the time",
    )
    work.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default %(default)s)")
    work.add_argument(
        "--workers", type=int, default=1, metavar="N", help="threads that prefetch images (default %(default)s)"
    )
    work.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="processes that share images and tiles (or use torchrun); default: 1, with --ray one a GPU or a core",
    )
    work.add_argument(
        "--ray", metavar="ADDRESS", help="processes of this Ray cluster: HOST:PORT, auto, or local for one here"
    )


def has_model(arguments: argparse.Namespace) -> bool:
    """Whether a run or weights are given; the folds of a training are others."""
    return bool(arguments.run or arguments.weights)


def problems_of(arguments: argparse.Namespace) -> dict[str, bool]:
    """Message -> whether it holds, of options that contradict each other or have impossible values."""
    models = len(arguments.run) + len(arguments.weights) + bool(arguments.folds)
    several = {
        "--model-weights": arguments.model_weights,
        "--boxes-of": arguments.boxes_of,
        "--masks-of": arguments.masks_of,
    }
    needless = [option for option, value in several.items() if value and models == 1]
    asked = [*arguments.boxes_of, *arguments.masks_of]
    unknown = ", ".join(str(number) for number in asked if not 1 <= number <= models)
    tile = arguments.tile
    given = vars(arguments)
    others = ("run", "weights", "config", "images", "image_root", "pixel_size", "z", "t", "axes")
    beside_folds = [f"--{name.replace('_', '-')}" for name in others if arguments.folds and given[name]]
    return {
        f"{' and '.join(beside_folds)}: --folds brings its models and images": bool(beside_folds),
        "give the images: --images PATH": not arguments.folds and not arguments.images,
        f"--boxes-of, --masks-of: there is no model {unknown}; they are counted from 1 to {models}": bool(unknown),
        "give the model: --run DIR, --weights FILE (with --config FILE), or --folds DIR": models == 0
        and not (arguments.refine_with and arguments.boxes),
        "--config belongs to --weights; a run brings its own": bool(arguments.run and arguments.config),
        "--config belongs to one --weights; several take the configurations stored in them": bool(
            len(arguments.weights) > 1 and arguments.config
        ),
        f"{' and '.join(needless)}: needs several models": bool(needless),
        f"--tile is {tile}; expected auto, off or a number of pixels": (
            tile not in ("auto", "off") and not tile.isdigit()
        ),
        f"--workers is {arguments.workers}, --processes {arguments.processes}; expected 0 or more, and 1 or more": (
            arguments.workers < 0 or (arguments.processes is not None and arguments.processes < 1)
        ),
        f"--batch-size is {arguments.batch_size}; expected 1 or more": arguments.batch_size < 1,
    }


@dataclass(frozen=True)
class Job:
    """Images to predict, by what, the boxes that get masks, if they are external ones, and what chooses settings by
    the kind of an image.
    """

    arguments: argparse.Namespace
    images: ImageList
    predictor: Predictor
    boxes: BoxLookup | None
    triage: Triage | None = None

    def tiles(self, **options: Any) -> TilePredictor:
        """What predicts images in tiles; options: further ones of TilePredictor."""
        arguments = self.arguments
        return self.predictor.tile_predictor(batch_size=arguments.batch_size, workers=arguments.workers, **options)

    def predict(
        self, records: Iterable[ImageRecord], skipped: list[SkippedImage], **tile_options: Any
    ) -> Iterator[Predictions]:
        """Predict images; those that cannot be predicted are appended to `skipped`."""
        records = list(records)
        found = self.predictor.predict_records(
            records,
            batch_size=self.arguments.batch_size,
            soft_masks=self.arguments.soft_masks,
            skipped=skipped,
            boxes=self.boxes,
            workers=self.arguments.workers,
            tiles=self.tiles(**tile_options),
        )
        if self.triage is None:
            yield from found
            return
        by_id = {record.image_id: record for record in records}
        for predictions in found:
            record = by_id[predictions.image_id]
            kind, settings = self.triage.settings_of(record.path, record.metadata)
            predictions.provenance["kind"] = kind
            yield settings.for_classes(self.predictor.classes).apply(predictions)

    def info(self) -> dict[str, Any]:
        """What the Predictions file says about its making."""
        from detseg.data.trained_images import FIELD

        predictor = self.predictor
        about = {**predictor.provenance, **predictor.detector.describe()}
        about["given"] = {
            name: value for name in ("run", "weights", "triage") if (value := getattr(self.arguments, name))
        }
        if predictor.detector.sizing_model is not None:
            about["given"]["diameter"] = predictor.diameter or "auto"
        if self.arguments.boxes:
            about["boxes"] = self.arguments.boxes
        # What the models saw: what is learned from these predictions must not be validated on it.
        known = predictor.trained_images
        if None not in known:
            about[FIELD] = functools.reduce(operator.or_, known).to_plain()
        postprocess = None if predictor.postprocess is None else predictor.postprocess.to_dict()
        return {"description": "predictions of detseg", **about, "postprocess": postprocess}


def find_job_images(arguments: argparse.Namespace) -> ImageList:
    """The images, or those of the fold of a run; --z and --t may name several: all, or 3-10."""
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
        ConfigError: models that do not go together, or cannot do what is asked for.
    """
    from detseg.errors import ConfigError
    from detseg.inference.external_boxes import read_boxes
    from detseg.tuning.triage import Triage

    predictor = _load_predictor(arguments)
    predictor.require(soft_masks=arguments.soft_masks, boxes=bool(arguments.boxes))
    boxes = read_boxes(arguments.boxes, images, predictor.classes) if arguments.boxes else None
    triage = Triage.load(arguments.triage) if arguments.triage else None
    for settings in [] if triage is None else [triage.usual, *triage.own.values()]:
        if settings.for_classes(predictor.classes).needs_soft_masks and not arguments.soft_masks:
            raise ConfigError(f"{arguments.triage}: its settings need mask probabilities; give --soft-masks too")
    return Job(arguments, images, predictor, boxes, triage)


def _load_predictor(arguments: argparse.Namespace) -> Predictor:
    from detseg.data.object_size import check_diameter
    from detseg.errors import ConfigError
    from detseg.fusion.postprocess import Postprocess
    from detseg.inference.combine import combine

    predictors = _load_models(arguments)
    predictor, settings = predictors[0], _tta_settings(arguments, predictors)
    if len(predictors) > 1 or settings != predictor.tta:
        if predictor.postprocess is not None and not arguments.boxes:
            _logger.warning(
                "the thresholds of %s were chosen for other views or models than these: for the best score choose "
                "them again on predictions made with --raw, on images with known objects",
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
        # a run's threshold belongs to its own scores and not to those of another detector
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
            raise ConfigError(
                "--tile off: there are no tiles then, and --overlap and --tile-scale say nothing; leave them out"
            )
        tiling["when"] = "never"
    predictor.tiling = dataclasses.replace(predictor.tiling, **tiling)
    if arguments.diameter != "auto":
        if predictor.detector.sizing_model is None:
            raise ConfigError(
                "--diameter: this model was not trained with objects of one size (INPUT.OBJECT_SIZE), and sees images "
                "at a size that does not depend on them; leave it out, or name views: --tta scale=2"
            )
        predictor.diameter = check_diameter(_number(arguments.diameter), "--diameter")
    return predictor


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _load_models(arguments: argparse.Namespace) -> list[Predictor]:
    """The predictors of all runs, then those of all weights."""
    from detseg.config import load_config
    from detseg.engines.validation import run_imports
    from detseg.fusion.postprocess import Postprocess
    from detseg.inference.predictor import Predictor

    options = {"device": arguments.device, "precision": arguments.precision}
    from_file = arguments.postprocess or not arguments.raw  # of a run its own, unless a file or none is asked for
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
    """Views, mode and fusion: those of the first model, changed by the options."""
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
