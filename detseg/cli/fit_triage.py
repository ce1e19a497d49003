"""`detseg fit_triage`: train a classifier of image kinds, and choose model and threshold for kinds that gain by it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detseg.structures import Predictions
    from detseg.tuning.triage import Model, Triage

DESCRIPTION = (
    "Train a classifier of the kinds of images (an image-level field such as group), choose a model (given "
    "several predictions files) and a score threshold for each kind, and write both for `predict --triage`. "
    "A kind gets its own only if the interval of the gain in object AP, in cross-validation, is above 0."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ground-truth", required=True, metavar="FILE", help="COCO file, with its images")
    parser.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="FILE",
        help="predictions of these images, one file per model; the models must not have been trained with "
        "them: predict --raw, or predict --folds",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE.json", help="output file, for predict --triage"
    )
    parser.add_argument(
        "--group-by", default="group", metavar="FIELD", help="field with the kind of an image (default: %(default)s)"
    )
    parser.add_argument("--start", metavar="FILE", help="postprocess YAML for all other settings")
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="folds of the cross-validation (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of folds and bootstrap (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(arguments: argparse.Namespace) -> None:
    """Fit, write and print the decisions."""
    import dataclasses

    import numpy as np

    from detseg.coco.dataset import CocoDataset
    from detseg.errors import ConfigError, DataError
    from detseg.files.atomic import check_free
    from detseg.fusion.postprocess import Postprocess
    from detseg.progress import ProgressBar
    from detseg.tuning.inputs import read_inputs
    from detseg.tuning.triage import fit_triage, image_features

    if arguments.folds < 2:
        raise ConfigError(f"--folds is {arguments.folds}; expected 2 or more")
    check_free(arguments.output, overwrite=arguments.overwrite)
    inputs = read_inputs(arguments.predictions, arguments.ground_truth, fused=True)
    truth = inputs.truth
    models = [_model(about, member) for about, member in zip(inputs.files, inputs.members, strict=True)]
    for about in inputs.files if len(models) > 1 else []:
        given = about["info"].get("given", {})
        if "fused" in about["info"] or sum(len(given.get(name, [])) for name in ("run", "weights")) > 1:
            raise DataError(
                f"{about['file']}: was made by several models together, but `predict --triage` uses one model per "
                "image; leave the file out, or give it alone"
            )
    start = Postprocess.load(arguments.start) if arguments.start else Postprocess()
    start = dataclasses.replace(start.for_classes(truth.class_names), classes=tuple(truth.class_names))
    records = {record.image_id: record for record in CocoDataset.load(arguments.ground_truth).images}
    lacking = [image.file_name for image in truth.images if image.metadata.get(arguments.group_by) is None]
    if lacking:
        raise DataError(
            f"{arguments.ground_truth}: {len(lacking)} images lack the field {arguments.group_by!r}, such as "
            f"{lacking[0]}; --group-by names the field with their kind"
        )
    kinds = [str(image.metadata[arguments.group_by]) for image in truth.images]
    own = [records[image.image_id] for image in truth.images]
    bar = ProgressBar(own, desc="looking at images", unit="image", total=len(own))
    features = np.stack([image_features(record.path, record.metadata) for record in bar])
    options = {"start": start, "folds": arguments.folds, "seed": arguments.seed}
    triage = fit_triage(truth, dict(zip(models, inputs.members, strict=True)), features, kinds, **options)
    triage.save(arguments.output)
    print(_report(triage))
    print(f"Written: {arguments.output}")


def _model(about: dict[str, Any], predictions: Sequence[Predictions]) -> Model:
    """Return the model of a Predictions file, with its checkpoint if all images have the same."""
    from detseg.tuning.triage import Model

    checkpoints = {str(image.provenance.get("checkpoint_hash", "")) for image in predictions if len(image)}
    return Model(about["file"], checkpoints.pop() if len(checkpoints) == 1 else "")


def _report(triage: Triage) -> str:
    report, several = triage.report, len(triage.models) > 1

    def told(name: str) -> str:
        choice = report["chosen"].get(name)
        if choice is None:
            return "too few for a choice"
        model = f"{triage.models[choice['model']].name}, " if several else ""
        return f"{model}threshold {choice['score_threshold']:g}"

    lines = [f"all: {sum(report['images'].values())} images, {told('one')}"]
    for kind, accuracy in report["accuracy_by_kind"].items():
        lines.append(f"{kind}: {report['images'][kind]} images, {accuracy:.1%} classified correctly, {told(kind)}")
    low, high = report["interval"]
    what = "one model and threshold" if several else "one threshold"
    lines.append(
        f"object AP, cross-validated: {report['object_ap_one']:.4f} with {what}, {report['object_ap_own']:.4f} with "
        f"those of the kinds; gain {report['gain']:+.4f} ({low:+.4f} to {high:+.4f})"
    )
    lines.append("The kinds get their own." if report["used"] else f"No certain gain: all kinds keep {what}.")
    return "\n".join(lines)
