"""How fast Mask R-CNN R50-FPN is beside torchvision's maskrcnn_resnet50_fpn in the same run.

    python benchmarks/rcnn_speed.py [--sizes 256x320 520x704] [--profile] [--run RUN_FOLDER --data val.json]

Both models have the same weights (random), get the same images, and are held to the same number of proposals and of
detections (nothing is cut by its score). An inference begins with the image as an array and ends with masks of the
image's size: run-lengths here, full-size probabilities there. A training step is loss, backward pass and SGD.
Variants are timed in turns; medians and ratios, and in brackets the smallest and largest ratio of a single round.

With --run, a trained model predicts the images of --data in float32 and bfloat16, and both are scored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from measuring import Timing, machine, take_turns, verdict
from torch import nn
from torchvision_twin import Settings, native_model, torchvision_images, torchvision_model, torchvision_targets

from detseg.data.synthetic import make_image
from detseg.models.base import Segmenter
from detseg.structures import Sample

FLOAT32_GOAL, TRAINING_GOAL, BFLOAT16_GOAL = 1.2, 1.0, 1.8
OBJECT_AP_GOAL = 0.005


class Pair:
    """Both models on one device with one batch of samples, as functions without arguments to be timed."""

    def __init__(self, settings: Settings, samples: Sequence[Sample], device: torch.device) -> None:
        torch.manual_seed(0)
        self.samples, self.device = samples, device
        self.images = [sample.image for sample in samples]
        self.native: Segmenter = native_model(settings)
        self.torchvision: nn.Module = torchvision_model(settings, self.native, self.images[0].shape[:2]).to(device)
        self.native.to(device).prefer_speed()
        self.targets = torchvision_targets(samples, device)
        self.optimizers = {
            model: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)
            for model in (self.native, self.torchvision)
        }

    def inference(self, which: str, dtype: torch.dtype | None) -> Any:
        """Predict the batch; the answers."""
        with self._autocast(dtype):
            if which == "native":
                return self.native.predict(self.images)
            with torch.inference_mode():
                answers = self.torchvision(torchvision_images(self.images, self.device))
                return [{name: tensor.cpu() for name, tensor in answer.items()} for answer in answers]

    def step(self, which: str, dtype: torch.dtype | None) -> float:
        """One training step; the loss."""
        model = self.native if which == "native" else self.torchvision
        with self._autocast(dtype):
            if which == "native":
                losses = model(self.samples)
            else:
                losses = model(torchvision_images(self.images, self.device), self.targets)
        loss = sum(losses.values())
        self.optimizers[model].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[model].step()
        return float(loss.detach())

    def train(self, training: bool) -> None:
        self.native.train(training)
        self.torchvision.train(training)

    def sizes(self, work: Callable[[str, torch.dtype | None], Any]) -> dict[str, tuple[Any, ...]]:
        """What each model computes in one call of `work`: the shape of its input, regions of its box and mask heads."""
        found = {}
        for which, model, names in (
            ("native", self.native, ("box_pooler", "mask_pooler")),
            ("torchvision", self.torchvision, ("box_roi_pool", "mask_roi_pool")),
        ):
            seen: list[Any] = []
            hooks = [model.backbone.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(tuple(x[0].shape)))]
            for name in names:
                pooler = getattr(model.roi_heads, name)
                hooks.append(pooler.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(sum(map(len, x[1])))))
            work(which, None)
            found[which] = tuple(seen)
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
    works = {"inference": pair.inference, "training step": pair.step}
    for what in arguments.only or works:
        work = works[what]
        pair.train(what != "inference")
        print(f"\n{title}, {what}; input, regions of the box head, of the mask head:")
        sizes = pair.sizes(work)
        for which, numbers in sizes.items():
            print(f"  {which:12} {numbers}")
        if what == "inference" and sizes["native"] != sizes["torchvision"]:
            sys.exit("the models do not do the same work: choose fewer --proposals or --detections")
        variants = _variants(work, arguments.bfloat16, pair.device)
        timing = take_turns(variants, arguments.rounds)
        for name in variants:
            print(f"  {name:22} {timing.median(name) * 1000:9.1f} ms")
        _print_ratios(timing, what)
        if arguments.profile:
            for which in ("native", "torchvision"):
                print(f"\n{title}, {what}, {which} float32: where the time goes\n{profile(work, which)}")


def _variants(work: Callable[..., Any], bfloat16: bool, device: torch.device) -> dict[str, Callable[[], Any]]:
    def timed(which: str, dtype: torch.dtype | None) -> None:
        work(which, dtype)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    dtypes = {"float32": None} | ({"bfloat16": torch.bfloat16} if bfloat16 else {})
    variants: dict[str, Callable[[], Any]] = {}
    for name, dtype in dtypes.items():
        for which in ("native", "torchvision"):
            try:
                timed(which, dtype)
            except (RuntimeError, NotImplementedError) as error:
                print(f"  {which} cannot do {name}: {str(error).splitlines()[0]}")
                continue
            variants[f"{which} {name}"] = lambda which=which, dtype=dtype: timed(which, dtype)
    return variants


def _print_ratios(timing: Timing, what: str) -> None:
    goals = {"native float32": FLOAT32_GOAL if what == "inference" else TRAINING_GOAL, "native bfloat16": BFLOAT16_GOAL}
    for fast, slow in (
        ("native float32", "torchvision float32"),
        ("native bfloat16", "torchvision float32"),
        ("native bfloat16", "torchvision bfloat16"),
    ):
        if fast not in timing.seconds or slow not in timing.seconds:
            continue
        ratio, least, most = timing.ratio(slow, fast)
        text = f"  {fast} is {ratio:.2f} x {slow}  [{least:.2f} .. {most:.2f}]"
        if slow == "torchvision float32":
            text += f"   goal {goals[fast]} x: {verdict(ratio >= goals[fast])}"
        print(text)


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
    from detseg.data.coco import CocoDataset
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
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(256, 320), (520, 704)], help="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--cells", type=int, default=60, help="objects an image")
    parser.add_argument("--before-nms", type=int, default=1000, help="proposals a level before NMS")
    parser.add_argument("--proposals", type=int, default=300, help="proposals an image")
    parser.add_argument("--detections", type=int, default=100, help="detections an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=["inference", "training step"])
    parser.add_argument("--devices", nargs="+", default=["cpu"] + (["cuda"] if torch.cuda.is_available() else []))
    parser.add_argument("--no-bfloat16", dest="bfloat16", action="store_false", help="float32 alone")
    parser.add_argument("--profile", action="store_true", help="say which operators the time goes into")
    parser.add_argument("--run", help="a run folder: compare object AP in float32 and bfloat16 (needs --data)")
    parser.add_argument("--data", help="COCO file for --run")
    parser.add_argument("--no-torchvision", action="store_true", help="only the part of --run")
    arguments = parser.parse_args()
    if bool(arguments.run) != bool(arguments.data):
        parser.error("--run and --data belong together")
    return arguments


def main() -> None:
    arguments = parse()
    print(f"{machine('torch', 'torchvision', 'numpy')}; {torch.get_num_threads()} threads")
    settings = Settings(arguments.before_nms, arguments.proposals, arguments.detections)
    for device in [] if arguments.no_torchvision else arguments.devices:
        for height, width in arguments.sizes:
            samples = make_samples(height, width, arguments.batch, arguments.cells)
            pair = Pair(settings, samples, torch.device(device))
            compare(pair, f"{device}, {arguments.batch} x {height} x {width}", arguments)
    if arguments.run:
        compare_precisions(arguments.run, arguments.data, arguments.rounds)


if __name__ == "__main__":
    main()
