"""Options that say of images what their files do not: the size of a pixel, and which picture of a stack is meant."""

from __future__ import annotations

import argparse
from typing import Any


def add_image_fields(parser: argparse.ArgumentParser, *, pixel_size_help: str = "") -> None:
    """Add --pixel-size, --z, --t, --scene and --axes. pixel_size_help: what else --pixel-size takes."""
    group = parser.add_argument_group("what the files of the images do not say")
    group.add_argument(
        "--pixel-size",
        metavar="UM",
        help=f'micrometres a pixel, 0.5 or "0.5 0.4" (y, x){pixel_size_help}; default: as each file says (OME-TIFF, '
        "ImageJ, TIFF's resolution)",
    )
    group.add_argument("--z", metavar="N", help="of files with slices: which one, from 0 on, or max for their maximum")
    group.add_argument("--t", metavar="N", help="of files with points in time: which one, from 0 on")
    group.add_argument(
        "--scene", metavar="N", help="of CZI, LIF and ND2 files with several images: which one, from 0 on"
    )
    group.add_argument(
        "--axes", help="the axes of TIFF or NPY files that do not name them: of the letters ZTCYXS, as CYX or TZYX"
    )


def plane_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return --z, --t, --axes and --scene as the fields of a COCO image."""
    from detseg.images.planes import PlaneChoice

    return PlaneChoice.from_texts(arguments.z, arguments.t, arguments.axes, arguments.scene).fields()


def image_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all of them as the fields of a COCO image. Raises DataError where one makes no sense."""
    from detseg.structures.sample import FIELD, parse_pixel_size_text, pixel_size_field

    fields = plane_fields(arguments)
    if arguments.pixel_size:
        fields[FIELD] = pixel_size_field(parse_pixel_size_text(arguments.pixel_size, "--pixel-size"))
    return fields
