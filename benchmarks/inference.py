"""Seconds an image of prediction: once, in several views, with boxes merged before masks; and where the time goes.

    python benchmarks/inference.py [--run RUN --image FILE] [--cells 400] [--rounds 3] [--device cpu]

Without a run, the small model of the quickstart with random weights and anchors of a cell's size looks at a synthetic
image of 520 x 704 and answers with as many objects as there are cells. All variants predict the same image in turns. On
a CPU processor seconds are counted (a busy machine hardly changes them; one thread: OMP_NUM_THREADS=1), on CUDA seconds
of the clock.

The parts of a variant:

    prepare   channels, scaling, resizing, turning
    network   backbone, proposals, box and mask heads
    paste     small masks to the image's pixels, probabilities included
    encode    pixels to run-lengths
    turn      boxes, run-lengths and probabilities of a view back into the image
    fuse      boxes (and in `fuse`, masks) of all views into one list
    mean      the mean of the probabilities, thresholded and encoded

Goal: paste, encode and turn each take at most a tenth of the network's time.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, verdict

CONFIG = Path(__file__).parent.parent / "configs" / "_base_" / "mask_rcnn_small_fpn.yaml"
HEIGHT, WIDTH = 520, 704
GOAL = 0.1
# Name -> words of the views, mode.
VARIANTS = {
    "single": (["none"], "fuse"),
    "flips, fuse": (["flips"], "fuse"),
    "flips, merge then mask": (["flips"], "merge_then_mask"),
    "eight, fuse": (["eight"], "fuse"),
    "eight, merge then mask": (["eight"], "merge_then_mask"),
}
PARTS = ("prepare", "network", "paste", "encode", "turn", "fuse", "mean")
HELD_TO_GOAL = ("paste", "encode", "turn")


class Stopwatch:
    """Seconds by part; time in a part inside another one counts for the inner one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*words: Any, **options: Any) -> Any:
            start = self.clock()
            self._inner.append(0.0)
            try:
                return function(*words, **options)
            finally:
                took = self.clock() - start
                self.seconds[part] += took - self._inner.pop()
                self._inner[-1] += took

        return timed


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Inside, every part is timed wherever it is called."""
    from detseg.inference import detector
    from detseg.inference import views as symmetries
    from detseg.models import paste, region_segmenter

    places = [
        (detector.Detector, "prepare", "prepare"),
        (detector, "network_inputs", "prepare"),
        (region_segmenter.CachedFeatures, "__init__", "network"),
        (region_segmenter.CachedFeatures, "predict", "network"),
        (region_segmenter.CachedFeatures, "region_masks", "network"),
        (region_segmenter, "paste_masks", "paste"),
        (paste, "encode_crops", "encode"),
        (symmetries.Symmetry, "predictions", "turn"),
        (detector, "fuse", "fuse"),
        (detector.MeanMasks, "add", "mean"),
        (detector.MeanMasks, "result", "mean"),
    ]
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in places]
    try:
        for owner, name, part in places:
            function = owner.__dict__[name]
            # a generator does its work while it is read
            whole = functools.partial(_listed, function) if name == "network_inputs" else function
            setattr(owner, name, watch.around(part, functools.update_wrapper(whole, function)))
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _listed(function: Callable[..., Any], *words: Any) -> list[Any]:
    return list(function(*words))


def make_detectors(arguments: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray]:
    """The variants by name, and the image."""
    from detseg.curation.synthetic import make_image
    from detseg.images.reading import read_image
    from detseg.inference.detector import Detector
    from detseg.inference.predictor import Predictor
    from detseg.inference.tta import TestTimeAugmentation
    from detseg.inference.views import parse_views

    if arguments.run:
        predictor = Predictor.from_run(arguments.run, device=arguments.device, postprocess=False)
    else:
        predictor = _small_predictor(arguments.cells, arguments.device)
    image = read_image(arguments.image) if arguments.image else make_image(0, HEIGHT, WIDTH, arguments.cells)[0]
    models, limit = predictor.detector.models, predictor.tta.max_detections
    detectors: dict[str, Any] = {}
    for name in arguments.variants:
        words, mode = VARIANTS[name]
        settings = TestTimeAugmentation(parse_views(words), mode, max_detections=limit)
        detectors[name] = Detector(models, settings)
    return detectors, np.ascontiguousarray(image if image.ndim == 3 else image[:, :, None])


def _small_predictor(cells: int, device: str) -> Any:
    import torch

    from detseg.config import load_config
    from detseg.engines.build import build_model
    from detseg.inference.predictor import Predictor
    from detseg.inference.validation import InferenceOptions
    from detseg.models.devices import choose_device

    overrides = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", "TEST.DETECTIONS_PER_IMAGE", str(cells)]
    overrides += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    overrides += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[12], [16], [20], [24], [28]]", "INPUT.MIN_SIZE_TEST", "0"]
    cfg = load_config(CONFIG, overrides)
    torch.manual_seed(0)
    model = build_model(cfg).to(choose_device(device)).prefer_speed().eval()
    return Predictor.from_model(model, InferenceOptions.from_config(cfg), ["a", "b", "c"])


def measure(detector: Any, image: np.ndarray, clock: Callable[[], float]) -> tuple[float, dict[str, float], int]:
    """Seconds of one prediction, by part, and the number of objects."""
    from detseg.inference.image_model import InputImage

    watch = Stopwatch(clock)
    start = clock()
    with watched(watch):
        (answer,) = detector.predict([detector.prepare(InputImage(image))])
    return clock() - start, dict(watch.seconds), len(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a run folder; without one, the small model with random weights")
    parser.add_argument("--image", help="an image file; without one, synthetic cells")
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    detectors, image = make_detectors(arguments)
    clock = time.process_time if arguments.device == "cpu" else _cuda_clock
    seconds: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[dict[str, float]]] = defaultdict(list)
    objects: dict[str, int] = {}
    measure(next(iter(detectors.values())), image, clock)  # warm up
    for _ in range(arguments.rounds):
        for name, detector in detectors.items():
            took, of_parts, objects[name] = measure(detector, image, clock)
            seconds[name].append(took)
            parts[name].append(of_parts)
    print(machine("torch", "numpy"))
    print(f"image {image.shape[0]} x {image.shape[1]}, median of {arguments.rounds} rounds, seconds")
    print(f"{'':24}{'in all':>9}{'x single':>9}{'objects':>9}" + "".join(f"{part:>9}" for part in PARTS))
    base = statistics.median(seconds[next(iter(detectors))])
    worst = 0.0
    for name in detectors:
        of_parts = {part: statistics.median(one.get(part, 0.0) for one in parts[name]) for part in PARTS}
        total = statistics.median(seconds[name])
        row = "".join(f"{of_parts[part]:9.3f}" for part in PARTS)
        print(f"{name:24}{total:9.3f}{total / base:9.2f}{objects[name]:9}{row}")
        worst = max(worst, *(of_parts[part] / of_parts["network"] for part in HELD_TO_GOAL))
    print(f"largest of {', '.join(HELD_TO_GOAL)} / network: {worst:.3f} (goal {GOAL}): {verdict(worst <= GOAL)}")


def _cuda_clock() -> float:
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
