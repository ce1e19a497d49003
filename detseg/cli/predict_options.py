"""The options of `predict` for models, views and tiles, and checks for contradictions."""

from __future__ import annotations

import argparse


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
        help="instead of --run and --images: the folder of a training with --fold all, or the runs of all "
        "its folds; every image is predicted by the model that was not trained with it, without "
        "thresholds",
    )
    model.set_defaults(fold=None, triage=None)  # fold: the one being predicted with --folds
    model.add_argument(
        "--checkpoint", default="best", metavar="NAME", help="checkpoint of the run: best (default), last or a file"
    )
    model.add_argument("--config", "--config-file", metavar="FILE", help="YAML configuration, for --weights")
    model.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="FILE",
        help="a checkpoint; without --config its own configuration is used",
    )
    model.add_argument("--device", default="auto", help="auto (CUDA if available), cpu, cuda:1 ...")
    model.add_argument(
        "--precision",
        default="auto",
        help="float32, bfloat16, float16, or bfloat16_masks (only the mask head in bfloat16); auto "
        "(default): the fastest with which the run's object AP was as good as in float32",
    )
    model.add_argument(
        "--diameter",
        default="auto",
        metavar="PIXELS",
        help="typical diameter of the objects in pixels of the images, for models with INPUT.OBJECT_SIZE; "
        "auto (default): estimated for each image",
    )
    views = parser.add_argument_group("several views or models (docs/inference.md)")
    views.add_argument(
        "--tta",
        nargs="+",
        metavar="VIEW",
        help="views instead of the configuration's: flips, eight, or for example none h scale=1.25 h+clahe; "
        "off for none",
    )
    modes = ("merge_then_mask", "fuse", "average_maps")
    views.add_argument("--tta-mode", choices=modes, help="how views are combined, instead of TEST.AUG.MODE")
    views.add_argument("--fusion", metavar="FILE", help="YAML of fusion options instead of TEST.AUG.METHOD and others")
    views.add_argument(
        "--model-weights",
        nargs="+",
        type=float,
        default=[],
        metavar="X",
        help="weights of the models, one per model, in their order",
    )
    for name in ("boxes", "masks"):
        views.add_argument(
            f"--{name}-of",
            nargs="+",
            type=int,
            default=[],
            metavar="N",
            help=f"only these models provide {name}, counted from 1, runs first",
        )


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    tiles = parser.add_argument_group("large images (docs/inference.md)")
    tiles.add_argument(
        "--tile",
        default="auto",
        metavar="N",
        help="edge of tiles in pixels of the file, or off; auto (default): only images of more than 4096 x "
        "4096 pixels at the network's input are tiled, with a suitable size",
    )
    tiles.add_argument("--overlap", type=int, metavar="N", help="pixels by which neighbouring tiles overlap")
    tiles.add_argument(
        "--tile-scale",
        type=float,
        metavar="X",
        help="network pixels per pixel of a tile; default: as for the whole image",
    )
    work = parser.add_argument_group("speed")
    work.add_argument(
        "--num-threads",
        type=int,
        metavar="N",
        help="CPU threads; default: the number of cores that are free at the time",
    )
    work.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default %(default)s)")
    work.add_argument(
        "--workers", type=int, default=1, metavar="N", help="threads that prefetch images (default %(default)s)"
    )
    work.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="processes that share images and tiles (or use torchrun); default: 1, with --ray one per GPU or core",
    )
    work.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the worker processes on this Ray cluster: HOST:PORT, auto, or local to start one here",
    )


def has_model(arguments: argparse.Namespace) -> bool:
    """Whether a run or weights are given; --folds does not count."""
    return bool(arguments.run or arguments.weights)


def problems_of(arguments: argparse.Namespace) -> dict[str, bool]:
    """Return message -> whether it applies, for contradictory options and invalid values."""
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
        f"{' and '.join(beside_folds)}: --folds has its own models and images": bool(beside_folds),
        "give the images: --images PATH": not arguments.folds and not arguments.images,
        f"--boxes-of, --masks-of: there is no model {unknown}; they are counted from 1 to {models}": bool(unknown),
        "give the model: --run DIR, --weights FILE (with --config FILE), or --folds DIR": models == 0
        and not (arguments.refine_with and arguments.boxes),
        "--config belongs to --weights; a run has its own": bool(arguments.run and arguments.config),
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
