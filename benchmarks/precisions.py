"""Object AP and speed of a trained model in float32 and bfloat16.

python benchmarks/precisions.py --run RUN_FOLDER --data val.json
"""

from __future__ import annotations

import argparse

from measuring import take_turns, verdict

from detseg.coco.dataset import CocoDataset
from detseg.evaluation.evaluate import evaluate
from detseg.inference.predictor import Predictor

OBJECT_AP_GOAL = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, metavar="DIR", help="a run folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="COCO file of images that it has not seen")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    truth = CocoDataset.load(arguments.data)
    predictors = {name: Predictor.from_run(arguments.run, precision=name) for name in ("float32", "bfloat16")}
    scores = {
        name: evaluate(truth, predictor.predict_records(truth.images))["object_ap"]
        for name, predictor in predictors.items()
    }
    some = truth.images[:4]
    variants = {
        name: lambda predictor=predictor: list(predictor.predict_records(some))
        for name, predictor in predictors.items()
    }
    timing = take_turns(variants, arguments.rounds)
    ratio, least, most = timing.ratio("float32", "bfloat16")
    difference = abs(scores["float32"] - scores["bfloat16"])
    print(f"\n{arguments.run} on {len(truth.images)} images of {arguments.data}")
    for name, score in scores.items():
        print(f"  {name:10} object AP {score:.4f}   {timing.median(name) / len(some) * 1000:8.1f} ms an image")
    print(
        f"  bfloat16 is {ratio:.2f} x float32  [{least:.2f} .. {most:.2f}]; object AP differs by {difference:.4f}, "
        f"goal {OBJECT_AP_GOAL}: {verdict(difference <= OBJECT_AP_GOAL)}"
    )


if __name__ == "__main__":
    main()
