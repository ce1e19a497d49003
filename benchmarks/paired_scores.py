"""What one way to predict gains over another in object AP per class, on the same images, with an interval.

    python benchmarks/paired_scores.py --truth val.json --base single.json.gz --others flips.json.gz eight.json.gz
        [--tuned-on tune.json --base-tuned single_tune.json.gz --others-tuned flips_tune.json.gz ...]

All Predictions files hold everything above the model's own threshold (predict --raw). Every way gets its own score
threshold a class, chosen in the same manner: on other images (--tuned-on), or, without them, on one half of the images
for the other half, both ways round (images are dealt to the halves in turns). Overlaps are resolved by score. Intervals
are of the difference to the base, 95 %, by drawing the images anew with replacement (10,000 times), so that they tell
how far other images of this kind could differ, and not how far another training could.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions
from detseg.evaluation.evaluate import align
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.intervals import image_scores, paired_intervals
from detseg.evaluation.object_ap import count_objects
from detseg.fusion.postprocess import Postprocess
from detseg.structures.predictions import Predictions
from detseg.tuning.thresholds import choose_class_thresholds


def choose(truth: GroundTruth, predictions: Sequence[Predictions]) -> Postprocess:
    """The score threshold of every class on these images, overlaps resolved."""
    choices = choose_class_thresholds(truth, predictions)
    names = tuple(truth.class_names)
    return Postprocess(classes=names, score_threshold={name: choices[name].threshold for name in names})


def cross_fitted(truth: GroundTruth, predictions: Sequence[Predictions]) -> list[Predictions]:
    """Predictions after thresholds that were chosen without the image's own half."""
    result: list[Predictions] = list(predictions)
    for half in (0, 1):
        others = range(1 - half, len(predictions), 2)
        part = dataclasses.replace(truth, images=[truth.images[index] for index in others])
        settings = choose(part, [predictions[index] for index in others])
        for index in range(half, len(predictions), 2):
            result[index] = settings.apply(predictions[index])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth", required=True, help="COCO file")
    parser.add_argument("--base", required=True, help="Predictions file that the others are compared with")
    parser.add_argument("--others", nargs="+", default=[])
    parser.add_argument("--tuned-on", help="COCO file of the images on which thresholds are chosen")
    parser.add_argument("--base-tuned", help="Predictions file of the base on these")
    parser.add_argument("--others-tuned", nargs="+", default=[], help="of the others, in their order")
    arguments = parser.parse_args()
    files = [arguments.base, *arguments.others]
    tuned = [arguments.base_tuned, *arguments.others_tuned] if arguments.tuned_on else [None] * len(files)
    if len(tuned) != len(files) or (arguments.tuned_on and not arguments.base_tuned):
        parser.error("--tuned-on needs --base-tuned and as many --others-tuned as --others")
    dataset = CocoDataset.load(arguments.truth)
    truth = GroundTruth.from_coco(dataset)
    tuning = CocoDataset.load(arguments.tuned_on) if arguments.tuned_on else None
    counts = []
    for path, tuned_path in zip(files, tuned, strict=True):
        predictions = align(truth, read_predictions(path, dataset))
        if tuning is None:
            kept = cross_fitted(truth, predictions)
        else:
            tuning_truth = GroundTruth.from_coco(tuning)
            settings = choose(tuning_truth, align(tuning_truth, read_predictions(tuned_path, tuning)))
            kept = [settings.apply(image) for image in predictions]
        pairs = zip(truth.images, kept, strict=True)
        counts.append([count_objects(image, answer, len(truth.class_names)) for image, answer in pairs])
    print(f"{len(truth.images)} images; object AP, difference to {arguments.base} with its 95 % interval")
    for row, name in enumerate(["all", *truth.class_names]):
        base = image_scores(counts[0], row)
        print(f"{name}: {base.values[0]:.4f}")
        for path, own in zip(arguments.others, counts[1:], strict=True):
            other = image_scores(own, row)
            (gain, *_), ((low, high), *_) = paired_intervals(base, other)
            print(f"    {other.values[0]:.4f}  {gain:+.4f} [{low:+.4f}, {high:+.4f}]  {path}")


if __name__ == "__main__":
    main()
