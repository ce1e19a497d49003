"""Objects from embeddings at full resolution, in time linear in pixels: seeds, from which objects grow by similarity.

Symbols: unit: (D, H, W) float32, an embedding of length 1 for every pixel. mask: (H, W) bool, the foreground.
similarity: cosine above which two pixels, or a pixel and the mean of an object, belong to one object.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import label as components

_BLOCK = 2**18  # pixels that are compared with their neighbours at once


def unit_vectors(embedding: np.ndarray) -> np.ndarray:
    """Scale embeddings (D, H, W) to length 1; zeros are kept."""
    embedding = embedding.astype(np.float32, copy=False)
    length = np.sqrt(np.einsum("dyx,dyx->yx", embedding, embedding))
    return embedding / np.maximum(length, np.float32(1e-12))


def density(unit: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean agreement of a pixel's 3 x 3 neighbourhood with it, (H, W) float32: 1 if all have its embedding,
    0 at a straight edge to the background or to an object with an orthogonal one, never below 0.
    """
    agreement = np.zeros(mask.shape, dtype=np.float32)
    for plane in unit:
        own = np.where(mask, plane, np.float32(0))
        # only 3 x 3: pixels that do not touch an object must not influence it
        agreement += own * cv2.blur(own, (3, 3), borderType=cv2.BORDER_CONSTANT)
    return np.maximum(3 * agreement - 2, 0)


def mean_vectors(labels: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return the mean embedding (N + 1, D) float32 of the pixels of labels 0 (zeros), 1, ..., N."""
    flat = labels.ravel()
    (chosen,) = np.nonzero(flat)
    chosen_labels, size = flat[chosen], int(flat.max()) + 1
    sums = [np.bincount(chosen_labels, plane.ravel()[chosen], size) for plane in unit]
    pixels = np.maximum(np.bincount(chosen_labels, minlength=size), 1)
    return (np.stack(sums, axis=1) / pixels[:, None]).astype(np.float32)


def directions(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (N, D) to length 1; zeros are kept."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def objects_from_seeds(
    height: np.ndarray, mask: np.ndarray, unit: np.ndarray, *, threshold: float, similarity: float
) -> np.ndarray:
    """Return labels (H, W) int32, 1..N: regions of a map `height` (H, W) of at least `threshold` are seeds, which grow
    over the mask, and are merged if they touch and their embeddings are similar.
    """
    _, seeds = cv2.connectedComponents(((height >= threshold) & mask).astype(np.uint8), connectivity=8)
    return joined(grown_by_likeness(seeds, mask, unit, similarity), mean_vectors(seeds, unit), similarity)


def grown_by_likeness(seeds: np.ndarray, mask: np.ndarray, unit: np.ndarray, similarity: float) -> np.ndarray:
    """Return labels (H, W) int32: seeds (H, W) 1..N grown over a mask; components without a seed get N + 1, ...

    Ring by ring (8-connected) a pixel joins the neighbour whose seed's embedding is most similar by cosine. In a first
    pass only pixels with at least `similarity` do, so that no seed takes another's pixels because it was there first.
    """
    seeds = np.where(mask, seeds, 0).astype(np.int32)
    means = directions(mean_vectors(seeds, unit))
    width = mask.shape[1] + 2
    around = np.array([y * width + x for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])
    labels, left = (np.pad(array, 1).ravel() for array in (seeds, mask & (seeds == 0)))
    # the embeddings of only the pixels to be assigned, contiguous in memory
    row = np.zeros(len(left), dtype=np.int64)
    (open_pixels,) = np.nonzero(left)
    row[open_pixels] = np.arange(len(open_pixels))
    vectors = unit[:, mask & (seeds == 0)].T.copy()
    for least in (similarity, -np.inf):
        (active,) = np.nonzero(labels)
        while True:
            active = (active[:, None] + around).ravel()
            active = np.unique(active[left[active]])
            number = np.zeros(len(active), dtype=np.int32)
            for start in range(0, len(active), _BLOCK):
                part = active[start : start + _BLOCK]
                near = labels[part[:, None] + around]
                cosines = np.einsum("pd,pkd->pk", vectors[row[part]], means[near])
                cosines[near == 0] = -np.inf
                best = np.take_along_axis(cosines, cosines.argmax(axis=1)[:, None], axis=1)[:, 0]
                taken = (best >= least) & (best > -np.inf)
                number[start : start + _BLOCK][taken] = near[taken, cosines[taken].argmax(axis=1)]
            active, number = active[number > 0], number[number > 0]
            if not len(active):
                break
            labels[active] = number
            left[active] = False
    labels, left = (array.reshape(-1, width)[1:-1, 1:-1] for array in (labels, left))
    alone = components(left, connectivity=2)
    return np.where(left, alone + len(means) - 1, labels).astype(np.int32)


def joined(labels: np.ndarray, means: np.ndarray, similarity: float) -> np.ndarray:
    """Return labels (H, W) int32, 1..N, in which 4-connected neighbours with similar means are merged.

    means: (M + 1, D); labels above M have none and are kept.
    """
    pairs = []
    for first, second in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        touch = (first != second) & (first > 0) & (second > 0) & (np.maximum(first, second) < len(means))
        pairs.append(np.stack([first[touch], second[touch]]))
    first, second = np.unique(np.concatenate(pairs, axis=1), axis=1)
    means = directions(means)
    alike = np.einsum("pd,pd->p", means[first], means[second]) >= similarity
    count = int(labels.max())
    links = coo_array((alike[alike], (first[alike], second[alike])), shape=(count + 1, count + 1))
    _, group = connected_components(links, directed=False)
    present = np.zeros(count + 1, dtype=bool)
    present[np.unique(labels)] = True
    present[0] = False
    numbers = np.zeros(count + 1, dtype=np.int32)
    numbers[present] = np.unique(group[present], return_inverse=True)[1] + 1
    return numbers[labels]
