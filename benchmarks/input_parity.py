"""How far the inputs of training are from Detectron2's own: masks and boxes of round objects, resized images of floats.

    python benchmarks/input_parity.py

Needs Detectron2. docs/parity.md has the figures.
"""

from __future__ import annotations

import argparse

import numpy as np
from detectron2.data.transforms import ResizeTransform
from detectron2.structures.masks import polygons_to_bitmask

from detseg.data.augment.resampling import resize_image, resize_labels

SIDE = 256  # of the images, pixels
DIAMETERS = (8, 16, 32, 64)
SCALES = (0.5, 0.8, 1.25, 2.0)
POINTS = 40  # of an outline


def circles(diameter: float, count: int) -> list[np.ndarray]:
    """Outlines (POINTS * 2,) of circles somewhere in the image, as COCO's polygons."""
    random = np.random.default_rng(int(diameter))
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * diameter / 2
    centres = random.uniform(diameter, SIDE - diameter, (count, 1, 2))
    return [(outline + centre).ravel() for centre in centres]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def masks_and_boxes(diameter: float, scale: float, count: int) -> tuple[float, float, float]:
    """Mean IoU with Detectron2's mask of the polygon, and of the run-length; mean difference of box edges in pixels."""
    side = round(SIDE * scale)
    transform = ResizeTransform(SIDE, SIDE, side, side)
    found = []
    for outline in circles(diameter, count):
        mask = polygons_to_bitmask([outline], SIDE, SIDE)
        moved = transform.apply_coords(outline.reshape(-1, 2))
        ours = resize_labels(mask[None], (0.0, 0.0, SIDE, SIDE), side, side)[0].astype(bool)
        of_polygon = polygons_to_bitmask([moved.ravel()], side, side)
        of_run_length = transform.apply_segmentation(mask.astype(np.uint8)).astype(bool)
        rows, columns = np.flatnonzero(ours.any(axis=1)), np.flatnonzero(ours.any(axis=0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        theirs = np.concatenate([moved.min(axis=0), moved.max(axis=0)])
        found.append((iou(ours, of_polygon), iou(ours, of_run_length), float(np.abs(box - theirs).mean())))
    return tuple(np.mean(found, axis=0).tolist())


def float_images(scale: float) -> tuple[float, float]:
    """Mean and largest difference of resized float32 images, as a fraction of their range."""
    random = np.random.default_rng(0)
    image = random.uniform(0, 1, (SIDE, SIDE, 1)).astype(np.float32)
    side = round(SIDE * scale)
    theirs = ResizeTransform(SIDE, SIDE, side, side).apply_image(image[:, :, 0])
    difference = np.abs(resize_image(image, side, side)[:, :, 0] - theirs)
    return float(difference.mean()), float(difference.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="objects of each size")
    arguments = parser.parse_args()
    print("| diameter | scale | IoU, polygons | IoU, run-lengths | box edges, pixels |\n|---|---|---|---|---|")
    for diameter in DIAMETERS:
        for scale in SCALES:
            polygons, run_lengths, edges = masks_and_boxes(diameter, scale, arguments.count)
            print(f"| {diameter} | {scale:g} | {polygons:.3f} | {run_lengths:.3f} | {edges:.2f} |")
    for scale in SCALES:
        mean, largest = float_images(scale)
        print(f"float images of noise, scale {scale:g}: mean difference {mean:.3f} of the range, largest {largest:.3f}")


if __name__ == "__main__":
    main()
