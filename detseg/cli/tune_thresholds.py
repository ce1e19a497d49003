"""`detseg tune_thresholds`: choose postprocess settings, and those of a fusion, on out-of-fold predictions."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.next_step import beside, command_line, print_next
from detseg.cli.tracking import add_tracking, settings_of, tracked
from detseg.files.atomic import check_free, make_folder, write_output
from detseg.files.table import text_table

if TYPE_CHECKING:
    from detseg.evaluation.ground_truth import GroundTruth
    from detseg.runs.tracked_command import CommandRun
    from detseg.structures import Predictions
    from detseg.tuning.members import AgainstMembers
    from detseg.tuning.space import Coordinate, State
    from detseg.tuning.trials import Trials
    from detseg.tuning.tuning import TuningResult

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Choose score, size, mask and overlap thresholds for every class that maximise a score of `evaluate`, "
    "and estimate the gain on images on which they were not chosen. Use predictions made with predict --raw "
    "(and --soft-masks for mask thresholds) of images that the models were not trained on."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="FILE",
        help="Predictions files or COCO results; several must contain different images or, with --fusion, are fused",
    )
    parser.add_argument("--ground-truth", required=True, metavar="FILE", help="COCO JSON")
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="postprocess YAML; a table (.json) and a plot (.png) of the same name are written beside it",
    )
    parser.add_argument(
        "--cross-fitted",
        metavar="FILE",
        help="also write the predictions of every fold after the settings that were chosen without it; "
        "`evaluate` on this file gives the cross-fitted score",
    )
    parser.add_argument("--start", metavar="FILE", help="postprocess YAML to start from and to compare with")
    parser.add_argument(
        "--fusion", metavar="FILE", help="fusion YAML for several files; its settings are tuned too, as fusion.NAME"
    )
    parser.add_argument(
        "--metric",
        default="object_ap",
        help="score to maximise: a key of evaluate, or per_class.NAME.KEY (%(default)s)",
    )
    what = parser.add_argument_group("what is tuned")
    what.add_argument("--only", nargs="+", metavar="SETTING", help="tune these settings instead of the usual ones")
    what.add_argument("--also", nargs="+", default=[], metavar="SETTING", help="tune these settings in addition")
    what.add_argument("--shared", action="store_true", help="one value for all classes")
    _add_search_arguments(parser)
    parser.add_argument(
        "--missing",
        choices=("refuse", "empty", "leave-out"),
        default="refuse",
        help="what to do with an image without predictions: refuse (default); empty: nothing was found; "
        "leave-out: tune on the others",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing output files")
    add_tracking(parser)


def _add_search_arguments(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how")
    how.add_argument("--search", choices=("coordinate", "optuna"), default="coordinate")
    how.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of the coordinate search (%(default)s)")
    how.add_argument(
        "--min-gain",
        type=float,
        default=0.0005,
        metavar="G",
        help="coordinate search: a setting is kept unless another value gains more than this (%(default)s)",
    )
    how.add_argument("--trials", type=int, default=200, metavar="N", help="number of Optuna's trials (%(default)s)")
    how.add_argument("--fold-field", metavar="FIELD", help="image-level field with the fold")
    how.add_argument(
        "--folds", type=int, default=5, metavar="K", help="number of random folds, if none are known (%(default)s)"
    )
    how.add_argument(
        "--bootstrap", type=int, metavar="N", help="bootstrap samples of the images (1000; COCO AP: 100; 0 for none)"
    )
    how.add_argument("--seed", type=int, default=0, help="seed of random folds, bootstrap and Optuna (%(default)s)")


@tracked("tune_thresholds")
def run(arguments: argparse.Namespace, tracking: CommandRun) -> None:
    from detseg.progress import ProgressBar
    from detseg.report.tuning_curves import draw_tuning_curves
    from detseg.tuning.inputs import classes_to_tune, folds_of, read_inputs
    from detseg.tuning.members import AgainstMembers
    from detseg.tuning.space import State
    from detseg.tuning.trials import Trials
    from detseg.tuning.tuning import curves, random_folds, to_plain, tune

    outputs = _outputs(arguments)
    _check_numbers(arguments)
    inputs = read_inputs(
        arguments.predictions, arguments.ground_truth, fused=bool(arguments.fusion), missing=arguments.missing
    )
    truth, members, infos = inputs.truth, inputs.members, inputs.files
    start = _start(arguments, truth)
    everything = [image for member in members for image in member]
    active, idle = classes_to_tune(truth, everything)
    _note(infos, idle, active)
    _begin_tracking(tracking, arguments, infos)
    folds = folds_of(truth.images, members[0], arguments.fold_field)
    folds_are = "of the images" if folds is not None else f"random, seed {arguments.seed}"
    folds = random_folds(len(truth.images), arguments.folds, arguments.seed) if folds is None else folds
    with ProgressBar(desc="trying settings", unit="setting") as bar:
        trials = Trials(truth, members, arguments.metric, bar.update)
        coordinates = _coordinates(arguments, truth, start, active, everything, len(members))
        samples = arguments.bootstrap if arguments.bootstrap is not None else (100 if trials.is_coco else 1000)
        before, after = _searches(arguments, trials, start, coordinates)
        result = tune(trials, before, after, folds, bootstrap=samples, seed=arguments.seed)
        lines = curves(trials, result.after, coordinates)
        against = None
        if start.fusion is not None:
            alone = {}
            for file, member in zip(infos, members, strict=True):
                own = Trials(truth, [member], arguments.metric, bar.update)
                alone[file["file"]] = _tune_member(arguments, own, State(start.postprocess), coordinates, folds)
            against = AgainstMembers.of(result, alone, len(folds), bootstrap=samples, seed=arguments.seed)
    checked = _score_of_file(trials, result.after)
    verdict = "" if against is None else against.verdict(arguments.metric)
    _write_states(outputs, result.after, verdict)
    if "cross_fitted" in outputs:
        _write_cross_fitted(outputs["cross_fitted"], trials, result, [str(fold) for fold in folds])
    about = {"metric": arguments.metric, "images": len(truth.images), "folds": folds_are, "predictions": infos}
    curve_values = [{"name": curve.coordinate.name, "points": curve.points, "chosen": curve.chosen} for curve in lines]
    compared = {} if against is None else {**against.to_plain(), "verdict": verdict}
    content = {**about, **to_plain(result), **compared, "curves": curve_values}
    write_output(outputs["table"], json.dumps(content, indent=2, ensure_ascii=False) + "\n", "the table of settings")
    if not draw_tuning_curves(outputs["plot"], lines, arguments.metric):
        del outputs["plot"]
    _track_result(tracking, result, coordinates, outputs)
    print(_report(arguments.metric, result, coordinates, f"{len(set(map(str, folds)))} folds, {folds_are}"))
    if against is not None:
        print(f"\n{_report_of_members(arguments.metric, result, against)}\n\n{verdict}")
    print(f"\n{arguments.output}, applied to the predictions and scored by evaluate: {_cell(checked)}")
    print("written: " + ", ".join(str(path) for path in outputs.values()))
    _print_next(arguments, infos, outputs)


def _begin_tracking(tracking: CommandRun, arguments: argparse.Namespace, infos: Sequence[dict[str, Any]]) -> None:
    from detseg.runs.artifacts import DATASET, PREDICTIONS, THRESHOLDS

    output, sources = Path(arguments.output), {about["file"]: about["info"] for about in infos}
    tracking.begin(sources, folder=output.parent, name=output.name, settings=settings_of(arguments))
    tracking.reads(DATASET, arguments.ground_truth)
    tracking.reads(PREDICTIONS, *sources)
    tracking.reads(THRESHOLDS, arguments.start)


def _track_result(
    tracking: CommandRun, result: TuningResult, coordinates: Sequence[Coordinate], outputs: Mapping[str, Path]
) -> None:
    """Log scores before and after, settings and files."""
    from detseg.runs.artifacts import THRESHOLDS
    from detseg.runs.tracker import CROSS_FITTED, IN_SAMPLE, TUNING, Table

    compared = {IN_SAMPLE: result.in_sample, CROSS_FITTED: result.cross_fitted}
    for name, one in compared.items():
        if one is not None:
            values = {"before": one.before.value, "after": one.after.value, "gain": one.gain.value}
            tracking.log({name: values}, f"{TUNING}/")
    rows = [
        {"setting": item.name, "before": _value(item.get(result.before)), "after": _value(item.get(result.after))}
        for item in coordinates
    ]
    tracking.tables(lambda: {"tables/settings": Table.of(rows)})
    if "plot" in outputs:
        tracking.picture("curves", outputs["plot"])
    tracking.writes(
        THRESHOLDS, outputs["postprocess"], *(outputs[kind] for kind in ("table", "fusion") if kind in outputs)
    )


def _print_next(arguments: argparse.Namespace, infos: Sequence[dict[str, Any]], outputs: Mapping[str, Path]) -> None:
    """Print how to use the settings: on predictions of other images, by the same models or fusion."""
    tuned = ["--postprocess", arguments.output]
    result = beside(Path(arguments.output).with_suffix(""), "_predictions.json.gz")
    models = [info["info"].get("given") or {} for info in infos]
    if arguments.fusion:
        words = ["--inputs", *arguments.predictions, "--config", outputs["fusion"], *tuned]
        command = command_line("fuse", *words, "--ground-truth", arguments.ground_truth, "--output", result)
    elif len(models) == 1 and list(models[0]) == ["run"]:
        runs = [word for run in models[0]["run"] for word in ("--run", run)]
        command = command_line("predict", *runs, "--images", arguments.ground_truth, *tuned, "--output", result)
    else:
        words = ["--ground-truth", arguments.ground_truth, "--predictions", arguments.predictions[0]]
        command = command_line("evaluate", *words, *tuned)
    print_next(command)


def _outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the output files by kind; raise if any exists, unless --overwrite."""
    from detseg.errors import ConfigError

    output = Path(arguments.output)
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: expected a name that ends in .yaml")
    outputs = {"postprocess": output, "table": output.with_suffix(".json"), "plot": output.with_suffix(".png")}
    if arguments.fusion:
        outputs["fusion"] = output.with_name(f"{output.stem}_fusion.yaml")
    if arguments.cross_fitted:
        outputs["cross_fitted"] = Path(arguments.cross_fitted)
    check_free(*outputs.values(), overwrite=arguments.overwrite)
    return outputs


def _check_numbers(arguments: argparse.Namespace) -> None:
    from detseg.errors import ConfigError

    for name, least in {"folds": 2, "rounds": 1, "trials": 2, "bootstrap": 0}.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} is {value}; expected {least} or more")
    if arguments.fusion and len(arguments.predictions) < 2:
        raise ConfigError("--fusion needs several predictions files, one per member")


def _start(arguments: argparse.Namespace, truth: GroundTruth) -> State:
    import dataclasses

    from detseg.fusion.options import FusionOptions
    from detseg.fusion.postprocess import Postprocess
    from detseg.tuning.space import State

    post = Postprocess.load(arguments.start) if arguments.start else Postprocess()
    post = dataclasses.replace(post.for_classes(truth.class_names), classes=tuple(truth.class_names))
    fusion = FusionOptions.load(arguments.fusion).for_classes(truth.class_names) if arguments.fusion else None
    return State(post, fusion)


def _note(infos: Sequence[dict[str, Any]], idle: Sequence[str], active: Sequence[str]) -> None:
    """Warn of what makes tuning useless or limits it."""
    from detseg.errors import DataError

    for about in infos:
        applied = about["info"].get("postprocess") or {}
        if any(applied.get(name) for name in ("score_threshold", "min_area", "max_area", "resolve_overlaps")):
            logger.warning(
                "%s: thresholds have already been applied, so others can only be stricter; use predict --raw",
                about["file"],
            )
    if not active:
        raise DataError("no class has both objects and predictions; nothing can be tuned")
    for name in idle:
        logger.warning("class %s: has no objects or no predictions; its settings are not changed", name)


def _coordinates(
    arguments: argparse.Namespace,
    truth: GroundTruth,
    start: State,
    active: Sequence[str],
    predictions: Sequence[Predictions],
    members: int,
) -> list[Coordinate]:
    from detseg.tuning.space import BY_DEFAULT, FUSION, NEED_SOFT_MASKS, check_settings, make_coordinates

    soft = all(image.soft_masks is not None for image in predictions if len(image))
    usual = [
        name
        for name in BY_DEFAULT
        if (soft or name not in NEED_SOFT_MASKS)
        and (start.fusion is not None or not name.startswith(FUSION))
        and (len(active) > 1 or name != "image_class")
    ]
    names = list(dict.fromkeys([*(arguments.only or usual), *arguments.also]))
    check_settings(names, fusion=start.fusion is not None, soft_masks=soft)
    shared = arguments.shared or len(truth.class_names) == 1
    return make_coordinates(names, truth, start, classes=None if shared else active, members=members)


def _searches(
    arguments: argparse.Namespace, trials: Trials, start: State, coordinates: Sequence[Coordinate]
) -> tuple[Any, Any]:
    """Return two functions that find the settings before and after tuning, given some images."""
    from detseg.tuning.space import make_coordinates
    from detseg.tuning.tuning import coordinate_search, optuna_search

    threshold = make_coordinates(["score_threshold"], trials.truth, start, classes=None)

    def before(images: Any) -> State:
        return start if arguments.start else coordinate_search(trials, start, threshold, images, 2)

    def after(images: Any) -> State:
        first = before(images)
        if arguments.search == "optuna":
            return optuna_search(trials, first, coordinates, images, arguments.trials, arguments.seed)
        return coordinate_search(trials, first, coordinates, images, arguments.rounds, arguments.min_gain)

    return before, after


def _tune_member(
    arguments: argparse.Namespace,
    trials: Trials,
    start: State,
    coordinates: Sequence[Coordinate],
    folds: Sequence[Any],
) -> TuningResult:
    """Tune one member of a fusion alone, in the same way as the fusion."""
    from detseg.tuning.space import FUSION, make_coordinates
    from detseg.tuning.tuning import tune

    own = [item for item in coordinates if not item.setting.startswith(FUSION)]
    own = own or make_coordinates(["score_threshold"], trials.truth, start, classes=None)
    before, after = _searches(arguments, trials, start, own)
    return tune(trials, before, after, folds, bootstrap=0, seed=arguments.seed)


def _score_of_file(trials: Trials, state: State) -> float | None:
    """Return the score that `evaluate` gives the predictions with these settings."""
    from detseg.evaluation.evaluate import evaluate

    metrics = evaluate(trials.truth, trials.processed(state), coco=trials.is_coco)
    return (metrics if trials.class_name is None else metrics["per_class"][trials.class_name])[trials.metric]


def _write_states(outputs: dict[str, Path], state: State, comment: str) -> None:
    outputs["postprocess"].parent.mkdir(parents=True, exist_ok=True)
    state.postprocess.save(outputs["postprocess"], comment)
    if "fusion" in outputs:
        state.fusion.save(outputs["fusion"], comment)


def _write_cross_fitted(path: Path, trials: Trials, result: TuningResult, folds: Sequence[str]) -> None:
    """Write the predictions of each image after the settings that were chosen without its fold."""
    import dataclasses

    from detseg.coco.predictions_file import write_predictions
    from detseg.tuning.tuning import to_plain

    kept: list[Predictions] = [*trials.predictions(result.after)]
    for fold, state in (result.by_fold or dict.fromkeys(folds, result.after)).items():
        predictions = trials.predictions(state)
        for index in [index for index, own in enumerate(folds) if own == fold]:
            kept[index] = dataclasses.replace(state.postprocess.apply(predictions[index]), soft_masks=None)
    make_folder(path.parent)
    info = {"chosen_without_fold": to_plain(result)["chosen_without_fold"]}
    write_predictions(path, kept, list(trials.truth.class_names), info)


def _report(metric: str, result: TuningResult, coordinates: Sequence[Coordinate], folds: str) -> str:
    """Return the tables of scores and settings."""
    rows = [("", f"{metric} before", "after", "gain", "95 % of bootstrap")]
    for title, comparison in (("on the same images", result.in_sample), ("cross-fitted", result.cross_fitted)):
        if comparison is None:
            rows.append((title, "-", "-", "-", "needs images of two folds"))
            continue
        gain = comparison.gain
        interval = "-" if gain.low is None else f"{gain.low:+.4f} to {gain.high:+.4f}"
        values = (_cell(comparison.before.value), _cell(comparison.after.value), _cell(gain.value, "+"))
        rows.append((title, *values, interval))
    lines = [f"{result.settings_tried} settings tried; {folds}", "", text_table(rows, left=range(5)), ""]
    settings = [("setting", "before", "after", "without each fold")]
    for item in coordinates:
        others = ", ".join(dict.fromkeys(_value(item.get(state)) for state in result.by_fold.values()))
        settings.append((item.name, _value(item.get(result.before)), _value(item.get(result.after)), others))
    return "\n".join([*lines, text_table(settings, left=range(4))])


def _report_of_members(metric: str, result: TuningResult, against: AgainstMembers) -> str:
    """Return a table that compares each member alone with the fusion."""
    rows = [("each member alone, tuned alike", f"{metric} on the same images", "cross-fitted", "the fusion's gain")]
    for name, alone in [*against.alone.items(), ("the fusion", result)]:
        crossed = None if alone.cross_fitted is None else alone.cross_fitted.after.value
        gain = _cell(against.leads[name].gain.value, "+") if name in against.leads else ""
        rows.append((name, _cell(alone.in_sample.after.value), _cell(crossed), gain))
    return text_table(rows, left=range(4))


def _cell(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}:{_value(entry)}" for name, entry in value.items())
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"
