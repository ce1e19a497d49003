"""How many pixels an image may have: a header can claim any size, and memory is taken before its pixels are seen."""

from __future__ import annotations

import os

from detseg.errors import DataError

ENVIRONMENT = "DETSEG_MAX_PIXELS"

# 16384 x 16384: 4 GB as a float32 RGB image; nothing larger goes through a network in one piece.
DEFAULT_MAX_PIXELS = 2**28


def max_pixels() -> int:
    """Return the most pixels (height x width) of an image: `$DETSEG_MAX_PIXELS`, else `DEFAULT_MAX_PIXELS`.

    Raises DataError where the variable is no whole number from 1 on.
    """
    text = os.environ.get(ENVIRONMENT, "")
    if not text:
        return DEFAULT_MAX_PIXELS
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
        raise DataError(
            f"the environment variable {ENVIRONMENT} is {text!r}; expected a number of pixels, as 500000000"
        )
    return int(text)


def size_problem(height: int, width: int) -> str | None:
    """Say that an image of height x width pixels is too large, with the limit and what to do, or return None."""
    limit = max_pixels()
    if height * width <= limit:
        return None
    return (
        f"claims {height} x {width} pixels (height x width), {height * width} in all, but the limit is {limit}; if "
        f"true, cut the image into tiles (or set the environment variable {ENVIRONMENT}), else take it out of the "
        "data set"
    )


def check_size(height: int, width: int) -> None:
    """Raise DataError where an image of height x width pixels is too large to be read."""
    problem = size_problem(height, width)
    if problem:
        raise DataError(f"the image {problem}")
