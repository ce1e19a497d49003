"""How long scoring takes on dense images, beside pycocotools in the same run.

    python benchmarks/evaluation.py [--images 20] [--objects 800] [--predictions 1000] [--classes 1] [--no-pycocotools]

Data are made here: round cells at random places, painted over each other; predictions are the cells moved by up to two
pixels, some of them doubled. Every time is the best of `--repeat` runs, in seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from detseg.evaluation.coco_ap import coco_annotations, coco_precision
from detseg.evaluation.evaluate import count_all
from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.evaluation.object_ap import summarize_objects
from detseg.fusion.overlaps import resolve_overlaps
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.tuning.thresholds import choose_score_threshold

HEIGHT, WIDTH = 520, 704
GOAL = 0.7


def make_case(images: int, objects: int, predictions: int, classes: int) -> tuple[GroundTruth, list[Predictions]]:
    """Return a truth and predictions of about these numbers an image."""
    truths, found = [], []
    for number in range(images):
        random = np.random.default_rng(number)
        rles = _cells(random, objects)
        kinds = random.integers(0, classes, len(rles))
        truths.append(ImageTruth(number, f"{number}.png", HEIGHT, WIDTH, rles, kinds))
        crops = rle_codec.decode_crops(rles)
        source = np.arange(predictions) % len(rles)
        moved = [_moved(random, *crops[index]) for index in source]
        boxes, scores = rle_codec.bounding_boxes(moved), random.uniform(0.05, 1, predictions)
        found.append(Predictions(number, f"{number}.png", HEIGHT, WIDTH, boxes, scores, kinds[source], moved))
    return GroundTruth([f"kind {index}" for index in range(classes)], truths), found


def _cells(random: np.random.Generator, count: int) -> list[dict[str, Any]]:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    y, x = np.mgrid[-12:13, -12:13]
    for label in range(1, count + 1):
        row, column = random.integers(12, HEIGHT - 13), random.integers(12, WIDTH - 13)
        disc = x**2 + y**2 < random.uniform(5, 12) ** 2
        labels[row - 12 : row + 13, column - 12 : column + 13][disc] = label
    rles = rle_codec.encode_labels(labels, count)
    return [rle for rle, area in zip(rles, rle_codec.area(rles), strict=True) if area]


def _moved(random: np.random.Generator, crop: np.ndarray, x0: int, y0: int) -> dict[str, Any]:
    right, down = random.integers(-2, 3, size=2)
    x0 = int(np.clip(x0 + right, 0, WIDTH - crop.shape[1]))
    y0 = int(np.clip(y0 + down, 0, HEIGHT - crop.shape[0]))
    return rle_codec.encode_crop(crop, x0, y0, HEIGHT, WIDTH)


def best_time(function: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Return the shortest time in seconds, and the result."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def pycocotools_precision(truth: GroundTruth, found: list[Predictions], kind: str, limit: int) -> np.ndarray:
    """Return pycocotools' precision (T, R, K) for objects of any size."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for dataset in coco_annotations(truth.images, found, len(truth.class_names)):
            side = COCO()
            side.dataset = copy.deepcopy(dataset)
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType=kind)
        evaluation.params.maxDets = [limit]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--objects", type=int, default=800)
    parser.add_argument("--predictions", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=int, default=2000, help="detections an image and class for COCO AP")
    parser.add_argument("--no-pycocotools", action="store_true", help="leave the slow comparison out")
    arguments = parser.parse_args()
    truth, found = make_case(arguments.images, arguments.objects, arguments.predictions, arguments.classes)
    objects = sum(image.num_objects for image in truth.images)
    predictions = sum(map(len, found))
    print(f"{len(found)} images of {HEIGHT} x {WIDTH}, {objects} objects, {predictions} predictions")

    seconds, counts = best_time(lambda: count_all(truth, found), arguments.repeat)
    print(f"object AP, all and per class   {seconds:7.3f} s   (goal {GOAL} s; object AP {summary(counts):.4f})")
    for kind in ("bbox", "segm"):

        def ours(kind: str = kind) -> np.ndarray:
            sides = coco_annotations(truth.images, found, len(truth.class_names))
            return coco_precision(*sides, kind, arguments.limit)[..., 0]

        seconds, precision = best_time(ours, arguments.repeat)
        text = f"COCO {kind} AP                   {seconds:7.3f} s   (goal {GOAL} s)"
        if not arguments.no_pycocotools:
            slow, reference = best_time(lambda kind=kind: pycocotools_precision(truth, found, kind, arguments.limit), 1)
            largest = float(np.abs(precision - reference).max())
            text += f"; pycocotools {slow:.2f} s = {slow / seconds:.0f} x; largest difference {largest:.1e}"
        print(text)
    seconds, _ = best_time(lambda: [resolve_overlaps(image) for image in found], arguments.repeat)
    print(f"overlaps resolved              {seconds:7.3f} s")
    seconds, choice = best_time(lambda: choose_score_threshold(truth, found), arguments.repeat)
    print(f"score threshold, overlaps too  {seconds:7.3f} s   ({len(choice.curve)} thresholds looked at)")


def summary(counts: Any) -> float:
    return summarize_objects(counts)["object_ap"]


if __name__ == "__main__":
    main()
