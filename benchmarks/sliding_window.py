"""Sliding windows against image area: peak memory, seconds, objects; beside naive tiles and the whole image at once.

    python benchmarks/sliding_window.py [--edges 2048 4096 8192 16384] [--run RUN] [--whole-up-to 4096]

Every image is a TIFF file of simulated cells (disks with radii of 5 to 10 pixels, 1,800 in 1024 x 1024) made here strip
by strip. Each measurement is a process of its own: its peak memory is that of everything it did, from reading the file
to the written Predictions file and label image (tiled BigTIFF). Variants:

    tiles    the sliding window, as `predict --tile 1024`
    naive    tiles of the same size side by side, their answers added up without a look at the seams
    whole    the image in one piece

Without a run a threshold and connected components stand for the network, so that what is measured is all that is around
it; with a run its model predicts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import MIB, machine, peak_memory, verdict

TILE, OVERLAP = 1024, 128
SPACING = 24
GOAL_BYTES = 4 * 2**30


def write_image(path: Path, edge: int) -> int:
    """Write a gray BigTIFF of edge x edge pixels with a disk in every cell of a grid; return their number."""
    import tifffile

    rng = np.random.default_rng(edge)
    count = edge // SPACING
    centres = rng.uniform(-1, 1, (count, count, 2)) + SPACING / 2
    radii = rng.uniform(5, 10, (count, count))

    def strips():
        rows = np.arange(SPACING)[:, None, None]
        columns = np.arange(SPACING)[None, None, :]
        noise = rng.integers(0, 60, (SPACING, edge), dtype=np.uint8)
        for row in range(count):
            y = (rows - centres[row, :, 0][None, :, None]) ** 2
            x = (columns - centres[row, :, 1][None, :, None]) ** 2
            inside = (y + x <= radii[row][None, :, None] ** 2).reshape(SPACING, count * SPACING)
            strip = noise.copy()
            strip[:, : count * SPACING][inside] += 150
            yield strip
        yield noise[: edge - count * SPACING]

    mapped = tifffile.memmap(path, shape=(edge, edge), dtype=np.uint8, bigtiff=True)
    y = 0
    for strip in strips():
        mapped[y : y + len(strip)] = strip
        y += len(strip)
    mapped.flush()
    return count * count


def make_predictor(run: str) -> Any:
    from detseg.inference.predictor import Predictor

    if run:
        return Predictor.from_run(run, device="cpu")
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "inference"))
    from threshold_segmenter import ThresholdSegmenter

    from detseg.data.preprocess import ImagePreprocess
    from detseg.fusion.postprocess import Postprocess
    from detseg.inference.image_model import ImageModel

    scaled = ImagePreprocess(scaling="percentile", percentiles=(0.5, 99.5))
    thresholds = Postprocess(classes=["cell"], score_threshold=0.01)
    return Predictor(ImageModel(ThresholdSegmenter(num_classes=1), scaled), ["cell"], postprocess=thresholds)


def measure_one(variant: str, image: Path, run: str) -> None:
    """In a process of its own: predict, write, and print what it took."""
    import dataclasses

    import tifffile

    from detseg.coco.dataset import ImageRecord
    from detseg.coco.predictions_file import PredictionsWriter
    from detseg.formats.label_images import write_labels
    from detseg.formats.objects import ImageObjects

    predictor = make_predictor(run)
    when = "always" if variant == "tiles" else "never"
    scale = 1.0 if variant == "tiles" else None
    predictor.tiling = dataclasses.replace(predictor.tiling, when=when, tile=TILE, overlap=OVERLAP, scale=scale)
    base, start, clock = peak_memory(), time.process_time(), time.perf_counter()
    if variant == "naive":
        pixels = np.asarray(tifffile.memmap(image))
        edges = [(y, x) for y in range(0, len(pixels), TILE) for x in range(0, len(pixels), TILE)]
        number = sum(len(predictor(pixels[y : y + TILE, x : x + TILE])) for y, x in edges)
        told = {"objects": number, "seconds": time.process_time() - start, "clock": time.perf_counter() - clock}
        print(json.dumps({**told, "peak": peak_memory(), "base": base}))
        return
    with tempfile.TemporaryDirectory() as folder:
        tiles = predictor.tile_predictor(state=Path(folder) / "state")
        record = ImageRecord(1, image.name, image, 0, 0, {})
        with PredictionsWriter(Path(folder) / "p.json.gz", predictor.classes) as writer:
            (answer,) = predictor.predict_records([record], tiles=tiles)
            writer.write(answer)
        write_labels(Path(folder) / "labels.tif", ImageObjects.from_predictions(answer))
    told = {"objects": len(answer), "seconds": time.process_time() - start, "clock": time.perf_counter() - clock}
    print(json.dumps({**told, "peak": peak_memory(), "base": base}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--run", default="", help="a run folder; without one a stand-in for the network")
    parser.add_argument("--whole-up-to", type=int, default=4096, help="largest edge predicted in one piece")
    parser.add_argument("--naive-up-to", type=int, default=4096)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure_one(arguments.one[0], Path(arguments.one[1]), arguments.run)
        return
    print(machine("numpy", "tifffile"))
    heads = "".join(f"{head:>12}" for head in ("cells", "objects", "seconds", "s / Mpx", "peak MiB", "above start"))
    print(f"{'edge':>6} {'variant':8}{heads}")
    worst, rates = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for edge in arguments.edges:
            image = Path(folder) / f"{edge}.tif"
            cells = write_image(image, edge)
            limits = {"tiles": edge, "naive": arguments.naive_up_to, "whole": arguments.whole_up_to}
            for variant in [name for name, limit in limits.items() if edge <= limit]:
                words = [sys.executable, __file__, "--one", variant, str(image), "--run", arguments.run]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{edge:6} {variant:8} failed: {done.stderr.strip().splitlines()[-1]}")
                    continue
                told = json.loads(done.stdout.splitlines()[-1])
                rate = told["seconds"] / (edge * edge / 1e6)
                print(
                    f"{edge:6} {variant:8}{cells:12}{told['objects']:12}{told['seconds']:12.1f}{rate:12.3f}"
                    f"{told['peak'] / MIB:12.0f}{(told['peak'] - told['base']) / MIB:12.0f}",
                    flush=True,
                )
                if variant == "tiles":
                    worst = max(worst, told["peak"])
                    rates.append(rate)
            image.unlink()
    print(f"largest peak of tiles {worst / MIB:.0f} MiB (goal {GOAL_BYTES / MIB:.0f}): {verdict(worst <= GOAL_BYTES)}")
    if len(rates) > 1:
        print(f"seconds a megapixel, largest image to smallest: {rates[-1] / rates[0]:.2f} (1 is linear)")


if __name__ == "__main__":
    main()
