"""What one image of 1024 x 1024 with 2,000 cells costs, in memory and time, beside the straightforward way.

    python benchmarks/dense_image.py [--cells 2000] [--side 1024] [--parts targets mask_targets step predict paste]

Every part runs in a process of its own, so that its peak of memory is its own:

    targets        what a training sample of that image holds on the device, beside N full-size masks
    mask_targets   the mask targets of 512 proposals, beside ROIAlign of the objects' full-size masks (in portions)
    step           a training step of the small model of the quickstart (ResNet-18, narrow), from the sample to SGD
    predict        the same model finds as many objects as there are cells and answers with run-lengths
    paste          masks of 28 x 28 for every cell to run-lengths ...
    paste_full     ... and the straightforward way: full-size masks, as Detectron2 pastes them, and pycocotools' encode
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import MIB, held_memory, machine, peak_memory, take_turns, verdict

CONFIG = Path(__file__).parent.parent / "configs" / "_base_" / "mask_rcnn_small_fpn.yaml"
TARGETS_GOAL, STEP_GOAL = 64 * MIB, 2048 * MIB
PROPOSALS, MASK_SIZE = 512, 28
FULL_MASKS_AT_ONCE = 32


def dense_sample(cells: int, side: int) -> Any:
    """One synthetic image with that many cells."""
    from detseg.curation.synthetic import make_image
    from detseg.structures import Sample

    image, layers, classes = make_image(0, side, side, cells, channels=3)
    return Sample(np.ascontiguousarray(image), layers, classes, file_name="dense.png")


def small_model(cells: int, training: bool) -> Any:
    """The small model with random weights; in prediction it finds `cells` objects of about a cell's size."""
    import torch

    from detseg.config import load_config
    from detseg.engines.build import build_model

    overrides = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", "TEST.DETECTIONS_PER_IMAGE", str(cells)]
    if not training:
        overrides += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
        overrides += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[12], [16], [20], [24], [28]]"]
    torch.manual_seed(0)
    return build_model(load_config(CONFIG, overrides)).prefer_speed().train(training)


def measure_targets(cells: int, side: int) -> dict[str, Any]:
    import torch

    from detseg.models.rcnn.targets import Targets

    sample = dense_sample(cells, side)
    start = time.perf_counter()
    targets = Targets.from_sample(sample, 3, torch.device("cpu"))
    seconds = time.perf_counter() - start
    tensors = [value for value in vars(targets).values() if isinstance(value, torch.Tensor)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"objects": len(targets.boxes), "layers": sample.layers.num_layers, "bytes": held, "seconds": seconds}


def measure_mask_targets(cells: int, side: int, rounds: int) -> dict[str, Any]:
    import torch
    from torchvision.ops import roi_align

    from detseg.models.rcnn.targets import Targets, sample_masks

    targets = Targets.from_sample(dense_sample(cells, side), 3, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    objects = torch.randint(0, len(targets.boxes), (PROPOSALS,), generator=generator)
    boxes = targets.boxes[objects] + torch.randn((PROPOSALS, 4), generator=generator) * 1.5
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    layer_of, ids = targets.layer_of[objects], targets.ids[objects]

    def from_layers() -> torch.Tensor:
        return sample_masks(targets.layers, layer_of, ids, boxes, MASK_SIZE)

    def from_full_masks() -> tuple[torch.Tensor, float]:
        answers, seconds = [], 0.0
        for part in torch.arange(PROPOSALS).split(FULL_MASKS_AT_ONCE):
            masks = targets.layers[layer_of[part]] == ids[part, None, None]
            start = time.perf_counter()  # that the full masks are there already is granted
            regions = torch.cat((torch.arange(len(part))[:, None].float(), boxes[part]), dim=1)
            values = roi_align(masks[:, None].float(), regions, (MASK_SIZE, MASK_SIZE), 1.0, 0, aligned=True)
            answers.append(values[:, 0] >= 0.5)
            seconds += time.perf_counter() - start
        return torch.cat(answers), seconds

    ours = take_turns({"layers": from_layers}, rounds).median("layers")
    reference, seconds = from_full_masks()
    different = int((from_layers() != reference).sum())
    return {"seconds": ours, "reference_seconds": seconds, "different": different, "pixels": reference.numel()}


def measure_step(cells: int, side: int, rounds: int) -> dict[str, Any]:
    import torch

    sample, model = dense_sample(cells, side), small_model(cells, training=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    before = held_memory()

    def step() -> None:
        loss = sum(model([sample]).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    seconds = take_turns({"step": step}, rounds).median("step")
    grid = model.proposal_generator.anchor_generator(
        [(side // stride, side // stride) for stride in (4, 8, 16, 32, 64)]
    )
    return {
        "seconds": seconds,
        "peak": peak_memory(),
        "before": before,
        "matching": time_of(lambda: model.proposal_generator.matcher.match_anchors(_boxes(sample), grid)),
        "matrix": len(sample.layers) * len(grid.boxes) * 4,
    }


def _boxes(sample: Any) -> Any:
    import torch

    return torch.from_numpy(sample.layers.boxes())


def measure_predict(cells: int, side: int, rounds: int) -> dict[str, Any]:
    from detseg.structures.predictions import Predictions

    sample, model = dense_sample(cells, side), small_model(cells, training=False)
    before = held_memory()
    found = model.predict([sample.image])[0]
    given = [Predictions(0, "", side, side, sample.layers.boxes(), np.ones(len(sample.classes)), sample.classes)]
    timing = take_turns(
        {"found": lambda: model.predict([sample.image]), "given": lambda: model.predict_masks([sample.image], given)},
        rounds,
    )
    median_side = float(np.median(np.sqrt((found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1))))
    return {
        "detections": len(found),
        "side": median_side,
        "seconds": timing.median("found"),
        "given_seconds": timing.median("given"),
        "peak": peak_memory(),
        "before": before,
    }


def cell_masks(cells: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth probabilities (N, 28, 28) float32 in boxes (N, 4) about the cells."""
    sample = dense_sample(cells, side)
    random = np.random.default_rng(0)
    boxes = sample.layers.boxes() + random.normal(0, 1, (len(sample.layers), 4)).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    y, x = (np.mgrid[:MASK_SIZE, :MASK_SIZE] + 0.5) / MASK_SIZE - 0.5
    radius = random.uniform(0.35, 0.5, (len(boxes), 1, 1))
    probabilities = 1 / (1 + np.exp(30 * (np.sqrt(x**2 + y**2) - radius)))
    return probabilities.astype(np.float32), boxes.clip(0, side).astype(np.float32)


def measure_paste(cells: int, side: int, rounds: int) -> dict[str, Any]:
    from detseg.models.paste import paste_masks

    probabilities, boxes = cell_masks(cells, side)
    before = held_memory()
    rles, _ = paste_masks(probabilities, boxes, side, side)
    seconds = take_turns({"paste": lambda: paste_masks(probabilities, boxes, side, side)}, rounds).median("paste")
    return {"seconds": seconds, "peak": peak_memory(), "before": before, "counts": [_text(rle) for rle in rles]}


def measure_paste_full(cells: int, side: int) -> dict[str, Any]:
    from pycocotools import mask as mask_tools

    probabilities, boxes = cell_masks(cells, side)
    before = held_memory()
    start = time.perf_counter()
    masks = _paste_full_size(probabilities, boxes, side)
    pasted = time.perf_counter()
    rles = [mask_tools.encode(np.array(mask[:, :, None], order="F", dtype=np.uint8))[0] for mask in masks]
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "paste_seconds": pasted - start,
        "peak": peak_memory(),
        "before": before,
        "counts": [_text(rle) for rle in rles],
    }


def _paste_full_size(probabilities: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """Return (N, side, side) bool: every mask sampled at the centres of the pixels about its box."""
    import torch
    import torch.nn.functional as F

    masks = torch.zeros((len(boxes), side, side), dtype=torch.bool)
    for index, (probability, box) in enumerate(zip(torch.from_numpy(probabilities), boxes.tolist(), strict=True)):
        x0, y0 = max(int(np.floor(box[0])) - 1, 0), max(int(np.floor(box[1])) - 1, 0)
        x1, y1 = min(int(np.ceil(box[2])) + 1, side), min(int(np.ceil(box[3])) + 1, side)
        x = (torch.arange(x0, x1) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(y0, y1) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack((x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)
        values = F.grid_sample(probability[None, None], grid[None], align_corners=False)[0, 0]
        masks[index, y0:y1, x0:x1] = values >= 0.5
    return masks.numpy()


def _text(rle: dict[str, Any]) -> str:
    return rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]


def time_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "targets": lambda options: measure_targets(options.cells, options.side),
    "mask_targets": lambda options: measure_mask_targets(options.cells, options.side, options.rounds),
    "step": lambda options: measure_step(options.cells, options.side, options.rounds),
    "predict": lambda options: measure_predict(options.cells, options.side, options.rounds),
    "paste": lambda options: measure_paste(options.cells, options.side, options.rounds),
    "paste_full": lambda options: measure_paste_full(options.cells, options.side),
}


def run_part(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a new process."""
    words = [sys.executable, __file__, "--cells", str(options.cells), "--side", str(options.side)]
    words += ["--rounds", str(options.rounds), "--child", name]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit(f"{name} failed:\n{answer.stderr}")
    return json.loads(answer.stdout.splitlines()[-1])


def report(name: str, result: dict[str, Any], earlier: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """One or two lines about the result of a part."""
    if name == "targets":
        full = result["objects"] * options.side**2
        return (
            f"{result['objects']} objects in {result['layers']} layers: {result['bytes'] / MIB:.1f} MiB of targets "
            f"(goal {TARGETS_GOAL // MIB} MiB: {verdict(result['bytes'] < TARGETS_GOAL)}), made in "
            f"{result['seconds']:.3f} s; full masks {full / MIB:.0f} MiB"
        )
    if name == "mask_targets":
        return (
            f"{PROPOSALS} proposals {result['seconds']:.4f} s; full masks {result['reference_seconds']:.2f} s = "
            f"{result['reference_seconds'] / result['seconds']:.0f} x; {result['different']} of {result['pixels']} "
            "pixels differ"
        )
    memory = f"peak {result['peak'] / MIB:.0f} MiB, {(result['peak'] - result['before']) / MIB:.0f} MiB above the start"
    if name == "step":
        return (
            f"{result['seconds']:.2f} s; {memory} "
            f"(goal {STEP_GOAL // MIB} MiB: {verdict(result['peak'] < STEP_GOAL)})\n"
            f"             anchors matched in {result['matching']:.3f} s; the matrix of all IoUs alone would be "
            f"{result['matrix'] / MIB:.0f} MiB"
        )
    if name == "predict":
        return (
            f"{result['detections']} detections (median side {result['side']:.0f} pixels) to run-lengths "
            f"{result['seconds']:.2f} s; for given boxes {result['given_seconds']:.2f} s; {memory}"
        )
    if name == "paste":
        return f"{len(result['counts'])} masks {result['seconds']:.3f} s; {memory}"
    text = f"{len(result['counts'])} masks {result['seconds']:.2f} s, pasting {result['paste_seconds']:.2f} s; {memory}"
    if "paste" in earlier:
        same = sum(a == b for a, b in zip(result["counts"], earlier["paste"]["counts"], strict=True))
        text += f"\n             {result['seconds'] / earlier['paste']['seconds']:.0f} x the time of ours; "
        text += f"{same} of {len(result['counts'])} run-lengths are identical"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--child", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(PARTS[options.child](options)))
        return
    print(machine("torch", "torchvision", "numpy", "pycocotools"))
    results: dict[str, dict[str, Any]] = {}
    for name in options.parts:
        results[name] = run_part(name, options)
        print(f"{name:12} {report(name, results[name], results, options)}", flush=True)


if __name__ == "__main__":
    main()
