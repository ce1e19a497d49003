"""Options for image properties that files may not give: the pixel size, and the plane of a stack."""

from __future__ import annotations

import argparse
from typing import Any


def add_image_fields(parser: argparse.ArgumentParser, *, pixel_size_help: str = "") -> None:
    """Add --pixel-size, --z, --t, --scene and --axes. pixel_size_help: further values of --pixel-size."""
    group = parser.add_argument_group("what the image files do not say")
    group.add_argument(
        "--pixel-size",
        metavar="UM",
        help=f'micrometres per pixel, 0.5 or "0.5 0.4" (y, x){pixel_size_help}; default: from each file (OME-TIFF, '
        "ImageJ, TIFF resolution)",
    )
    group.add_argument(
        "--z", metavar="N", help="slice of files with slices: a number from 0 on, or max for the maximum projection"
    )
    group.add_argument("--t", metavar="N", help="time point of files with several: a number from 0 on")
    group.add_argument("--scene", metavar="N", help="image of CZI, LIF and ND2 files with several: a number from 0 on")
    group.add_argument(
        "--axes", help="axes of TIFF or NPY files that do not name them: letters of ZTCYXS, such as CYX or TZYX"
    )


def plane_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return --z, --t, --axes and --scene as fields of a COCO image."""
    from detseg.images.planes import PlaneChoice

    return PlaneChoice.from_texts(arguments.z, arguments.t, arguments.axes, arguments.scene).fields()


def image_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all these options as fields of a COCO image. Raises DataError for invalid values."""
    from detseg.structures.sample import FIELD, parse_pixel_size_text, pixel_size_field

    fields = plane_fields(arguments)
    if arguments.pixel_size:
        fields[FIELD] = pixel_size_field(parse_pixel_size_text(arguments.pixel_size, "--pixel-size"))
    return fields
