"""How fast Mask R-CNN R50-FPN is beside another library's in the same run: torchvision's or Detectron2's.

    python benchmarks/rcnn_speed.py --against detectron2 [--sizes 256x320 520x704] [--situations alone beside]
    python benchmarks/rcnn_speed.py --against detectron2 --dense

All models have the same weights (random), get the same images, and are held to the same number of proposals and of
detections (nothing is cut by its score). An inference begins with the image as an array and ends with masks of the
image's size: run-lengths here, full-size masks or probabilities there. A training step is loss, backward pass and SGD.

The other library runs as it is and with channels last in memory, in float32 and bfloat16; native is held against the
faster of the two in the same number format. Every model has a process of its own, with the threads that its users get:
of ours as many as cores are free, of the others torch's default (OMP_NUM_THREADS=1 for one thread each). `beside` is
beside a process that keeps one core busy. They are timed in turns; medians and ratios, and in
brackets the smallest and largest ratio of a single round. The peak of memory is that of two calls in float32.

--dense: one image of 1024 x 1024 with 2,000 cells, as many detections, the limits of configs/_base_/microscopy.yaml.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from measuring import MIB, Timing, machine, peak_memory, take_turns, verdict
from native_rcnn import Answer, NativeTwin, Settings

from detseg.curation.synthetic import make_image
from detseg.runs.threads import BEFORE_TORCH, choose_threads, prepare_torch
from detseg.structures import Sample
from detseg.structures.boxes import box_iou

# At least so many times as fast as the other library's faster setting in the same number format, alone on the machine;
# beside a busy process no slower.
GOALS = {"torchvision": {None: 1.2}, "detectron2": {None: 1.3}, "dense": {"float32": 1.3, "bfloat16": 1.5}}
# Dense images: bfloat16 to the other library's float32.
DENSE_GOAL = 3.0
RIVALS = {"torchvision": "TorchvisionTwin", "detectron2": "Detectron2Twin"}
CHANNELS_LAST = " channels last"
BUSY = "import torch; torch.set_num_threads(1); x = torch.randn(512, 512)\nwhile True: x @ x"
# What `predict` does with a run's score threshold: native computes no masks for what is thrown away, here this share.
ABOVE, BELOW_SHARE = "inference above a threshold", 0.45
WORKS = ("inference", ABOVE, "training step")


def rival(name: str) -> Any:
    """The class that makes the other library's model; the library is imported now."""
    return getattr(importlib.import_module(f"{name}_twin"), RIVALS[name])


def make_twin(which: str, settings: Settings, samples: Sequence[Sample], device: torch.device) -> Any:
    """A model by the name of its variant: native, or another library's as it is or with channels last."""
    torch.manual_seed(0)
    native = NativeTwin(settings, samples, device)
    if which == native.name:
        native.model.prefer_speed()
        return native
    twin = rival(which.removesuffix(CHANNELS_LAST))(settings, native, device)
    if which.endswith(CHANNELS_LAST):
        twin.model.to(memory_format=torch.channels_last)
    return twin


def make_work(twin: Any, what: str) -> Callable[[torch.dtype | None], Any]:
    """What is timed, a function of the number format (None: float32)."""
    device = next(twin.model.parameters()).device
    twin.model.train(what == "training step")
    infer_once: Callable[[], Any] = twin.infer
    if what == ABOVE and isinstance(twin, NativeTwin):
        scores = np.concatenate([answer.scores for answer in twin.answers()])
        infer_once = functools.partial(twin.infer_above, float(np.quantile(scores, BELOW_SHARE)))

    def autocast(dtype: torch.dtype | None) -> Any:
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

    def infer(dtype: torch.dtype | None) -> None:
        with autocast(dtype):
            infer_once()

    # As the trainers of both make it.
    parameters = [p for p in twin.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, fused=isinstance(twin, NativeTwin) or None)

    def step(dtype: torch.dtype | None) -> None:
        with autocast(dtype):
            losses = twin.losses()
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()

    return step if what == "training step" else infer


def work_sizes(twin: Any, work: Callable[[torch.dtype | None], Any]) -> tuple[Any, ...]:
    """What a model computes in one call: the shape of its input, regions of its box and mask heads."""
    seen: list[Any] = []
    regions = dict.fromkeys(twin.poolers, 0)  # dense images go through the heads in portions

    def count(_: Any, inputs: Any, name: str) -> None:
        regions[name] += sum(map(len, inputs[1]))

    hooks = [twin.model.backbone.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))]
    for name in twin.poolers:
        hooks.append(twin.model.get_submodule(name).register_forward_pre_hook(functools.partial(count, name=name)))
    work(None)
    for hook in hooks:
        hook.remove()
    return *seen, *regions.values()


def serve(
    which: str, what: str, settings: Settings, samples: Sequence[Sample], device: torch.device, clock: str
) -> None:
    """Be the process of one model: answer each number format on the standard input by the seconds of one call."""
    now = time.process_time if clock == "processor" else time.perf_counter
    if which == NativeTwin.name:
        prepare_torch()
        choose_threads(None)
    work = make_work(make_twin(which, settings, samples, device), what)
    for _ in range(2):
        work(None)
    print(json.dumps({"peak": peak_memory()}), flush=True)
    for line in sys.stdin:
        dtype = None if line.strip() == "float32" else getattr(torch, line.strip())
        if which == NativeTwin.name:
            choose_threads(None)  # what was busy until now was the other models
        started = now()
        work(dtype)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        print(json.dumps({"seconds": now() - started}), flush=True)


class Served:
    """A model in a process of its own (`serve`); peak: its memory in bytes."""

    def __init__(self, which: str, what: str, device: str, size: tuple[int, int]) -> None:
        words = [*sys.argv[1:], "--sizes", f"{size[0]}x{size[1]}", "--devices", device, "--serve", which, what]
        environment = dict(os.environ)
        if which == NativeTwin.name:
            environment = BEFORE_TORCH | environment  # as every command of detseg sets it
        self.which = which
        command, pipe = [sys.executable, __file__, *words], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.peak = self._answer()["peak"]

    def seconds(self, dtype: str) -> float:
        """The time of one call in a number format."""
        self.process.stdin.write(f"{dtype}\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, float]:
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print too
                return json.loads(line)
        sys.exit(f"{self.which} did not come to an end (exit status {self.process.wait()})")


def make_samples(height: int, width: int, batch: int, cells: int) -> list[Sample]:
    """Synthetic images with their masks."""
    samples = []
    for index in range(batch):
        image, layers, classes = make_image((0, index), height, width, cells, channels=3)
        samples.append(Sample(np.ascontiguousarray(image), layers, classes, image_id=index))
    return samples


def compare(
    title: str, what: str, device: str, size: tuple[int, int], arguments: argparse.Namespace
) -> list[list[str]]:
    """Time one work of all models; return the rows of the table."""
    formats = ["float32", "bfloat16"] if arguments.bfloat16 else ["float32"]
    rivals = [arguments.against, arguments.against + CHANNELS_LAST]
    served = [Served(which, what, device, size) for which in (NativeTwin.name, *rivals)]
    rows = []
    for situation in arguments.situations:
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if situation == "beside" else None
        try:
            variants = {
                f"{one.which} {dtype}": functools.partial(one.seconds, dtype) for dtype in formats for one in served
            }
            timing = take_turns(variants, arguments.rounds, measured=True)
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        print(f"\n{title}, {what}, {situation}")
        for name in variants:
            print(f"  {name:34} {timing.median(name) * 1000:9.1f} ms")
        rows += _rows(timing, f"{title}, {what}, {situation}", formats, rivals, arguments)
    peaks = {one.which: one.peak for one in served}
    for one in served:
        one.end()
    if device == "cpu":
        least = min(peaks[which] for which in rivals)
        own = peaks[NativeTwin.name]
        memory = [f"{peak / MIB:.0f} MiB" for peak in (own, least)]
        rows.append([f"{title}, {what}, memory", *memory, f"{least / own:.2f}", f"no more: {verdict(own <= least)}"])
    return rows


def _rows(
    timing: Timing, title: str, formats: Sequence[str], rivals: Sequence[str], arguments: argparse.Namespace
) -> list[list[str]]:
    """Native against the faster setting of the other library, in each number format."""
    pairs = [(dtype, dtype) for dtype in formats]
    if arguments.dense and "bfloat16" in formats:
        pairs.append(("bfloat16", "float32"))
    goals = GOALS["dense" if arguments.dense else arguments.against]
    rows = []
    for ours, theirs in pairs:
        fast, slow = f"{NativeTwin.name} {ours}", min((f"{which} {theirs}" for which in rivals), key=timing.median)
        ratio, least, most = timing.ratio(slow, fast)
        goal = 1.0 if title.endswith("beside") else DENSE_GOAL if ours != theirs else goals.get(ours) or goals[None]
        milliseconds = [f"{timing.median(name) * 1000:.0f} ms" for name in (fast, slow)]
        rows.append(
            [
                f"{title}, {ours}",
                milliseconds[0],
                f"{milliseconds[1]} ({slow})",
                f"{ratio:.2f} [{least:.2f} .. {most:.2f}]",
                f"{goal}: {verdict(ratio >= goal)}",
            ]
        )
    return rows


def check_same_work(title: str, settings: Settings, samples: Sequence[Sample], device: str, against: str) -> None:
    """Print how far native and the other library agree; leave where they do not do the same work."""
    twins = [make_twin(which, settings, samples, torch.device(device)) for which in (NativeTwin.name, against)]
    sizes = [work_sizes(twin, make_work(twin, "inference")) for twin in twins]
    print(f"\n{title}: input, regions of the box head, of the mask head: {sizes[0]}")
    if sizes[0] != sizes[1]:
        sys.exit(f"the models do not do the same work ({sizes[1]}): choose fewer --proposals or --detections")
    print(f"  {agreement(*(twin.answers() for twin in twins))}")


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


def profile(work: Callable[[torch.dtype | None], Any], rows: int = 14) -> str:
    """The operators that take most of one call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    sort = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        sort = "self_cuda_time_total"
    with torch.profiler.profile(activities=activities) as profiler:
        work(None)
    averages = sorted(profiler.key_averages(), key=lambda event: -getattr(event, sort, 0))
    total = sum(getattr(event, sort, 0) for event in averages) or 1
    lines = [
        f"  {getattr(event, sort) / 1000:9.1f} ms {getattr(event, sort) / total:6.1%} {event.count:6} x {event.key}"
        for event in averages[:rows]
    ]
    return "\n".join([*lines, f"  {total / 1000:9.1f} ms in all operators"])


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
    parser.add_argument(
        "--clock", choices=["wall", "processor"], default="wall", help="processor: what other programs change least"
    )
    parser.add_argument("--only", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--situations", nargs="+", choices=["alone", "beside"], default=["alone", "beside"])
    parser.add_argument("--devices", nargs="+", default=["cpu"] + (["cuda"] if torch.cuda.is_available() else []))
    parser.add_argument("--no-bfloat16", dest="bfloat16", action="store_false", help="float32 alone")
    parser.add_argument("--profile", action="store_true", help="say which operators the time goes into")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace, what: str = "inference") -> tuple[Settings, list[tuple[int, int]], int]:
    """The settings of the models, the sizes of images, and the objects on each."""
    if not arguments.dense:
        settings = Settings(arguments.before_nms, arguments.proposals, arguments.detections)
        return settings, arguments.sizes, arguments.cells
    # A thousandth of the image's area each: cells of 20 pixels.
    proposals = 2000 if what == "training step" else 4000
    settings = Settings(before_nms=6000, proposals=proposals, detections=2000, anchor_sides=(12, 16, 20, 24, 28))
    return settings, [(1024, 1024)], 2000


def main() -> None:
    arguments = parse()
    settings, sizes, cells = settings_of(arguments)
    if arguments.serve:
        which, what = arguments.serve
        samples = make_samples(*sizes[0], arguments.batch, cells)
        settings = settings_of(arguments, what)[0]
        serve(which, what, settings, samples, torch.device(arguments.devices[0]), arguments.clock)
        return
    packages = dict.fromkeys(("torch", "torchvision", arguments.against, "numpy"))
    print(f"{machine(*packages)}; {torch.get_num_threads()} threads")
    timed = [name for name in WORKS if name in arguments.only]
    table = [["", "native", f"{arguments.against}, its faster setting", "ratio", "goal"]]
    for size in sizes:
        for device in arguments.devices:
            samples = make_samples(*size, arguments.batch, cells)
            title = f"{device}, {arguments.batch} x {size[0]} x {size[1]}, {cells} cells"
            check_same_work(title, settings, samples, device, arguments.against)
            if arguments.profile:
                for which, what in itertools.product((NativeTwin.name, arguments.against), timed):
                    work = make_work(make_twin(which, settings, samples, torch.device(device)), what)
                    print(f"\n{title}, {what}, {which} float32: where the time goes\n{profile(work)}")
            for what in timed:
                table += compare(title, what, device, size, arguments)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (f"| {' | '.join(map(str.ljust, row, widths))} |" for row in table)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
