"""`detseg make_submission`: write predictions as a competition's CSV, or check and score a submission."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.next_step import command_line, print_next
from detseg.cli.tracking import add_tracking, settings_of, tracked

if TYPE_CHECKING:
    from detseg.coco.pairing import PairedImage
    from detseg.coco.predictions_parsing import ImageEntry
    from detseg.evaluation.ground_truth import GroundTruth
    from detseg.runs.tracked_command import CommandRun
    from detseg.submission.formats import SubmissionImage

COCO_ENDINGS = (".json", ".json.gz")

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Write predictions as a competition's CSV of run-lengths, or check (--check) or score (--score) such a "
    "file. Exit status of a check: 0, or 1 if rows are wrong."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", metavar="FILE", help="Predictions file or COCO results, .json or .json.gz")
    parser.add_argument("--output", metavar="FILE", help="CSV to write")
    parser.add_argument(
        "--format",
        choices=("sartorius", "dsb2018"),
        help="sartorius: id,predicted, along rows; dsb2018: ImageId,EncodedPixels, down columns",
    )
    parser.add_argument(
        "--images",
        metavar="PATH",
        help="the images to submit: a folder, a COCO file, or a sample submission (default: those of the predictions)",
    )
    parser.add_argument("--postprocess", metavar="FILE", help="postprocess YAML to apply to the predictions")
    parser.add_argument(
        "--refuse-overlaps", action="store_true", help="refuse masks that overlap (default: resolve overlaps)"
    )
    parser.add_argument("--check", metavar="FILE", help="a submission to check, instead of writing one; needs --images")
    parser.add_argument(
        "--score", metavar="FILE", help="COCO ground truth: print the competition's score of what is written or checked"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    add_tracking(parser)


@tracked("make_submission")
def run(arguments: argparse.Namespace, tracking: CommandRun) -> int:
    from detseg.runs.artifacts import SUBMISSION
    from detseg.runs.tracker import EVALUATION
    from detseg.submission.formats import images_of

    _check_options(arguments)
    truth = _truth(arguments.score)
    path = Path(arguments.check or arguments.output)
    listed = images = None
    if arguments.images:
        listed = _listed_images(Path(arguments.images))
        images = _sample_images(Path(arguments.images)) if listed is None else images_of(listed)
    elif truth is not None and arguments.check:
        images = images_of(truth.images)
    if arguments.check:
        _begin_tracking(tracking, arguments, {str(path): {}})
        status = _check(path, images, arguments.format)
        if status:
            return status
    else:
        others = {} if listed is None else {f"--images {arguments.images}": listed}
        others |= {} if truth is None else {f"--score {arguments.score}": truth.images}
        _write(arguments, images, others, tracking)
    if truth is not None:
        tracking.log(_score(path, truth, arguments.format), f"{EVALUATION}/")
    if not arguments.check:
        tracking.writes(SUBMISSION, path)
    if not arguments.check and arguments.images:
        print_next(command_line("make_submission", "--check", path, "--images", arguments.images))
    return 0


def _begin_tracking(
    tracking: CommandRun, arguments: argparse.Namespace, sources: Mapping[str, Mapping[str, Any]]
) -> None:
    """sources: the Predictions file with its `info`, or the submission to check."""
    from detseg.runs.artifacts import DATASET, PREDICTIONS, SUBMISSION, THRESHOLDS

    path = Path(arguments.check or arguments.output)
    tracking.begin(sources, folder=path.parent, name=path.name, settings=settings_of(arguments))
    tracking.reads(SUBMISSION if arguments.check else PREDICTIONS, *sources)
    tracking.reads(DATASET, *dict.fromkeys([arguments.images, arguments.score]))
    tracking.reads(THRESHOLDS, None if arguments.check else arguments.postprocess)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse contradictory options."""
    from detseg.errors import refuse
    from detseg.files.atomic import check_free

    writing = bool(arguments.predictions or arguments.output)
    refuse(
        {
            "give --predictions FILE and --output FILE to write, or --check FILE": not writing and not arguments.check,
            "--check reads a submission; it goes without --predictions and --output": writing and bool(arguments.check),
            "--predictions and --output belong together": writing and not (arguments.predictions and arguments.output),
            "--format: say for which competition, sartorius or dsb2018": writing and not arguments.format,
            "--check needs --images PATH (or --score FILE): which images, and how large?": bool(arguments.check)
            and not (arguments.images or arguments.score),
        }
    )
    if arguments.output:
        check_free(arguments.output, overwrite=arguments.overwrite)


def _truth(path: str | None) -> GroundTruth | None:
    from detseg.coco.dataset import CocoDataset
    from detseg.evaluation.ground_truth import GroundTruth

    return GroundTruth.from_coco(CocoDataset.load(path)) if path else None


def _write(
    arguments: argparse.Namespace,
    images: dict[str, SubmissionImage] | None,
    others: Mapping[str, Sequence[PairedImage]],
    tracking: CommandRun,
) -> None:
    """others: images of the files that must match those of the predictions, by the option that gives each file."""
    from detseg.coco.dataset import CocoDataset
    from detseg.coco.pairing import ImageIndex
    from detseg.coco.predictions_file import is_plain_list, read_predictions
    from detseg.errors import ConfigError
    from detseg.fusion.postprocess import Postprocess
    from detseg.submission.formats import FORMATS, images_of
    from detseg.submission.writing import write_submission

    is_coco = bool(arguments.images) and arguments.images.endswith(COCO_ENDINGS)
    plain = is_plain_list(arguments.predictions)
    if plain and not is_coco:
        raise ConfigError(
            f"{arguments.predictions}: a plain list of results has no image names; give their COCO file, --images FILE"
        )
    file = read_predictions(arguments.predictions, CocoDataset.load(arguments.images) if plain else None)
    for words, listed in others.items():
        ImageIndex(listed, words).pair(file.images, arguments.predictions)
    if images is None:
        images = images_of(file.images)
    postprocess = None
    if arguments.postprocess:
        postprocess = Postprocess.load(arguments.postprocess).for_classes(file.class_names)
    if postprocess is None and file.info.get("postprocess", "unknown") is None:
        logger.warning("%s contains low scores, and every object counts: give --postprocess", arguments.predictions)
    _begin_tracking(tracking, arguments, {arguments.predictions: file.info})
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    written = write_submission(
        arguments.output,
        images,
        file if postprocess is None else postprocess.apply_all(file),
        FORMATS[arguments.format],
        refuse_overlaps=arguments.refuse_overlaps,
    )
    tracking.log({"images": written.images, "objects": written.objects, "empty": written.empty})
    print(f"images   {written.images}\nobjects  {written.objects}\nempty    {written.empty}")
    if written.missing:
        print(f"         {written.missing} of them are not in the predictions")
    if written.resolved:
        print(f"overlaps resolved by score in {written.resolved} images; {written.dropped} objects were dropped")
    print(f"written  {arguments.output}, read back and compared")


def _check(path: Path, images: dict[str, SubmissionImage], name: str | None) -> int:
    from detseg.errors import count_problems
    from detseg.submission.formats import FORMATS
    from detseg.submission.reading import read_submission

    if any(image.height is None for image in images.values()):
        logger.warning("the image sizes are not known, so it is not checked whether run-lengths leave the image")
    found = read_submission(path, images, FORMATS[name] if name else None)
    for problem in found.problems:
        print(problem)
    if found.problems:
        print(f"{path}: {count_problems(found.problems)}; no valid submission ({found.layout.name})")
        return 1
    print(f"{path}: valid ({found.layout.name}), {len(images)} images, {found.rows} rows")
    return 0


def _score(path: Path, truth: GroundTruth, name: str | None) -> dict[str, Any]:
    from detseg.submission.formats import FORMATS, images_of
    from detseg.submission.reading import read_submission, score_submission

    scores = score_submission(truth, read_submission(path, images_of(truth.images), FORMATS[name] if name else None))
    cells = ["-" if value is None else f"{value:.4f}" for value in (scores["object_ap"], scores["object_ap50"])]
    print(f"score    {cells[0]} (at IoU 0.5 alone {cells[1]}), {scores['images']} images, {scores['objects']} objects")
    return scores


def _listed_images(path: Path) -> list[ImageEntry] | None:
    """Return the images of a folder (also with the layout ID/images/ID.png) or of a COCO file; None for a sample
    submission, which has no file names."""
    from detseg.coco.dataset import CocoDataset
    from detseg.coco.predictions_parsing import ImageEntry
    from detseg.errors import DataError

    if not path.exists():
        raise DataError(f"--images {path}: there is no such file or folder")
    if path.is_dir():
        return _folder_images(path)
    if path.name.endswith(COCO_ENDINGS):
        return [ImageEntry.of(image) for image in CocoDataset.load(path).images]
    if path.suffix != ".csv":
        raise DataError(f"--images {path}: expected a folder, a COCO file (.json) or a sample submission (.csv)")
    return None


def _folder_images(path: Path) -> list[ImageEntry]:
    from detseg.coco.predictions_parsing import ImageEntry
    from detseg.errors import DataError, list_problems
    from detseg.images.reading import open_pixels
    from detseg.submission.formats import image_files

    found, problems = [], []
    for file in image_files(path):
        try:
            with open_pixels(file) as source:
                found.append(ImageEntry(file.stem, file.relative_to(path).as_posix(), source.height, source.width))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(list_problems(problems))
    if not found:
        raise DataError(f"{path}: there are no images in this folder")
    return found


def _sample_images(path: Path) -> dict[str, SubmissionImage]:
    from detseg.files.table import read_table
    from detseg.submission.formats import SubmissionImage, by_name, format_of

    table = read_table(path, [])
    layout = format_of(table.columns, path)
    names = dict.fromkeys(row.values[layout.key] for row in table.rows)
    return by_name(SubmissionImage(name) for name in names)
