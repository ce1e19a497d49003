"""How well masks of so many cells can show the objects of a data set at all: is 28 x 28 enough?

    python benchmarks/mask_resolution.py --data val.json [--sizes 14 28 56]

Every object is brought into the cells of its own box, as a mask head's targets are, and pasted back into the image, as
its predictions are; no network takes part. The mean IoU with the object, and how many objects are below 0.95 (what
object AP's highest threshold asks for), by the square root of the object's area in pixels of the file. A head of
MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION R has 2 R cells along a side.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import torch

from detseg.coco.catalog import load_dataset
from detseg.models.paste import paste_crops
from detseg.models.rcnn.targets import sample_masks
from detseg.structures.sample import Sample

SIDES = (0, 8, 16, 24, 32, 48, 64, 96, np.inf)


def best_ious(sample: Sample, size: int) -> np.ndarray:
    """The IoU (N,) of every object with itself after it was a mask of size x size cells."""
    layers = np.ascontiguousarray(sample.layers.layers)
    boxes, layer_of = sample.layers.boxes(), sample.layers.layer_index()
    ids = np.arange(1, len(boxes) + 1, dtype=np.int32)
    cells = sample_masks(*map(torch.from_numpy, (layers, layer_of, ids, boxes)), size).numpy()
    ious = []
    for number, (crop, x0, y0) in enumerate(paste_crops(cells, boxes, *layers.shape[1:])):
        window = layers[layer_of[number], y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
        truth, pasted = window == number + 1, crop >= 0.5
        ious.append((truth & pasted).sum() / (truth | pasted).sum())
    return np.array(ious)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="COCO file, or a name of the catalog")
    parser.add_argument("--sizes", type=int, nargs="+", default=[14, 28, 56], help="cells along a side of a mask")
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data, "")
    samples = [sample for sample in map(dataset.read_sample, range(len(dataset))) if len(sample.classes)]
    sides = np.sqrt(np.concatenate([sample.layers.areas() for sample in samples]))
    ious = {size: np.concatenate([best_ious(sample, size) for sample in samples]) for size in arguments.sizes}
    print(f"{len(samples)} images, {len(sides)} objects: mean IoU, share below 0.95")
    print(f"{'side':>12}{'objects':>9}" + "".join(f"{f'{size} x {size}':>18}" for size in ious))
    for low, high in [*itertools.pairwise(SIDES), (0, np.inf)]:
        chosen = (sides >= low) & (sides < high)
        if chosen.any():
            cells = [f"{of[chosen].mean():.3f} {(of[chosen] < 0.95).mean():8.1%}" for of in ious.values()]
            print(f"{low:5} to {high:4}{chosen.sum():9}" + "".join(f"{text:>18}" for text in cells))


if __name__ == "__main__":
    main()
