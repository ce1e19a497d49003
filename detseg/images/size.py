"""The limit on the pixels of an image: a header can claim any size, and memory is allocated before pixels are read."""

from __future__ import annotations

import os

from detseg.errors import DataError

ENVIRONMENT = "DETSEG_MAX_PIXELS"

# 16384 x 16384: 4 GB as a float32 RGB image; no network processes anything larger in one piece.
DEFAULT_MAX_PIXELS = 2**28


def max_pixels() -> int:
    """Return the maximum number of pixels (height x width) of an image: `$DETSEG_MAX_PIXELS` or `DEFAULT_MAX_PIXELS`.

    Raises DataError if the variable is not a whole number >= 1.
    """
    text = os.environ.get(ENVIRONMENT, "")
    if not text:
        return DEFAULT_MAX_PIXELS
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
        raise DataError(
            f"the environment variable {ENVIRONMENT} is {text!r}; expected a number of pixels such as 500000000"
        )
    return int(text)


def size_problem(height: int, width: int) -> str | None:
    """Return a message if an image of height x width pixels is too large, with limit and remedy; else None."""
    limit = max_pixels()
    if height * width <= limit:
        return None
    return (
        f"claims {height} x {width} pixels (height x width), {height * width} in all, but the limit is {limit}; if "
        f"this is right, cut the image into tiles (or set the environment variable {ENVIRONMENT}), else remove it "
        "from the "
        "data set"
    )


def check_size(height: int, width: int) -> None:
    """Raise DataError if an image of height x width pixels is too large."""
    problem = size_problem(height, width)
    if problem:
        raise DataError(f"the image {problem}")
