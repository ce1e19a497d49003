"""One synthetic picture of cells with its exact masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from detseg.curation.synthetic.cells import KINDS, MEAN_AREA
from detseg.curation.synthetic.placement import Placement
from detseg.curation.synthetic.rendering import render
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers

logger = logging.getLogger(__name__)

_MOST_COVERED = 0.45  # of the image's area: where more was asked for, the cells are made smaller
_TRIES_A_CELL = 10


def make_image(
    seed: int | Sequence[int],
    height: int,
    width: int,
    cells: int | tuple[int, int] = (30, 100),
    *,
    kinds: Sequence[str] = KINDS,
    touching: float = 1.0 / 3.0,
    overlapping: float = 0.04,
    size: float = 1.0,
    contrast: float = 1.0,
    noise: float = 1.0,
    debris: float = 1.0,
    channels: int = 1,
) -> tuple[np.ndarray, LabelLayers, np.ndarray]:
    """Draw a synthetic phase-contrast picture of cells of several kinds, mixed.

    Args:
        seed: all randomness is a function of it; a sequence of integers (such as (seed, index)) works too.
        height, width: pixels, at least 32.
        cells: how many, or (least, most), both included. The shares of the kinds vary from picture to picture.
        kinds: which of `KINDS` to draw; classes still are indices into `KINDS`.
        touching: share of cells that shall touch another one, 0..1. Dense pictures have more.
        overlapping: share of cells that shall share pixels with another one (part of `touching`).
        size: factor on the natural size of 10 to 45 pixels; less where the cells would cover over 45 % of the picture.
        contrast, noise, debris: factors on the cells' contrast, the sensor's noise, the number of specks.
        channels: 1, or 3 equal ones.

    Returns:
        image: (H, W, channels) uint8.
        layers: exact masks, each one 4-connected piece. Without overlaps there is one layer.
        classes: (N,) int64, indices into `KINDS`. N is the asked number, save where no space was found.

    Raises:
        DataError: an option that cannot be.
    """
    least, most = (cells, cells) if isinstance(cells, int) else (int(cells[0]), int(cells[1]))
    unknown = [kind for kind in kinds if kind not in KINDS]
    for message, is_wrong in (
        (f"unknown kinds {unknown or list(kinds)}; known are {', '.join(KINDS)}", unknown or not kinds),
        (f"height and width are {height} x {width}, but must be at least 32", min(height, width) < 32),
        (f"cells is {least} to {most}, but must be 0 <= least <= most", not 0 <= least <= most),
        (
            f"touching is {touching} and overlapping {overlapping}, but must be 0 <= overlapping <= touching <= 1",
            not 0 <= overlapping <= touching <= 1,
        ),
        (f"size is {size}, but must be above 0", not size > 0),
        (f"channels is {channels}, but must be 1 or 3", channels not in (1, 3)),
    ):
        if is_wrong:
            raise DataError(f"synthetic cells: {message}")
    rng = np.random.default_rng(seed)
    number = int(rng.integers(least, most + 1))
    wanted = rng.choice(len(kinds), size=number, p=rng.dirichlet(np.full(len(kinds), 3.0)))
    wanted_area = sum(MEAN_AREA[kinds[index]] for index in wanted)
    size = min(size, float(np.sqrt(_MOST_COVERED * height * width / max(wanted_area, 1.0))))
    placement = Placement(height, width, rng)
    for index in wanted:
        _place_one(placement, kinds[index], size, rng, touching, overlapping)
    picture = render(placement.cells, height, width, rng, contrast=contrast, noise=noise, debris=debris)
    classes = np.array([KINDS.index(cell.kind) for cell in placement.cells], np.int64)
    layers = LabelLayers(np.stack(placement.layers), len(classes))
    return np.repeat(picture[:, :, None], channels, axis=2), layers, classes


def _place_one(
    placement: Placement, kind: str, size: float, rng: np.random.Generator, touching: float, overlapping: float
) -> None:
    """Place one cell; where there is no space it is tried again, a little smaller each time."""
    number = len(placement.touches)
    share = sum(placement.touches) / number if number else touching
    manner = "apart"
    if share < touching and rng.random() < 0.6:
        manner = "overlapping" if rng.random() < 1.6 * overlapping / max(touching, 1e-6) else "touching"
    own_size = size * float(np.exp(rng.normal(0.0, 0.08)))
    for _ in range(_TRIES_A_CELL):
        if placement.add(kind, own_size, manner=manner):
            return
        own_size *= 0.95
    logger.info("no space was found for a synthetic cell among %d", len(placement.cells))
