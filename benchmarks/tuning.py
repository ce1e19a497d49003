"""How long tuning thresholds over many dense images takes, beside applying every setting and scoring it.

    python benchmarks/tuning.py [--images 90] [--objects 800] [--candidates 1000] [--settings 500] [--plain 3]

Images of 520 x 704 with simulated cells, as in benchmarks/fusion.py: the truth is what one observer sees, the
predictions what another one sees, with doubles and misses and scores that say nothing. Settings are random thresholds
for scores, areas, duplicates and visible fractions. Applying and scoring is timed on `--plain` of them; both ways must
give the same object AP. Times are of one core: processor time, which other programs on the machine hardly lengthen.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import numpy as np
from fusion import HEIGHT, WIDTH, make_members
from measuring import MIB, machine, peak_memory, verdict

from detseg.evaluation.evaluate import evaluate
from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.tuning.space import State
from detseg.tuning.trials import Trials

GOAL = 120.0


def make_case(images: int, objects: int, candidates: int) -> tuple[GroundTruth, list[Predictions]]:
    """Return the truth of images and the predictions for them."""
    truths, predictions = [], []
    for number in range(images):
        seen, found = make_members(objects, 2, candidates, seed=number)
        seen = seen.select(np.arange(min(objects, len(seen))))
        truths.append(ImageTruth(number, "", HEIGHT, WIDTH, seen.rles, seen.classes))
        predictions.append(dataclasses.replace(found, image_id=number))
    return GroundTruth(["cell"], truths), predictions


def random_settings(count: int, seed: int = 0) -> list[State]:
    """Return settings as a search tries them."""
    random = np.random.default_rng(seed)
    return [
        State(
            Postprocess(
                classes=("cell",),
                score_threshold=round(random.uniform(0.05, 0.9), 4),
                min_area=int(random.integers(0, 200)),
                max_area=[None, 500, 700][random.integers(3)],
                nms_iou=[None, 0.3, 0.5, 0.7][random.integers(4)],
                min_visible_fraction=[0.0, 0.25, 0.5, 0.75][random.integers(4)],
            )
        )
        for _ in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"images": 90, "objects": 800, "candidates": 1000, "settings": 500, "plain": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    truth, predictions = make_case(arguments.images, arguments.objects, arguments.candidates)
    settings = random_settings(arguments.settings)
    everything = np.arange(arguments.images)
    print(machine())
    print(f"{arguments.images} images, {arguments.objects} objects and {arguments.candidates} predictions each\n")

    trials = Trials(truth, [predictions], "object_ap")
    start = time.process_time()
    scores = [trials.score(settings[0], everything)]
    first = time.process_time() - start
    scores += [trials.score(state, everything) for state in settings[1:]]
    seconds = time.process_time() - start
    each = (seconds - first) / max(len(settings) - 1, 1)
    print(f"table and first setting   {first:8.2f} s")
    print(f"every further setting     {each * 1000:8.1f} ms")
    print(f"{len(settings):4} settings             {seconds:8.1f} s  {verdict(seconds < GOAL)} (goal {GOAL:g} s)")

    chosen = settings[: arguments.plain]
    start = time.process_time()
    plain = [evaluate(truth, state.postprocess.apply_all(predictions), coco=False)["object_ap"] for state in chosen]
    plain_each = (time.process_time() - start) / max(len(chosen), 1)
    same = np.allclose(plain, scores[: len(chosen)], rtol=0, atol=1e-12)
    print(f"applying and scoring one  {plain_each:8.2f} s, {plain_each / each:.0f} times a setting of the table")
    print(f"equal object AP           {verdict(same)}")
    print(f"memory                    {peak_memory() / MIB:8.0f} MB at most, the predictions included")


if __name__ == "__main__":
    main()
