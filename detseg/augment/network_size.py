"""The size at which a network sees an image: one way for training and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detseg.data.image_size import ENVIRONMENT, max_pixels
from detseg.errors import DataError
from detseg.structures.pixel_size import FIELD, PixelSize, parse_pixel_size


def network_size(
    height: int, width: int, facts: Mapping[str, Any], *, pixel_size: float, short: int, longest: int, source: str
) -> tuple[int, int]:
    """Return (height, width) at the network: first of INPUT.PIXEL_SIZE, then with the shorter edge `short`.

    Arguments as those of `size_at_pixel_size` and `resize_shortest_edge_size`.
    """
    at_pixel_size = size_at_pixel_size(height, width, facts, pixel_size, source=source)
    return resize_shortest_edge_size(*at_pixel_size, short, longest)


def size_at_pixel_size(
    height: int, width: int, facts: Mapping[str, Any], pixel_size: float, *, source: str
) -> tuple[int, int]:
    """Return the (height, width) at which the pixels of an image have another size.

    Args:
        facts: what is known of the image; `pixel_size` in micrometres, a number or [y, x].
        pixel_size: INPUT.PIXEL_SIZE, micrometres; 0: the size as it is, whatever the pixels are.
        source: the image's name, for messages.

    Raises:
        DataError: the image's pixel size is not known, or the image would become too large.
    """
    if not pixel_size:
        return height, width
    own = known_pixel_size(facts, pixel_size, source=source)
    size = (height * own[0] / pixel_size, width * own[1] / pixel_size)
    if size[0] * size[1] > max_pixels():
        raise DataError(
            f"{source}: with pixels of {own[0]:g} x {own[1]:g} micrometres (y, x), INPUT.PIXEL_SIZE {pixel_size:g} "
            f"would enlarge it to {size[0]:.0f} x {size[1]:.0f} pixels; is the pixel size right? (else set the "
            f"environment variable {ENVIRONMENT})"
        )
    return max(int(size[0] + 0.5), 1), max(int(size[1] + 0.5), 1)


def known_pixel_size(facts: Mapping[str, Any], pixel_size: float, *, source: str) -> PixelSize:
    """Return (y, x) micrometres of an image that is to be brought to `pixel_size`; DataError where they are unknown."""
    if facts.get(FIELD) is None:
        raise DataError(
            f"{source}: its pixel size is not known, but INPUT.PIXEL_SIZE brings all images to {pixel_size:g} "
            "micrometres a pixel; give it to the prepare command or to predict (--pixel-size), or as the field "
            f"`{FIELD}` of the image in the COCO file"
        )
    return parse_pixel_size(facts[FIELD], source)


def resize_shortest_edge_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the shorter edge `short`, or less where the longer one would pass `longest`.

    Rounded as Detectron2's ResizeShortestEdge does. short = 0: the size as it is.
    """
    if short == 0:
        return height, width
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    # An edge of less than half a pixel would vanish; one pixel is the least an image has.
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)
