"""`detseg pseudo_label label`: make a COCO file of pseudo-labels from predictions of unlabelled images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.semi_supervised import Gates

DESCRIPTION = (
    "Turn predictions of unlabelled images (predict --raw, fuse) into a COCO file to train with. Gates "
    "decide which objects are kept, ignored (neither object nor background) or dropped. Images that are "
    "nearly the same as validation images are left out, and models that have seen validation images are "
    "refused. A page shows what was kept and what was not. KEY=VALUE sets single gates, such as score=0.8 "
    "(not directly after a list of files)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predictions", required=True, metavar="FILE", help="Predictions file of the unlabelled images"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="PATH",
        help="these images: a COCO file, a folder, a glob, or files",
    )
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder of the COCO file's images, if it is not the file's own"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="COCO file, .json or .json.gz")
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="default: beside the output")
    parser.add_argument("--no-page", action="store_true", help="write no page")
    gates = parser.add_argument_group("the gates (docs/semi_supervised.md)")
    gates.add_argument("--gates", metavar="FILE", help="YAML file of gates; single ones can follow as KEY=VALUE")
    gates.add_argument(
        "--members",
        nargs="+",
        default=[],
        metavar="FILE",
        help="Predictions files of the same images by other models, folds or views, for the agreement gate",
    )
    gates.add_argument(
        "--labelled", nargs="+", metavar="FILE", help="COCO files of the labelled images (classes, counts, folds)"
    )
    gates.add_argument(
        "--precision",
        type=float,
        metavar="P",
        help="choose the score limits so that this share of the kept objects is true, measured on --out-of-fold",
    )
    gates.add_argument(
        "--out-of-fold",
        metavar="FILE",
        help="predictions of --labelled by models that have not seen them (predict --folds)",
    )
    gates.add_argument(
        "--out-of-fold-members", nargs="+", default=[], metavar="FILE", help="like --members, for the labelled images"
    )
    gates.add_argument("--postprocess", metavar="FILE", help="postprocess YAML; its score threshold is ignored")
    gates.add_argument(
        "--field-pattern",
        metavar="REGEX",
        help="regular expression whose named groups become fields of the images, matched with their names: "
        "'(?P<plate>P[0-9]+)_(?P<well>[A-H]1)'",
    )
    leaks = parser.add_argument_group("what is validated on: kept apart from the pseudo-labels")
    held_out = leaks.add_mutually_exclusive_group(required=True)
    held_out.add_argument("--fold", type=int, metavar="K", help="validation images: fold K of --labelled")
    held_out.add_argument("--validation", metavar="FILE", help="validation images: those of a COCO file")
    held_out.add_argument(
        "--no-validation", action="store_true", help="there are no validation images, and nothing is checked"
    )
    leaks.add_argument(
        "--folds", metavar="FILE", help="index of the folds, as in DATASETS.FOLDS; default: the images' field `fold`"
    )
    leaks.add_argument(
        "--apart",
        nargs="*",
        metavar="FIELD",
        help="fields of the images (plate well): unlabelled images with the values of a validation image are "
        "left out; default: the fields by which the folds were grouped",
    )
    leaks.add_argument(
        "--similar",
        type=float,
        default=0.9,
        metavar="R",
        help="unlabelled images with at least this correlation with a validation image are left out; 0: do "
        "not search (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(arguments: argparse.Namespace) -> None:
    from detseg.errors import ConfigError
    from detseg.files.atomic import check_free
    from detseg.fusion.postprocess import Postprocess
    from detseg.report.pseudo_labels import write_pseudo_label_page
    from detseg.semi_supervised import LabelInputs, LeakRules, label_images

    output = arguments.output
    if not output.name.endswith((".json", ".json.gz")):
        raise ConfigError(f"--output {output}: expected a name that ends in .json or .json.gz")
    if arguments.fold is not None and not arguments.labelled:
        raise ConfigError("--fold K refers to --labelled FILE; give both, or --validation FILE")
    if arguments.folds and arguments.fold is None:
        raise ConfigError("--folds FILE goes with --fold K")
    page = None if arguments.no_page else arguments.page or output.with_name(f"{output.name.split('.json')[0]}.html")
    check_free(output, *([page] if page else []), overwrite=arguments.overwrite)
    gates = _gates(arguments)
    labelled, validation = _labelled(arguments)
    inputs = LabelInputs(
        predictions=arguments.predictions,
        images=_images(arguments),
        members=arguments.members,
        labelled=labelled,
        out_of_fold=arguments.out_of_fold,
        out_of_fold_members=arguments.out_of_fold_members,
        validation=validation,
        postprocess=Postprocess.load(arguments.postprocess) if arguments.postprocess else Postprocess(),
    )
    apart = None if arguments.apart is None else tuple(arguments.apart)
    labels = label_images(inputs, gates, LeakRules(similar=arguments.similar, apart=apart))
    print(labels.summary())
    labels.dataset.save(output, overwrite=arguments.overwrite)
    if page is not None:
        write_pseudo_label_page(page, labels.dataset, overwrite=arguments.overwrite)
    print(f"written  {output}" + (f"\n         {page} shows it" if page else ""))
    if not len(labels.dataset):
        print(
            "WARNING: no image with a kept object is left, so there is nothing to learn in this file. Check the limits"
        )


def _gates(arguments: argparse.Namespace) -> Gates:
    from detseg.fusion.options import parse_words
    from detseg.semi_supervised import Gates

    gates = Gates.load(arguments.gates) if arguments.gates else Gates()
    changed = parse_words(arguments.overrides)
    if arguments.precision is not None:
        changed |= {"choose": "precision", "precision": arguments.precision}
    if not changed:
        return gates
    return Gates.from_dict({**gates.to_dict(), **changed}, source=f"{gates.source} and command line")


def _labelled(arguments: argparse.Namespace) -> tuple[CocoDataset | None, CocoDataset | None]:
    """Return the labelled images (including those of the fold) and the validation images."""
    from detseg.coco.dataset import CocoDataset
    from detseg.data.folds import Folds, joined

    sets = CocoDataset.match_classes([CocoDataset.load(path) for path in arguments.labelled or ()])
    if arguments.fold is not None:
        folded = Folds(fold=arguments.fold, index=arguments.folds or "").of_sets(sets)
        return folded.validation, folded.validation_part(arguments.fold)
    validation = CocoDataset.load(arguments.validation) if arguments.validation else None
    return joined(sets) if sets else None, validation


def _images(arguments: argparse.Namespace) -> CocoDataset:
    """Return the unlabelled images, with fields from their names and, for plain files, sizes from the predictions."""
    import dataclasses

    from detseg.coco.dataset import AnnotationTable, CocoDataset
    from detseg.coco.pairing import ImageIndex
    from detseg.coco.predictions_file import read_predictions
    from detseg.inference.image_list import find_images

    records = find_images(arguments.images, image_root=arguments.image_root).records
    known = ImageIndex(read_predictions(arguments.predictions).images, arguments.predictions)
    sized = []
    for record in records:
        entry = known.find(record)
        if not record.height and entry is not None:
            record = dataclasses.replace(record, height=entry.height, width=entry.width)
        sized.append(record)
    if arguments.field_pattern:
        sized = _with_fields(sized, arguments.field_pattern)
    nothing = AnnotationTable.from_rows([[] for _ in sized], {})
    return CocoDataset(sized, [], nothing, name=" ".join(arguments.images))


def _with_fields(records: list, pattern: str) -> list:
    """Add the named groups that a regular expression matches in the file names as fields of the images."""
    import dataclasses
    import re

    from detseg.errors import ConfigError, list_problems

    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--field-pattern {pattern!r} is not a regular expression: {error}") from None
    if not compiled.groupindex:
        raise ConfigError(f"--field-pattern {pattern!r} has no named group; write (?P<plate>...) for the field plate")
    found = [(record, compiled.search(record.file_name)) for record in records]
    missing = [record.file_name for record, match in found if match is None]
    if missing:
        raise ConfigError(f"--field-pattern {pattern!r} matches nothing in:\n{list_problems(missing, 5)}")
    return [
        dataclasses.replace(record, metadata={**record.metadata, **{k: v for k, v in match.groupdict().items() if v}})
        for record, match in found
    ]
