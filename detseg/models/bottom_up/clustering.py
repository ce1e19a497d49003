"""Objects from embeddings by clustering on a coarse grid.

Embeddings are averaged on a grid, those of the foreground are clustered, clusters are eroded to break thin bridges, and
every connected component becomes an object, upsampled to full resolution by nearest neighbour. No object spans two
connected components of the foreground: each is clustered separately, which bounds time and memory, both quadratic in
the number of pixels.
"""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from skimage.measure import label as components

from detseg.data.augment.resampling import resize_image
from detseg.models.bottom_up.growing import directions, grown_by_likeness, unit_vectors

AGGLOMERATIVE, MEAN_SHIFT, HDBSCAN = "agglomerative", "mean_shift", "hdbscan"
INSTALL = 'it needs the package scikit-learn: pip install "detseg[embedding]"'
# Maximum number of pixels of a component that are clustered; of a larger one only every second, third, ... is, and the
# others join the nearest cluster. The distances between 4,000 pixels take 64 MB.
MOST_PIXELS = 4000
SMALLEST_CLUSTER = 4  # pixels, of HDBSCAN


def objects_by_clustering(
    mask: np.ndarray, unit: np.ndarray, *, method: str, grid: tuple[int, int], similarity: float
) -> np.ndarray:
    """Return labels (H, W) int32, 1..N, for a foreground (H, W) bool and unit embeddings (D, H, W) float32.

    grid: longer and shorter side of the grid; a smaller image is not resized. similarity: cosine above which pixels are
    of one object: 1 - the distance at which average linkage stops.
    """
    height, width = mask.shape
    sides = grid if height > width else grid[::-1]
    rows, columns = (min(size, most) for size, most in zip(mask.shape, sides, strict=True))
    own = np.where(mask, unit, np.float32(0))
    coarse = resize_image(np.concatenate([own, mask[None]]).transpose(1, 2, 0).astype(np.float32), rows, columns)
    coarse = coarse.transpose(2, 0, 1)
    inside, vectors = coarse[-1] >= 0.5, unit_vectors(coarse[:-1])
    clusters = np.zeros((rows, columns), dtype=np.int32)
    regions = components(inside, connectivity=2)
    order = np.argsort(regions.ravel(), kind="stable")
    count = 0
    for start, stop in itertools.pairwise(np.cumsum(np.bincount(regions.ravel()))):  # without the background
        pixels = order[start:stop]
        found = clusters_of(vectors.reshape(len(vectors), -1)[:, pixels].T, method, similarity)
        clusters.flat[pixels] = np.where(found > 0, found + count, 0)
        count += found.max()
    labels = grown_by_likeness(eroded_pieces(clusters), inside, vectors, similarity)
    ys = (np.arange(height) + 0.5) * rows / height
    xs = (np.arange(width) + 0.5) * columns / width
    nearest = labels[ys.astype(np.int64)[:, None], xs.astype(np.int64)]
    # edge pixels that are foreground here but not on the grid; components that the grid does not contain
    labels = grown_by_likeness(nearest, mask, unit, similarity)
    return np.unique(np.append(0, labels), return_inverse=True)[1][1:].reshape(mask.shape).astype(np.int32)


def eroded_pieces(clusters: np.ndarray) -> np.ndarray:
    """Return the components (h, w) int32, 1..N, of clusters (h, w), 0 for none, after erosion by one pixel. A component
    that would vanish is kept as it is.
    """
    padded = np.pad(clusters, 1, mode="edge")
    centre = padded[1:-1, 1:-1]
    neighbours = (padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1])
    core = np.logical_and.reduce([centre == one for one in neighbours])
    pieces = components(clusters, background=0, connectivity=1)
    survives = np.zeros(pieces.max() + 1, dtype=bool)
    survives[pieces[core]] = True
    return components(np.where(core | ~survives[pieces], clusters, 0), background=0, connectivity=1).astype(np.int32)


def clusters_of(vectors: np.ndarray, method: str, similarity: float) -> np.ndarray:
    """Return the cluster (P,) 1, 2, ... of every unit vector (P, D)."""
    step = math.ceil(len(vectors) / MOST_PIXELS)
    chosen = vectors[::step].astype(np.float64)
    if method == AGGLOMERATIVE:
        found = _linked(chosen, similarity)
    elif method == MEAN_SHIFT:
        from sklearn import cluster

        # distance between two unit vectors with this cosine
        shift = cluster.MeanShift(bandwidth=math.sqrt(2 * (1 - similarity)), bin_seeding=True)
        with warnings.catch_warnings():  # about few pixels being their own bins, which is intended
            warnings.simplefilter("ignore", UserWarning)
            found = shift.fit_predict(chosen) + 1
    elif len(chosen) < 2 * SMALLEST_CLUSTER:
        found = np.ones(len(chosen), dtype=np.int64)
    else:
        from sklearn import cluster

        clusterer = cluster.HDBSCAN(min_cluster_size=SMALLEST_CLUSTER, allow_single_cluster=True, copy=True)
        found = clusterer.fit_predict(chosen) + 1  # 0 is noise
        if found.max() > 1:  # instead of cluster_selection_epsilon, which fails with NumPy 2
            found = np.append(0, _linked(_mean_directions(chosen, found), similarity))[found]
    if not found.any():
        return np.ones(len(vectors), dtype=np.int64)
    if step == 1 and found.all():
        return found
    return (vectors @ _mean_directions(chosen, found).T).argmax(axis=1) + 1


def _linked(vectors: np.ndarray, similarity: float) -> np.ndarray:
    """Cluster (P,) 1, 2, ... of unit vectors (P, D) by average linkage of cosine distances."""
    if len(vectors) < 2:
        return np.ones(len(vectors), dtype=np.int64)
    # 1 - cosine for unit vectors, and defined for vectors of length zero too
    tree = linkage(pdist(vectors, "sqeuclidean") / 2, "average")
    return fcluster(tree, 1 - similarity, "distance")


def _mean_directions(vectors: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The mean direction (K, D) float32 of clusters 1..K (P,), 0 for none, of vectors (P, D)."""
    sums = np.zeros((clusters.max() + 1, vectors.shape[1]))
    np.add.at(sums, clusters, vectors)
    return directions(sums[1:]).astype(np.float32)
