"""How well models find objects in images that are cut, enlarged and reduced: object AP and recall, with intervals.

    python benchmarks/robustness.py --runs runs/without/001 runs/object_size/001 --data val.json [--every 3]
        [--variants strips "x 0.5"] [--no-truth]

The images of a data set (never those of a test) are predicted as they are, cut into three strips along their height,
and resized to 0.5 and 2 times their edges, labels with them. Each run's score threshold is the one of highest object AP
on the images as they are, and is kept for the others; overlaps are resolved by score. Recall: of all objects, those hit
with an IoU above 0.5. Intervals are of the difference to the first run, 95 %, over the images. `truth` predicts with
the diameter of the labels instead of the estimate, where a run was trained with INPUT.OBJECT_SIZE: what a better
estimate could gain. `estimate` is the part of the time that the estimate takes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.data.augment.geometric import GeometricMap, map_sample
from detseg.data.object_size import TypicalDiameters
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.intervals import image_scores, paired_intervals
from detseg.evaluation.object_ap import ObjectCounts, count_objects
from detseg.fusion.postprocess import Postprocess
from detseg.inference.predictor import Predictor
from detseg.structures.predictions import Predictions
from detseg.tuning.thresholds import choose_score_threshold

STRIPS = 3
VARIANTS = ("as they are", "strips", "x 0.5", "x 2")


def views_of(height: int, width: int, variant: str) -> Iterator[GeometricMap]:
    """The pictures that a variant makes of an image."""
    whole = GeometricMap.identity(height, width)
    if variant == "strips":
        edges = np.linspace(0, width, STRIPS + 1).round().astype(int).tolist()
        for left, right in itertools.pairwise(edges):
            yield whole.window(0, left, height, right - left)
    else:
        factor = float(variant[1:]) if variant.startswith("x") else 1.0
        yield whole if factor == 1 else whole.resize(max(round(height * factor), 1), max(round(width * factor), 1))


def write_variant(dataset: CocoDataset, variant: str, folder: Path) -> CocoDataset:
    """Write the pictures of a variant with their labels; return them as a data set."""
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, record in enumerate(dataset.images):
        sample = dataset.read_sample(index)
        for view in views_of(record.height, record.width, variant):
            seen = map_sample(sample, view)
            name, number = f"{len(images):05d}.png", len(images) + 1
            cv2.imwrite(str(folder / name), seen.image[:, :, ::-1])
            group = {"group": record.metadata["group"]} if "group" in record.metadata else {}
            images.append({"id": number, "file_name": name, "height": seen.height, "width": seen.width, **group})
            ids = [dataset.categories[one].id for one in seen.classes.tolist()]
            annotations += annotations_of(
                seen.layers.to_rles(),
                ids,
                image_id=number,
                first_id=len(annotations) + 1,
            )
    categories = [{"id": one.id, "name": one.name} for one in dataset.categories]
    write_coco(
        folder / "all.json", images=images, annotations=annotations, categories=categories, info={"image_root": "."}
    )
    return CocoDataset.load(folder / "all.json")


def predict(predictor: Predictor, dataset: CocoDataset, *, of_labels: bool) -> tuple[list[Predictions], float, float]:
    """Predictions, the seconds that they took, and those of the estimates among them."""
    records = list(dataset.images)
    if of_labels:
        for index, record in enumerate(records):
            known = TypicalDiameters.of_dataset(dataset.select([index]))
            if known is not None:
                record.metadata["object_diameter"] = known.median
    detector, inner, spent = predictor.detector, predictor.detector.estimate_diameter, []

    def timed(*arguments: Any) -> tuple[float, int]:
        started = time.perf_counter()
        try:
            return inner(*arguments)
        finally:
            spent.append(time.perf_counter() - started)

    detector.estimate_diameter = timed
    started = time.perf_counter()
    try:
        found = list(predictor.predict_records(records))
    finally:
        detector.estimate_diameter = inner
        for record in records:
            record.metadata.pop("object_diameter", None)
    return found, time.perf_counter() - started, sum(spent)


def describe(counts: Sequence[ObjectCounts], base: Sequence[ObjectCounts] | None) -> str:
    """Object AP, recall, and the interval of the difference in object AP to a base."""
    hits, objects = sum(int(one.hits[0, 0]) for one in counts), sum(int(one.objects[0]) for one in counts)
    own = image_scores(list(counts), 0)
    text = f"object AP {own.values[0]:.3f}, recall {hits / max(objects, 1):.3f}"
    if base is not None:
        (gain, *_), ((low, high), *_) = paired_intervals(image_scores(list(base), 0), own)
        text += f", {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", nargs="+", required=True, help="run folders; the first is what others are compared to"
    )
    parser.add_argument("--data", required=True, help="COCO file")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th image")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS[1:], default=VARIANTS[1:], help="default: all")
    parser.add_argument("--no-truth", dest="truth", action="store_false", help="estimated diameters alone")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    whole = CocoDataset.load(arguments.data)
    dataset = whole.select(range(0, len(whole), arguments.every))
    base: dict[str, list[ObjectCounts]] = {}
    with tempfile.TemporaryDirectory() as folder:
        names = [VARIANTS[0], *arguments.variants]
        variants = {name: write_variant(dataset, name, Path(folder) / str(i)) for i, name in enumerate(names)}
        for run in arguments.runs:
            predictor = Predictor.from_run(run, device=arguments.device, postprocess=False)
            sized = predictor.detector.sizing_model is not None
            print(f"{run}: {len(dataset)} images{', INPUT.OBJECT_SIZE' if sized else ''}")
            settings = None
            for name, images in variants.items():
                truth = GroundTruth.from_coco(images)
                for of_labels in (False, True) if sized and arguments.truth else (False,):
                    found, seconds, estimating = predict(predictor, images, of_labels=of_labels)
                    if settings is None:
                        classes = tuple(truth.class_names)
                        plain = Postprocess(classes=classes)
                        threshold = choose_score_threshold(truth, found, postprocess=plain).threshold
                        settings = Postprocess(classes=classes, score_threshold=threshold)
                    kept = [settings.apply(one) for one in found]
                    pairs = zip(truth.images, kept, strict=True)
                    counts = [count_objects(image, answer, len(truth.class_names)) for image, answer in pairs]
                    text = describe(counts, base.get(name))
                    base.setdefault(name, counts)
                    about = f"{seconds / len(images):.2f} s an image"
                    about += f", estimate {estimating / seconds:.0%}" if sized and not of_labels else ""
                    print(f"  {name + (', truth' if of_labels else ''):20} {text}; {about}", flush=True)


if __name__ == "__main__":
    main()
