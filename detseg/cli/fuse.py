"""`detseg fuse`: fuse Predictions files of several models, flips or programs into one."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.coco.predictions_file import PredictionsFile
    from detseg.coco.predictions_parsing import ImageEntry
    from detseg.fusion.members import Member
    from detseg.fusion.options import FusionOptions

DESCRIPTION = (
    "Fuse predictions of the same images into one Predictions file: non-maximum suppression, soft-NMS or weighted "
    "boxes fusion, with masks. An input is a Predictions file, a file of COCO results, or a folder of label images "
    "(Cellpose, StarDist, SAM, by hand). No model is needed."
)
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs", nargs="+", required=True, metavar="PATH", help="Predictions files, COCO results, label folders"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="Predictions file, .json or .json.gz")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="fusion YAML (configs/fusion/*.yaml); single settings can follow as KEY=VALUE, such as threshold=0.6",
    )
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="one an input, in their order")
    parser.add_argument("--postprocess", metavar="FILE", help="postprocess YAML to apply to the fused predictions")
    parser.add_argument(
        "--ground-truth",
        metavar="FILE",
        help="COCO JSON (no annotations needed) that says which images and classes there are; needed where the inputs "
        "do not: lists of results, or label folders alone",
    )
    parser.add_argument("--label-class", metavar="NAME", help="class of the objects of label folders")
    parser.add_argument(
        "--label-score", type=float, default=1.0, metavar="S", help="score of these objects (default %(default)s)"
    )
    parser.add_argument(
        "--rename", nargs="+", default=[], metavar="OLD=NEW", help="classes that other inputs call by another name"
    )
    parser.add_argument(
        "--missing",
        choices=("refuse", "empty", "leave-out"),
        default="refuse",
        help="an image that an input lacks: refuse (default); empty: it found nothing; leave-out: fuse the others",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")


def run(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from detseg.coco.predictions_file import PredictionsWriter
    from detseg.errors import ConfigError, DataError
    from detseg.fusion.members import fuse_members, refuse_missing
    from detseg.fusion.options import check_weights
    from detseg.fusion.postprocess import Postprocess

    output = Path(arguments.output)
    if not output.name.endswith((".json", ".json.gz")):
        raise ConfigError(f"--output {output}: expected a name that ends in .json or .json.gz")
    if output.exists() and not arguments.overwrite:
        raise DataError(f"{output} exists already; pass --overwrite to replace, or choose another name")
    options = _options(arguments)
    weights = check_weights(arguments.weights or options.weights, "--weights") or (1.0,) * len(arguments.inputs)
    if len(weights) != len(arguments.inputs):
        raise ConfigError(f"{len(weights)} weights for {len(arguments.inputs)} inputs; give one an input")
    postprocess = Postprocess.load(arguments.postprocess) if arguments.postprocess else None
    members, images, categories, infos = _open(arguments)
    names = [str(category["name"]) for category in categories]
    _check_classes(names, options.classes, options.source)
    if postprocess is not None:
        _check_classes(names, postprocess.classes, postprocess.source)
    if arguments.missing == "refuse":
        refuse_missing(dict(zip(arguments.inputs, members, strict=True)), images)
    info = {
        "description": "predictions fused by detseg",
        "fused": {"options": options.to_dict(), "weights": list(weights), "inputs": infos},
        "postprocess": None if postprocess is None else postprocess.to_dict(),
    }
    number = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        PredictionsWriter(output, categories, info) as writer,
        tqdm(total=len(images), desc="fusing", unit="image") as bar,
    ):
        for fused in fuse_members(members, images, options, weights, arguments.missing):
            result = fused if postprocess is None else postprocess.apply(fused)
            writer.write(result)
            number += len(result)
            bar.update()
    print(f"images   {len(images)}\nobjects  {number}\nwritten  {output}")


def _options(arguments: argparse.Namespace) -> FusionOptions:
    """Return the settings of --config with those of the command line over them."""
    from detseg.fusion.options import FusionOptions
    from detseg.fusion.settings import parse_words

    base = FusionOptions.load(arguments.config) if arguments.config else FusionOptions()
    changed = parse_words(arguments.overrides)
    source = f"{base.source} and command line" if changed else base.source
    return FusionOptions.from_dict({**base.to_dict(), **changed}, source=source)


def _open(
    arguments: argparse.Namespace,
) -> tuple[list[Member], Sequence[ImageEntry], list[dict[str, Any]], list[dict[str, Any]]]:
    """Open all inputs; return them, the images, the categories, and what is known of each input."""
    from detseg.coco.dataset import CocoDataset
    from detseg.errors import DataError
    from detseg.fusion.members import FileMember, all_images, common_categories

    truth = CocoDataset.load(arguments.ground_truth) if arguments.ground_truth else None
    rename = _renamed(arguments.rename)
    files = {path: _open_file(path, truth) for path in arguments.inputs if not Path(path).is_dir()}
    first = None if truth is None else [{"id": item.id, "name": item.name} for item in truth.categories]
    categories = common_categories(list(files.values()), first, rename)
    images = all_images(list(files.values())) if truth is None else _entries(truth)
    if not images:
        raise DataError(
            "label folders alone do not say which images there are; give --ground-truth, a COCO file of them"
        )
    members: list[Member] = []
    infos = []
    for path in arguments.inputs:
        if path in files:
            members.append(FileMember(files[path], categories, rename))
            infos.append({"file": path, "sha256": _hash(path), "info": files[path].info})
        else:
            members.append(_label_folder(path, arguments, categories))
            infos.append({"label_folder": path, "class": arguments.label_class, "score": arguments.label_score})
    return members, images, categories, infos


def _open_file(path: str, truth: CocoDataset | None) -> PredictionsFile:
    """Open a file by its own images and classes; a plain list of results, which has none, by the ground truth's."""
    from detseg.coco.predictions_file import is_plain_list, read_predictions

    return read_predictions(path, truth if truth is not None and is_plain_list(path) else None)


def _entries(truth: CocoDataset) -> list[ImageEntry]:
    from detseg.coco.predictions_parsing import ImageEntry

    return [ImageEntry.of(image) for image in truth.images]


def _label_folder(path: str, arguments: argparse.Namespace, categories: list[dict[str, Any]]) -> Member:
    from detseg.errors import ConfigError
    from detseg.formats.label_predictions import LabelFolder

    names = [str(category["name"]) for category in categories]
    if arguments.label_class is None and len(names) != 1:
        raise ConfigError(f"{path}: of which class are its objects? Give --label-class ({', '.join(names)})")
    name = arguments.label_class or names[0]
    if name not in names:
        raise ConfigError(f"--label-class {name}: there is no such class; there are: {', '.join(names)}")
    return LabelFolder(Path(path), names.index(name), arguments.label_score)


def _renamed(words: Sequence[str]) -> dict[str, str]:
    from detseg.errors import ConfigError

    pairs = [word.partition("=") for word in words]
    wrong = [word for word, (old, _, new) in zip(words, pairs, strict=True) if not old or not new]
    if wrong:
        raise ConfigError(f"--rename {wrong[0]}: expected OLD=NEW, two class names")
    return {old: new for old, _, new in pairs}


def _check_classes(names: Sequence[str], expected: Sequence[str], source: str) -> None:
    """Refuse settings a class whose classes are not those of the predictions, in their order."""
    from detseg.errors import ConfigError

    if expected and list(expected) != list(names):
        raise ConfigError(
            f"{source}: made for the classes {', '.join(expected)}, but the predictions have {', '.join(names)}; list "
            "these, in this order"
        )


def _hash(path: str) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]
