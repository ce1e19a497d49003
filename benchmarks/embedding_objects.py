"""Objects of pixel embeddings: processor seconds of every way, 1024 x 1024 with about 1,000 touching cells.

    python benchmarks/embedding_objects.py [--edges 512 1024 2048] [--rounds 3]

Cells are what is nearest to jittered points and at most 17 pixels away, embeddings random unit vectors of 8 numbers
with noise. Seconds are of one core and of all that follows the network: objects, scores, run-lengths.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
from measuring import take_turns
from scipy.ndimage import distance_transform_edt

from detseg.config import load_flat_config
from detseg.engines.build import build_model
from detseg.models.bottom_up.seeds import edge_distances

WAYS = {
    "growing, seeds of the head": {},
    "growing, seeds of density": {"MODEL.EMBEDDING.SEEDS": "density"},
    "agglomerative, 160 x 128": {"MODEL.EMBEDDING.OBJECTS": "agglomerative"},
}
SPACING, RADIUS, NOISE = 32, 17, 0.15


def maps_of_cells(edge: int) -> tuple[np.ndarray, int]:
    """Return maps (10, edge, edge) float32 and the number of cells."""
    rng = np.random.default_rng(edge)
    grid = np.mgrid[SPACING // 2 : edge : SPACING, SPACING // 2 : edge : SPACING].reshape(2, -1)
    points = np.zeros((edge, edge), dtype=np.int32)
    points[tuple(grid + rng.integers(-6, 7, grid.shape))] = np.arange(1, grid.shape[1] + 1)
    distance, nearest = distance_transform_edt(points == 0, return_indices=True)
    labels = np.where(distance <= RADIUS, points[tuple(nearest)], 0)
    codes = rng.normal(size=(grid.shape[1] + 1, 8)).astype(np.float32)
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    embedding = codes[labels].transpose(2, 0, 1) + NOISE * rng.normal(size=(8, edge, edge)).astype(np.float32)
    return np.concatenate([(labels > 0)[None], edge_distances(labels)[None], embedding]).astype(
        np.float32
    ), labels.max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keys = {
        "MODEL.META_ARCHITECTURE": "PixelEmbedding",
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.UNET.ENCODER": "plain",
        "MODEL.UNET.CHANNELS": [8],
        "TEST.DETECTIONS_PER_IMAGE": -1,
    }
    models = {name: build_model(load_flat_config(keys | changes)) for name, changes in WAYS.items()}
    for edge in arguments.edges:
        maps, count = maps_of_cells(edge)
        found = {name: len(model.decode(maps)) for name, model in models.items()}
        variants = {name: partial(model.decode, maps) for name, model in models.items()}
        timing = take_turns(variants, arguments.rounds, warm_up=0, clock=time.process_time)
        for name in WAYS:
            print(f"{edge} x {edge}, {count} cells, {name}: {timing.median(name):.2f} s, {found[name]} objects")


if __name__ == "__main__":
    main()
