"""Flows: unit vectors from every pixel of an object towards its centre; pixels whose flows converge form an object.

After Stringer et al., Cellpose, Nature Methods 2021: heat from the centre of an object diffuses in it, and every pixel
follows the gradient.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import sparse
from skimage.measure import label as components

from detseg.models.bottom_up.seeds import watershed_from_peaks

# Steps of at most a pixel along the flows. The last ones are shorter, so that pixels settle.
_STEPS, _SETTLING = 160, 40
# Two density peaks are two objects if the lower one is this many times higher than the saddle between them.
_RATIO = 2.0
_AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def centre_flows(labels: np.ndarray) -> np.ndarray:
    """Return (2, H, W) float32, y and x of a unit vector for every pixel of an object, towards a centre inside it; 0 at
    the centre and outside. Each component of an object (8-connected) has its own centre.

    labels: (H, W) int32.
    """
    flows = np.zeros((2, *labels.shape), dtype=np.float32)
    pieces = components(labels, connectivity=2)
    if not pieces.any():
        return flows
    padded = np.pad(pieces, 1)
    inside = np.flatnonzero(padded)
    piece, count = padded.ravel()[inside], len(inside)
    number = np.zeros(padded.size, dtype=np.int32)
    number[inside] = np.arange(count)
    near = inside[:, None] + [y * padded.shape[1] + x for y, x in _AROUND]
    own = padded.ravel()[near] == piece[:, None]
    near = np.where(own, number[near], 0)
    starts = np.arange(0, count * len(_AROUND) + 1, len(_AROUND))
    spread = sparse.csr_matrix(((own / len(_AROUND)).ravel(), near.ravel(), starts), shape=(count, count))

    places = np.stack(np.unravel_index(inside, padded.shape)).astype(np.float64)
    sizes = np.bincount(piece)[1:]
    means = np.stack([np.bincount(piece, one)[1:] / sizes for one in places])
    to_mean = ((places - means[:, piece - 1]) ** 2).sum(axis=0)
    order = np.lexsort((to_mean, piece))
    centres = order[np.cumsum(sizes) - sizes]
    height = np.log(_heat(spread, centres) + np.finfo(float).tiny)
    for axis, vector in enumerate(np.array(_AROUND).T):
        # diagonal neighbours have half of the weight, as they are farther in both directions
        weights = own * vector / np.maximum(np.abs(_AROUND).sum(axis=1), 1)
        flow = (weights * height[near]).sum(axis=1) - weights.sum(axis=1) * height
        flow[centres] = 0
        flows[axis].ravel()[np.flatnonzero(pieces)] = flow
    return flows / np.maximum(np.hypot(*flows), 1e-6)


def _heat(spread: sparse.csr_matrix, centres: np.ndarray) -> np.ndarray:
    """Heat the centres (n,) until every pixel is reached, and for as many steps again; return the heat (N,) float64."""
    heat = np.zeros(spread.shape[0])
    reached, steps = 0, 0
    while True:
        heat[centres] += 1
        heat = spread @ heat
        steps += 1
        now = np.count_nonzero(heat)
        if now == reached:  # all are reached, or the rest is beyond float precision
            break
        reached = now
    for _ in range(steps):
        heat[centres] += 1
        heat = spread @ heat
    return heat


def objects_of_flows(flows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return labels (H, W) int32, 1..N: pixels of a mask (H, W) bool that end at the same place when they follow the
    flows (2, H, W) float32. No pixel leaves its component of the mask.
    """
    ys, xs = np.nonzero(mask)
    labels = np.zeros(mask.shape, dtype=np.int32)
    if not len(ys):
        return labels
    ends = _follow(flows, mask, ys, xs)
    density = np.zeros(mask.shape, dtype=np.float32)
    np.add.at(density, ends, 1)
    for _ in range(2):  # inside the mask, so that its components do not mix
        density = np.where(mask, cv2.blur(density, (3, 3)), 0)
    height = np.log(density + np.float32(1 / 81), dtype=np.float32)  # minimum of one pixel, blurred twice
    places = watershed_from_peaks(height, density > 0, np.log(_RATIO))
    _, numbers = np.unique(places[ends], return_inverse=True)
    labels[ys, xs] = numbers.reshape(-1) + 1
    return labels


def _follow(flows: np.ndarray, mask: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (y, x), each (N,), where the pixels ys, xs (N,) of the mask end."""
    # OpenCV's remap is limited to images with sides below 32,768 pixels: the list of pixels becomes a table.
    size = -(-len(ys) // 1024), 1024 if len(ys) > 1024 else len(ys)
    y, x = (np.resize(one, size).astype(np.float32) for one in (ys, xs))
    field = np.ascontiguousarray(np.where(mask, flows, 0).transpose(1, 2, 0), dtype=np.float32)
    field /= np.maximum(np.hypot(field[..., 0], field[..., 1]), 1)[..., None]
    bottom, right = mask.shape[0] - 1, mask.shape[1] - 1
    for step in range(_STEPS):
        moved = cv2.remap(field, x, y, cv2.INTER_LINEAR)
        length = np.float32(min(1, (_STEPS - step) / _SETTLING))
        new_y = np.clip(y + length * moved[..., 0], 0, bottom)
        new_x = np.clip(x + length * moved[..., 1], 0, right)
        stays = ~mask[np.rint(new_y).astype(np.intp), np.rint(new_x).astype(np.intp)]
        y, x = np.where(stays, y, new_y), np.where(stays, x, new_x)
    y, x = (np.rint(one).astype(np.intp).ravel()[: len(ys)] for one in (y, x))
    return y, x


def flow_agreement(labels: np.ndarray, flows: np.ndarray) -> np.ndarray:
    """Return the agreement (N,) in [0, 1] of predicted flows (2, H, W) with those of each object's own shape.

    It is their mean cosine over its pixels, clipped at 0; 1 for a single pixel, which has no flow.
    """
    count = int(labels.max())
    own = centre_flows(labels)
    cosine = (own * flows).sum(axis=0) / np.maximum(np.hypot(*flows), 1e-6)
    counts = np.hypot(*own) > 0.5
    numbers = labels[counts]
    pixels = np.bincount(numbers, minlength=count + 1)[1:]
    mean = np.bincount(numbers, cosine[counts], minlength=count + 1)[1:] / np.maximum(pixels, 1)
    return np.where(pixels > 0, mean, 1).clip(0, 1)
