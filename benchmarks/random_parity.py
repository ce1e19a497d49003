"""Compare the native engine with Detectron2 on random configurations: N narrow ones, and M of 128 channels and more.

    python benchmarks/random_parity.py 100 20 --steps 10

Boxes, scores, masks, losses, gradients and the losses of some steps of training are compared, with bounds that follow
from what Detectron2 differs from itself with another convolution library or channels last; the last lines are the
largest differences of all. Exits 1 when one is beyond its bound. Needs Detectron2, and a checkout with its tests.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch


def main() -> int:
    tests = Path(__file__).resolve().parents[1] / "tests"
    sys.path[:0] = [str(tests), str(tests / "detectron2")]
    from random_cases import FLOORS, compare, draw

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("narrow", type=int, nargs="?", default=20)
    parser.add_argument("wide", type=int, nargs="?", default=4)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--steps", type=int, default=3, help="steps of training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    largest = {side: dict.fromkeys(FLOORS, 0.0) for side in ("native", "fast", "itself")}
    for wide, count in ((False, arguments.narrow), (True, arguments.wide)):
        for seed in range(arguments.first, arguments.first + count):
            start = time.perf_counter()
            drawn = draw(seed, wide=wide)
            found = compare(drawn, arguments.steps)
            for side, values in largest.items():
                values |= {name: max(values[name], value) for name, value in getattr(found, side).items()}
            beyond = found.beyond()
            failed += bool(beyond)
            model = [str(drawn.keys[f"MODEL.{name}"]) for name in ("ROI_HEADS.NAME", "RESNETS.DEPTH", "RESNETS.NORM")]
            seconds = time.perf_counter() - start
            print(f"{'wide' if wide else 'narrow'} {seed}: {' '.join(model)}, {seconds:.1f} s", *beyond, sep="\n    ")
    for side, values in largest.items():
        print(f"{side:8}" + "  ".join(f"{name} {value:.1e}" for name, value in values.items()))
    print(f"{failed} of {arguments.narrow + arguments.wide} configurations have a difference beyond its bound")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
