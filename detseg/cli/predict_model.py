"""The options of `predict` that say which models predict, in which views, and how their answers are put together."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detseg.inference.predictor import Predictor
    from detseg.inference.views import TestTimeAugmentation


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("the model: a run, or weights; given several times, they are put together")
    model.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="DIR",
        help="a run folder: its configuration, best weights and thresholds",
    )
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
    model.add_argument("--precision", default="float32", help="float32 (default), bfloat16 or float16")
    views = parser.add_argument_group("several views or models (docs/inference.md)")
    views.add_argument(
        "--tta",
        nargs="+",
        metavar="VIEW",
        help="views in place of the configuration's: flips, eight, or such as none h scale=1.25 h+clahe; off for none",
    )
    views.add_argument("--tta-mode", choices=("merge_then_mask", "fuse"), help="in place of TEST.AUG.MODE")
    views.add_argument("--fusion", metavar="FILE", help="YAML of fusion options in place of TEST.AUG.METHOD and others")
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


def model_problems(arguments: argparse.Namespace) -> dict[str, bool]:
    """Message -> whether it holds, of options that contradict each other."""
    models = len(arguments.run) + len(arguments.weights)
    for_several = [
        option
        for option, value in (
            ("--model-weights", arguments.model_weights),
            ("--boxes-of", arguments.boxes_of),
            ("--masks-of", arguments.masks_of),
        )
        if value and models == 1
    ]
    asked = [*arguments.boxes_of, *arguments.masks_of]
    unknown = ", ".join(str(number) for number in asked if not 1 <= number <= models)
    return {
        f"--boxes-of, --masks-of: there is no model {unknown}; they are counted from 1 to {models}": bool(unknown),
        "give the model: --run DIR, or --weights FILE (with --config FILE)": models == 0,
        "--config belongs to --weights; a run brings its own": bool(arguments.run and arguments.config),
        "--config belongs to one --weights; several take the configurations stored in them": bool(
            len(arguments.weights) > 1 and arguments.config
        ),
        f"{' and '.join(for_several)}: needs several models": bool(for_several),
    }


def load_predictor(arguments: argparse.Namespace) -> Predictor:
    """The predictor that the options describe."""
    from detseg.fusion.postprocess import Postprocess

    predictor = _combined(arguments)
    if arguments.boxes and predictor.postprocess is not None and not arguments.postprocess:
        # a run's threshold belongs to its own scores and not to those of another detector
        predictor.postprocess = predictor.postprocess.without_score_threshold()
    base = predictor.postprocess or Postprocess(resolve_overlaps=False)
    if arguments.score_threshold is not None:
        base = predictor.postprocess = dataclasses.replace(base, score_threshold=arguments.score_threshold)
    if arguments.rescore:
        predictor.postprocess = dataclasses.replace(base, mask_quality=arguments.rescore)
    return predictor


def _combined(arguments: argparse.Namespace) -> Predictor:
    """The model, with views and models put together where that is asked for."""
    from detseg.inference.ensemble import combine

    predictors = [_of_run(arguments, run) for run in arguments.run]
    predictors += [_of_weights(arguments, weights) for weights in arguments.weights]
    settings = _settings(arguments, predictors)
    if len(predictors) == 1 and settings == predictors[0].tta:
        return predictors[0]
    if not arguments.boxes:
        _note_thresholds(predictors)
    return combine(
        predictors,
        settings=settings,
        weights=arguments.model_weights,
        boxes_of=[number - 1 for number in arguments.boxes_of],
        masks_of=[number - 1 for number in arguments.masks_of],
    )


def _of_run(arguments: argparse.Namespace, run: str) -> Predictor:
    from detseg.inference.predictor import Predictor

    return Predictor.from_run(
        run,
        checkpoint=arguments.checkpoint,
        postprocess=arguments.postprocess or not arguments.raw,
        device=arguments.device,
        precision=arguments.precision,
    )


def _of_weights(arguments: argparse.Namespace, weights: str) -> Predictor:
    from detseg.config import load_config
    from detseg.engines.imports import run_imports
    from detseg.fusion.postprocess import Postprocess
    from detseg.inference.predictor import Predictor

    cfg = None
    if arguments.config:
        cfg = load_config(arguments.config, arguments.overrides, imports=run_imports)
    chosen = Postprocess.load(arguments.postprocess) if arguments.postprocess else None
    return Predictor.from_checkpoint(
        weights, cfg, postprocess=chosen, device=arguments.device, precision=arguments.precision
    )


def _settings(arguments: argparse.Namespace, predictors: Sequence[Predictor]) -> TestTimeAugmentation:
    """Views, mode and fusion: those of the first model, changed by the options."""
    from detseg.fusion.options import FusionOptions
    from detseg.inference.views import PLAIN, parse_views

    changes: dict[str, Any] = {}
    if arguments.tta:
        changes["views"] = [PLAIN] if arguments.tta == ["off"] else parse_views(arguments.tta)
    if arguments.tta_mode:
        changes["mode"] = arguments.tta_mode
    if arguments.fusion:
        changes["fusion"] = FusionOptions.load(arguments.fusion)
    if len(predictors) > 1:
        most = [predictor.tta.max_detections for predictor in predictors]
        changes["max_detections"] = max(most) if all(most) else 0
    return predictors[0].tta.replace(**changes)


def _note_thresholds(predictors: Sequence[Predictor]) -> None:
    """Scores of several views or models are others than those that a run's thresholds were chosen for."""
    import logging

    chosen = predictors[0].postprocess
    if chosen is not None:
        logging.getLogger(__name__).warning(
            "the thresholds of %s were chosen for other views or models than these: for the best score choose them "
            "again on predictions made with --raw, on images with known objects",
            chosen.source,
        )


def info_of(predictor: Predictor, boxes: str | None) -> dict[str, Any]:
    """What a Predictions file says about its making; boxes: where they came from, if not from the model."""
    postprocess = None if predictor.postprocess is None else predictor.postprocess.to_dict()
    about = {**predictor.provenance, **predictor.detector.describe()}
    if boxes:
        about["boxes"] = boxes
    return {"description": "predictions of detseg", **about, "postprocess": postprocess}
