"""Rendering of synthetic cells, similar to phase contrast with an inverted microscope and a cheap objective.

A cell is drawn in its own crop into one `signal` (H, W) float32 in gray levels relative to the background: a body that
is darker or a little lighter than the background, a dark line inside its border, granules, a nucleus for some kinds,
and a bright halo outside that also falls on the neighbours, so that the border between touching cells is visible. Then
effects of the microscope are added to the whole image: uneven illumination, mottled background, debris, blur, photon
noise. Means and contrasts were chosen to match real phase contrast of neuronal cells (8 bit, mean 130, standard
deviation 12 to 16).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detseg.curation.synthetic.cells import KINDS, MEAN_AREA, PlacedCell, Placement
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.mask_crop import MaskCrop

_MARGIN = 6  # pixels around a cell that its halo covers


@dataclass(frozen=True)
class Appearance:
    """Appearance of one kind: ranges (low, high) in gray levels relative to the background, sampled per cell.

    body: centre of the cell; line: added along the inside of the border; halo: just outside; granules: standard
    deviation of the texture inside; nucleus: added in a small ellipse.
    """

    body: tuple[float, float]
    line: tuple[float, float]
    halo: tuple[float, float]
    granules: tuple[float, float]
    nucleus: tuple[float, float]


APPEARANCES: dict[str, Appearance] = {
    # body, line, halo, granules, nucleus
    "elongated": Appearance((-16.0, 4.0), (-26.0, -14.0), (14.0, 30.0), (3.0, 6.0), (3.0, 9.0)),
    "irregular": Appearance((-8.0, 7.0), (-24.0, -11.0), (6.0, 16.0), (4.0, 8.0), (5.0, 13.0)),
    "round": Appearance((-38.0, -16.0), (-20.0, -6.0), (36.0, 66.0), (2.0, 5.0), (0.0, 0.0)),
}


def render(
    cells: Sequence[PlacedCell],
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    contrast: float = 1.0,
    noise: float = 1.0,
    debris: float = 1.0,
) -> np.ndarray:
    """Return the image of placed cells, (H, W) uint8.

    Filters run in float32, so another CPU may differ by one gray level in a few pixels.

    cells: older first (the halo of a younger one falls on an older one). contrast, noise, debris: factors on the
    contrast between cells and background, on the sensor noise, on the number of specks.
    """
    texture = rng.standard_normal((height, width), dtype=np.float32)
    granules = cv2.GaussianBlur(texture, (0, 0), 1.3)
    granules /= max(float(granules.std()), 1e-6)
    signal = np.zeros((height, width), np.float32)
    for cell in cells:
        _draw_cell(signal, granules, cell, rng, contrast)
    _draw_debris(signal, rng, debris)
    signal = cv2.GaussianBlur(signal, (0, 0), float(rng.uniform(0.6, 0.95)))
    background, illumination = _background(height, width, rng)
    picture = (background + signal) * illumination
    sensor = rng.standard_normal((height, width), dtype=np.float32)
    sensor = 0.65 * sensor + 0.6 * cv2.GaussianBlur(sensor, (0, 0), 0.8)
    strength = noise * rng.uniform(2.2, 4.2)
    picture += sensor * strength * np.sqrt(np.clip(picture, 1.0, None) / 128.0)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _draw_cell(
    signal: np.ndarray, granules: np.ndarray, cell: PlacedCell, rng: np.random.Generator, contrast: float
) -> None:
    """Add one cell to the signal, in place, within its crop plus a margin."""
    ranges = vars(APPEARANCES[cell.kind]).values()
    body, line, halo, grain, nucleus = (contrast * rng.uniform(*limits) for limits in ranges)
    halo_width, thickness = rng.uniform(1.1, 1.9), rng.uniform(2.5, 4.5)
    mask = np.pad(cell.crop.mask, _MARGIN)
    crop = mask.astype(np.uint8)
    inside = cv2.distanceTransform(crop, cv2.DIST_L2, 3)
    outside = cv2.distanceTransform(1 - crop, cv2.DIST_L2, 3)
    drawn = body * (1.0 - np.exp(-inside / thickness)) + line * np.exp(-((inside - 1.0) ** 2) / 1.6)
    if nucleus:
        drawn += _nucleus(inside, rng) * nucleus
    drawn *= crop
    glow = halo * np.exp(-(((outside - 1.0) / halo_width) ** 2)) * (1 - crop)

    around = MaskCrop(np.ones_like(mask), cell.crop.x0 - _MARGIN, cell.crop.y0 - _MARGIN)
    x0, y0, x1, y1 = around.within((0, 0, signal.shape[1], signal.shape[0])).box
    part = (slice(y0 - around.y0, y1 - around.y0), slice(x0 - around.x0, x1 - around.x0))
    signal[y0:y1, x0:x1] += drawn[part] + glow[part] + grain * granules[y0:y1, x0:x1] * crop[part]


def _nucleus(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A light ellipse around the thickest point of a cell with one or two dark nucleoli, (h, w), peak 1."""
    row, column = np.unravel_index(int(np.argmax(inside)), inside.shape)
    radius = max(1.5, 0.6 * float(inside[row, column]))
    rows, columns = np.ogrid[: inside.shape[0], : inside.shape[1]]
    square = ((rows - row) ** 2 + (columns - column) ** 2) / radius**2
    shape = np.exp(-(square**2))
    for _ in range(int(rng.integers(1, 3))):
        spot_row, spot_column = row + rng.uniform(-0.5, 0.5) * radius, column + rng.uniform(-0.5, 0.5) * radius
        shape = shape - 1.6 * np.exp(-((rows - spot_row) ** 2 + (columns - spot_column) ** 2) / 1.2)
    return shape


def _draw_debris(signal: np.ndarray, rng: np.random.Generator, amount: float) -> None:
    """Add specks that are not cells: small dark or bright spots, some with a ring, 2 to 5 pixels across."""
    height, width = signal.shape
    rows, columns = np.mgrid[-5:6, -5:6].astype(np.float32)
    for _ in range(int(rng.poisson(amount * 12.0 * height * width / 256**2))):
        row, column = int(rng.integers(5, max(6, height - 6))), int(rng.integers(5, max(6, width - 6)))
        radius, strength = rng.uniform(0.7, 1.9), rng.uniform(14.0, 45.0) * (1.0 if rng.random() < 0.35 else -1.0)
        square = (rows**2 + columns**2 * rng.uniform(0.5, 1.6)) / radius**2
        speck = strength * (np.exp(-0.5 * square) - 0.35 * np.exp(-0.5 * (np.sqrt(square) - 2.4) ** 2))
        window = signal[row - 5 : row + 6, column - 5 : column + 6]
        window += speck[: window.shape[0], : window.shape[1]].astype(np.float32)


def _background(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The mottled medium in gray levels, (H, W), and the illumination as a factor around 1, (H, W)."""
    level = rng.uniform(118.0, 142.0)
    mottle = sum(
        strength * _smooth_noise(height, width, grain, rng) for grain, strength in ((4, 1.3), (11, 2.2), (36, 2.6))
    )
    rows = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None]
    slope_y, slope_x = rng.uniform(-0.07, 0.07, 2)
    vignette = rng.uniform(0.0, 0.08)
    centre_y, centre_x = rng.uniform(-0.4, 0.4, 2)
    illumination = 1.0 + slope_y * rows + slope_x * columns
    illumination = illumination - vignette * ((rows - centre_y) ** 2 + (columns - centre_x) ** 2) / 2.0
    return (level + mottle).astype(np.float32), illumination.astype(np.float32)


def _smooth_noise(height: int, width: int, grain: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit scale whose spots are about `grain` pixels wide, (H, W) float32."""
    coarse = rng.standard_normal((height // grain + 4, width // grain + 4), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


# One synthetic image of cells with its exact masks.

logger = logging.getLogger(__name__)

_MOST_COVERED = 0.45  # of the image's area: cells are made smaller to stay below
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
    """Draw a synthetic phase-contrast image of cells, of several kinds.

    Args:
        seed: determines everything; may be a sequence of integers such as (seed, index).
        height, width: pixels, at least 32.
        cells: number, or (minimum, maximum), inclusive. The fractions of the kinds vary between images.
        kinds: subset of `KINDS` to draw; classes are still indices into `KINDS`.
        touching: fraction of cells to place in contact with another one, 0..1. It is higher in dense images.
        overlapping: fraction of cells to share pixels with another one (part of `touching`).
        size: factor on the natural size of 10 to 45 pixels; reduced if the cells would cover over 45 % of the image.
        contrast, noise, debris: factors on the cells' contrast, the sensor's noise, the number of specks.
        channels: 1, or 3 equal ones.

    Returns:
        image: (H, W, channels) uint8.
        layers: exact masks, each one 4-connected piece. Without overlaps there is one layer.
        classes: (N,) int64, indices into `KINDS`. N is the requested number, or less if there was no space.

    Raises:
        DataError: an invalid option.
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
        (f"size is {size}, but must be above 0", not 0 < size < np.inf),
        *(
            (f"{name} is {value}, but must be 0 or more", not 0 <= value < np.inf)
            for name, value in (("contrast", contrast), ("noise", noise), ("debris", debris))
        ),
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
    """Place one cell; if there is no space, try again with a smaller size each time."""
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
    logger.info("no space for another synthetic cell among %d", len(placement.cells))
