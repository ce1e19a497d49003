"""The options of `predict` for large images and much work: tiles, stacks, reading ahead, several processes."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detseg.inference.large_images import TileProgress
    from detseg.inference.predictor import Predictor
    from detseg.inference.sources import ImageSource

_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")
_EVERY = range(10**6)


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
    work = parser.add_argument_group("much work")
    work.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default %(default)s)")
    work.add_argument(
        "--workers", type=int, default=1, metavar="N", help="threads that read ahead (default %(default)s)"
    )
    work.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that share images and tiles (or use torchrun)"
    )


def tile_problems(arguments: argparse.Namespace) -> dict[str, bool]:
    """Message -> whether it holds."""
    tile = arguments.tile
    return {
        f"--tile is {tile}; expected auto, off or a number of pixels": tile not in ("auto", "off")
        and not tile.isdigit(),
        f"--workers is {arguments.workers}, --processes {arguments.processes}; expected 0 or more, and 1 or more": (
            arguments.workers < 0 or arguments.processes < 1
        ),
        f"--batch-size is {arguments.batch_size}; expected 1 or more": arguments.batch_size < 1,
    }


def set_tiling(predictor: Predictor, arguments: argparse.Namespace) -> None:
    """Give the predictor the tiles that were asked for."""
    changes: dict[str, Any] = {"overlap": arguments.overlap, "scale": arguments.tile_scale}
    if arguments.tile.isdigit():
        changes |= {"when": "always", "tile": int(arguments.tile)}
    elif arguments.tile == "off":
        changes["when"] = "never"
    predictor.tiling = dataclasses.replace(predictor.tiling, **changes)


def state_folder(arguments: argparse.Namespace) -> Path:
    """Where the answers of tiles wait: beside what is written at the end."""
    target = Path(arguments.output or arguments.label_images)
    return target.with_name(f"{target.name}.tiles")


def tile_progress(bar: Any) -> TileProgress:
    """Show the tiles of the image that is at work beside the bar of images."""
    from detseg.inference.large_images import TileProgress

    state = {"name": "", "done": 0, "of": 0}

    def start(name: str, tiles: int) -> None:
        state.update(name=name, done=0, of=tiles)

    def advance(count: int) -> None:
        state["done"] += count
        bar.set_postfix_str(f"{state['name']}: tile {state['done']} of {state['of']}")

    return TileProgress(start, advance, lambda: bar.set_postfix_str(""))


def find_sources(arguments: argparse.Namespace) -> ImageSource:
    """The images; --z and --t may name several: all, or 3-10."""
    from detseg.cli.image_fields import image_fields
    from detseg.inference.sources import expand_stacks, find_images

    several = {name: _several(getattr(arguments, name)) for name in ("z", "t")}
    single = argparse.Namespace(**vars(arguments))
    for name, numbers in several.items():
        if numbers is not None:
            setattr(single, name, None)
    source = find_images(arguments.images, image_root=arguments.image_root, fields=image_fields(single))
    if several == {"z": None, "t": None}:
        return source
    return expand_stacks(source, **several)


def _several(text: str | None) -> range | None:
    if text == "all":
        return _EVERY
    match = _RANGE.fullmatch(text or "")
    return range(int(match[1]), int(match[2]) + 1) if match else None
