"""How fast Mask R-CNN R50-FPN is beside another library's in the same run: torchvision's or Detectron2's.

    python benchmarks/rcnn_speed.py [--against detectron2] [--sizes 256x320 520x704] [--profile]
    python benchmarks/rcnn_speed.py --against detectron2 --dense
    python benchmarks/rcnn_speed.py --only precisions --run RUN_FOLDER --data val.json

Both models have the same weights (random), get the same images, and are held to the same number of proposals and of
detections (nothing is cut by its score). An inference begins with the image as an array and ends with masks of the
image's size: run-lengths here, full-size masks or probabilities there. A training step is loss, backward pass and SGD.
Variants are timed in turns; medians and ratios, and in brackets the smallest and largest ratio of a single round. The
peak of memory is that of a process of its own for each model.

--dense: one image of 1024 x 1024 with 2,000 cells, as many detections, the limits of configs/_base_/microscopy.yaml.
With --run, a trained model predicts the images of --data in float32 and bfloat16, and both are scored.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from measuring import MIB, Timing, machine, peak_memory, take_turns, verdict
from native_rcnn import Answer, NativeTwin, Settings

from detseg.curation.synthetic import make_image
from detseg.structures import Sample
from detseg.structures.boxes import box_iou

# Times the other library's float32.
GOALS = {
    "torchvision": {"inference": 1.2, "training step": 1.0, "bfloat16": 1.8},
    "detectron2": {"inference": 1.3, "training step": 1.15, "bfloat16": 1.8},
    "dense": {"inference": 3.0, "training step": 3.0, "bfloat16": 3.0},
}
RIVALS = {"torchvision": "TorchvisionTwin", "detectron2": "Detectron2Twin"}
OBJECT_AP_GOAL = 0.005
WORKS = ("inference", "training step")


def rival(name: str) -> Any:
    """The class that makes the other library's model; the library is imported now."""
    return getattr(importlib.import_module(f"{name}_twin"), RIVALS[name])


class Pair:
    """The native model and another library's on one device with one batch of samples."""

    def __init__(self, against: str, settings: Settings, samples: Sequence[Sample], device: torch.device) -> None:
        torch.manual_seed(0)
        self.device, self.against = device, against
        native = NativeTwin(settings, samples, device)
        self.twins: dict[str, Any] = {"native": native, against: rival(against)(settings, native, device)}
        native.model.prefer_speed()
        self.optimizers = {
            name: torch.optim.SGD([p for p in twin.model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)
            for name, twin in self.twins.items()
        }

    def inference(self, which: str, dtype: torch.dtype | None) -> Any:
        """Predict the batch; the answers."""
        with self._autocast(dtype):
            return self.twins[which].infer()

    def step(self, which: str, dtype: torch.dtype | None) -> float:
        """One training step; the loss."""
        with self._autocast(dtype):
            losses = self.twins[which].losses()
        loss = sum(losses.values())
        self.optimizers[which].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[which].step()
        return float(loss.detach())

    def train(self, training: bool) -> None:
        for twin in self.twins.values():
            twin.model.train(training)

    def sizes(self, work: Callable[[str, torch.dtype | None], Any]) -> dict[str, tuple[Any, ...]]:
        """What each model computes in one call of `work`: the shape of its input, regions of its box and mask heads."""
        found = {}
        for which, twin in self.twins.items():
            seen: list[Any] = []
            # Dense images go through the heads in portions.
            regions = dict.fromkeys(twin.poolers, 0)

            def count(_: Any, inputs: Any, name: str, regions: dict[str, int] = regions) -> None:
                regions[name] += sum(map(len, inputs[1]))

            model = twin.model
            hooks = [model.backbone.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(tuple(x[0].shape)))]
            for name in twin.poolers:
                pooler = model.get_submodule(name)
                hooks.append(pooler.register_forward_pre_hook(functools.partial(count, name=name)))
            work(which, None)
            found[which] = (*seen, *regions.values())
            for hook in hooks:
                hook.remove()
        return found

    def _autocast(self, dtype: torch.dtype | None) -> Any:
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)


def make_samples(height: int, width: int, batch: int, cells: int) -> list[Sample]:
    """Synthetic images with their masks."""
    samples = []
    for index in range(batch):
        image, layers, classes = make_image((0, index), height, width, cells, channels=3)
        samples.append(Sample(np.ascontiguousarray(image), layers, classes, image_id=index))
    return samples


def compare(pair: Pair, title: str, arguments: argparse.Namespace) -> None:
    """Time inference and the training step of one pair and print them."""
    for what in [name for name in WORKS if name in arguments.only]:
        work = pair.inference if what == "inference" else pair.step
        pair.train(what != "inference")
        print(f"\n{title}, {what}; input, regions of the box head, of the mask head:")
        sizes = pair.sizes(work)
        for which, numbers in sizes.items():
            print(f"  {which:12} {numbers}")
        if what == "inference":
            if sizes["native"] != sizes[pair.against]:
                sys.exit("the models do not do the same work: choose fewer --proposals or --detections")
            print(f"  {agreement(*(twin.answers() for twin in pair.twins.values()))}")
        variants = _variants(work, pair, arguments.bfloat16)
        timing = take_turns(variants, arguments.rounds)
        for name in variants:
            print(f"  {name:22} {timing.median(name) * 1000:9.1f} ms")
        _print_ratios(timing, what, pair.against, GOALS["dense" if arguments.dense else pair.against])
        if arguments.profile:
            for which in pair.twins:
                print(f"\n{title}, {what}, {which} float32: where the time goes\n{profile(work, which)}")


def agreement(ours: Sequence[Answer], theirs: Sequence[Answer]) -> str:
    """How many detections of the other library native has too: same class, box IoU of 0.99, score within 0.001.

    Random weights give nearly equal scores, so that rounding decides which detections are the best ones.
    """
    found, total, mask_difference = 0, 0, 0.0
    for a, b in zip(ours, theirs, strict=True):
        total += len(b.scores)
        if not len(a.scores) or not len(b.scores):
            continue
        same = (box_iou(b.boxes, a.boxes) >= 0.99) & (b.classes[:, None] == a.classes)
        same &= np.abs(b.scores[:, None] - a.scores) <= 0.001
        rows, partners = np.flatnonzero(same.any(axis=1)), same.argmax(axis=1)
        found += len(rows)
        difference = np.abs(b.areas[rows] - a.areas[partners[rows]]) / np.maximum(b.areas[rows], 1)
        mask_difference = max(mask_difference, float(np.median(difference, keepdims=True)[0]) if len(rows) else 0.0)
    return f"detections in both: {found} of {total}; the median area of their masks differs by {mask_difference:.2%}"


def _variants(
    work: Callable[[str, torch.dtype | None], Any], pair: Pair, bfloat16: bool
) -> dict[str, Callable[[], Any]]:
    def timed(which: str, dtype: torch.dtype | None) -> None:
        work(which, dtype)
        if pair.device.type == "cuda":
            torch.cuda.synchronize(pair.device)

    dtypes = {"float32": None} | ({"bfloat16": torch.bfloat16} if bfloat16 else {})
    variants: dict[str, Callable[[], Any]] = {}
    for name, dtype in dtypes.items():
        for which in pair.twins:
            try:
                timed(which, dtype)
            except (RuntimeError, NotImplementedError) as error:
                print(f"  {which} cannot do {name}: {str(error).splitlines()[0]}")
                continue
            variants[f"{which} {name}"] = lambda which=which, dtype=dtype: timed(which, dtype)
    return variants


def _print_ratios(timing: Timing, what: str, against: str, goals: dict[str, float]) -> None:
    for fast, slow, goal in (
        ("native float32", f"{against} float32", goals[what]),
        ("native bfloat16", f"{against} float32", goals["bfloat16"]),
        ("native bfloat16", f"{against} bfloat16", None),
    ):
        if fast not in timing.seconds or slow not in timing.seconds:
            continue
        ratio, least, most = timing.ratio(slow, fast)
        text = f"  {fast} is {ratio:.2f} x {slow}  [{least:.2f} .. {most:.2f}]"
        print(text if goal is None else f"{text}   goal {goal} x: {verdict(ratio >= goal)}")


def compare_memory(arguments: argparse.Namespace, size: tuple[int, int]) -> None:
    """The peak of memory of every model and work, each in a process of its own."""
    print(
        f"\ncpu, {arguments.batch} x {size[0]} x {size[1]}, float32: peak of memory of a process that does this alone"
    )
    for what in [name for name in WORKS if name in arguments.only] or WORKS:
        peaks = {}
        for which in ("native", arguments.against):
            command = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                "--sizes",
                f"{size[0]}x{size[1]}",
                "--alone",
                which,
                what,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"  {what:14} {which:12} did not come to an end: {(done.stderr.splitlines() or ['killed'])[-1]}")
                continue
            peaks[which] = json.loads(done.stdout.splitlines()[-1])
            print(f"  {what:14} {which:12} {peaks[which] / MIB:8.0f} MiB")
        if len(peaks) == 2:
            print(f"  {what:14} goal no more: {verdict(peaks['native'] <= peaks[arguments.against])}")


def run_alone(which: str, what: str, settings: Settings, samples: Sequence[Sample]) -> int:
    """Do one work twice with one model; the peak of memory in bytes."""
    device = torch.device("cpu")
    twin = NativeTwin(settings, samples, device)
    if which == "native":
        twin.model.prefer_speed()
    else:
        twin = rival(which)(settings, twin, device)
    twin.model.train(what != "inference")
    parameters = [p for p in twin.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)
    for _ in range(2):
        if what == "inference":
            twin.infer()
        else:
            optimizer.zero_grad(set_to_none=True)
            sum(twin.losses().values()).backward()
            optimizer.step()
    return peak_memory()


def profile(work: Callable[[str, torch.dtype | None], Any], which: str, rows: int = 14) -> str:
    """The operators that take most of one call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    sort = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        sort = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities) as profiler:
        work(which, None)
    averages = sorted(profiler.key_averages(), key=lambda event: -getattr(event, sort, 0))
    total = sum(getattr(event, sort, 0) for event in averages) or 1
    lines = [
        f"  {getattr(event, sort) / 1000:9.1f} ms {getattr(event, sort) / total:6.1%} {event.count:6} x {event.key}"
        for event in averages[:rows]
    ]
    return "\n".join([*lines, f"  {total / 1000:9.1f} ms in all operators"])


def compare_precisions(run: str, data: str, rounds: int) -> None:
    """Object AP and speed of a trained model in float32 and bfloat16."""
    from detseg.coco.dataset import CocoDataset
    from detseg.evaluation.evaluate import evaluate
    from detseg.inference.predictor import Predictor

    truth = CocoDataset.load(data)
    predictors = {name: Predictor.from_run(run, precision=name) for name in ("float32", "bfloat16")}
    scores = {
        name: evaluate(truth, predictor.predict_records(truth.images))["object_ap"]
        for name, predictor in predictors.items()
    }
    some = truth.images[:4]
    timing = take_turns(
        {
            name: lambda predictor=predictor: list(predictor.predict_records(some))
            for name, predictor in predictors.items()
        },
        rounds,
    )
    ratio, least, most = timing.ratio("float32", "bfloat16")
    difference = abs(scores["float32"] - scores["bfloat16"])
    print(f"\n{run} on {len(truth.images)} images of {data}")
    for name, score in scores.items():
        print(f"  {name:10} object AP {score:.4f}   {timing.median(name) / len(some) * 1000:8.1f} ms an image")
    print(
        f"  bfloat16 is {ratio:.2f} x float32  [{least:.2f} .. {most:.2f}]; object AP differs by {difference:.4f}, "
        f"goal {OBJECT_AP_GOAL}: {verdict(difference <= OBJECT_AP_GOAL)}"
    )


def _size(text: str) -> tuple[int, int]:
    height, width = text.lower().split("x")
    return int(height), int(width)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--against", choices=list(RIVALS), default="torchvision", help="whose model native is held against"
    )
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(256, 320), (520, 704)], help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--cells", type=int, default=60, help="objects an image")
    parser.add_argument("--before-nms", type=int, default=1000, help="proposals a level before NMS")
    parser.add_argument("--proposals", type=int, default=300, help="proposals an image")
    parser.add_argument("--detections", type=int, default=100, help="detections an image")
    parser.add_argument("--dense", action="store_true", help="2,000 cells on 1024 x 1024 instead of all these sizes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*WORKS, "memory", "precisions"], default=[*WORKS, "memory"])
    parser.add_argument("--devices", nargs="+", default=["cpu"] + (["cuda"] if torch.cuda.is_available() else []))
    parser.add_argument("--no-bfloat16", dest="bfloat16", action="store_false", help="float32 alone")
    parser.add_argument("--profile", action="store_true", help="say which operators the time goes into")
    parser.add_argument("--run", help="a run folder: compare object AP in float32 and bfloat16 (needs --data)")
    parser.add_argument("--data", help="COCO file for --run")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if bool(arguments.run) != bool(arguments.data):
        parser.error("--run and --data belong together")
    return arguments


def settings_of(arguments: argparse.Namespace) -> tuple[Settings, list[tuple[int, int]], int]:
    """The settings of the models, the sizes of images, and the objects on each."""
    if not arguments.dense:
        settings = Settings(arguments.before_nms, arguments.proposals, arguments.detections)
        return settings, arguments.sizes, arguments.cells
    # A thousandth of the image's area each: cells of 20 pixels.
    settings = Settings(before_nms=6000, proposals=4000, detections=2000, anchor_sides=(12, 16, 20, 24, 28))
    return settings, [(1024, 1024)], 2000


def main() -> None:
    arguments = parse()
    settings, sizes, cells = settings_of(arguments)
    if arguments.alone:
        samples = make_samples(*sizes[0], arguments.batch, cells)
        only = arguments.alone[1]
        training = dataclasses.replace(settings, proposals=min(settings.proposals, 2000))
        print(run_alone(arguments.alone[0], only, settings if only == "inference" else training, samples))
        return
    packages = dict.fromkeys(("torch", "torchvision", arguments.against, "numpy"))
    print(f"{machine(*packages)}; {torch.get_num_threads()} threads")
    timed = set(arguments.only) & {*WORKS, "memory"}
    for height, width in sizes if timed else []:
        for device in arguments.devices:
            samples = make_samples(height, width, arguments.batch, cells)
            pair = Pair(arguments.against, settings, samples, torch.device(device))
            compare(pair, f"{device}, {arguments.batch} x {height} x {width}, {cells} cells", arguments)
        if "memory" in arguments.only and "cpu" in arguments.devices:
            compare_memory(arguments, (height, width))
    if arguments.run:
        compare_precisions(arguments.run, arguments.data, arguments.rounds)


if __name__ == "__main__":
    main()
