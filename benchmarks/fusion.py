"""How long fusing many predictions of one dense image takes, beside plain NumPy and what one would pick instead.

    python benchmarks/fusion.py [--objects 800] [--members 24] [--candidates 1000] [--rounds 3] [--plain 200]

The image is 520 x 704 with `--objects` simulated cells; each of `--members` (6 models x 4 flips) sees them a little
moved and scaled, misses some and doubles others, `--candidates` each, with soft masks. Predictions are in memory, masks
as run-lengths, as a Predictions file gives them. Times are of one core: processor time, which other programs on the
machine hardly lengthen.

NMS over full-size boolean masks takes a mask of 366,080 pixels a candidate, 8.8 GB for all, and time that grows with
their square: it is timed on the `--plain` best candidates, and detseg on the same; the ratio is of these.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from measuring import MIB, held_memory, machine, peak_memory, verdict

from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.fusion.overlaps import resolve_overlaps
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 520, 704
SECONDS, TIMES, MEMORY = 1.0, 20, 500 * MIB

METHODS = {
    "nms, mask IoU": FusionOptions(overlap="mask_iou"),
    "nms, mask IoU, pixel vote": FusionOptions(overlap="mask_iou", masks="vote"),
    "wbf, box IoU, mean masks": FusionOptions(method="wbf", threshold=0.55, masks="mean"),
    "wbf, mask IoU, mean masks": FusionOptions(method="wbf", overlap="mask_iou", masks="mean"),
    "soft-nms, mask IoU": FusionOptions(method="soft_nms", overlap="mask_iou"),
    "nms, box IoU": FusionOptions(),
}
WITH_GOAL = ("nms, mask IoU", "wbf, box IoU, mean masks", "wbf, mask IoU, mean masks")


def make_members(objects: int, members: int, candidates: int, seed: int = 0) -> list[Predictions]:
    """Return what every member says about one image."""
    random = np.random.default_rng(seed)
    rows = round((objects * HEIGHT / WIDTH) ** 0.5)
    columns = -(-objects // rows)
    row, column = np.divmod(np.arange(objects), columns)
    centres = np.stack([(column + 0.5) * WIDTH / columns, (row + 0.5) * HEIGHT / rows], axis=1)
    centres += random.uniform(-3, 3, centres.shape)
    radii = random.uniform(7, 13, (objects, 2))
    turns = random.uniform(0, np.pi, objects)
    result = []
    for _ in range(members):
        seen = np.flatnonzero(random.random(objects) < 0.95)
        seen = np.concatenate([seen, random.integers(0, objects, max(candidates - len(seen), 0))])
        found = [
            _cell(centres[index] + random.normal(0, 0.8, 2), radii[index] * random.uniform(0.9, 1.1, 2), turns[index])
            for index in seen
        ]
        crops, soft_masks = zip(*found, strict=True)
        rles = rle_codec.encode_crops(crops, HEIGHT, WIDTH)
        boxes, scores = rle_codec.bounding_boxes(rles), random.uniform(0.05, 1, len(seen))
        result.append(Predictions(1, "", HEIGHT, WIDTH, boxes, scores, np.zeros(len(seen)), rles, list(soft_masks)))
    return result


def _cell(centre: np.ndarray, radii: np.ndarray, turn: float) -> tuple[tuple[np.ndarray, int, int], np.ndarray]:
    """Return mask (crop, x0, y0) and soft mask of an ellipse that fades at its border; both tight."""
    reach = radii.max() + 1
    x0, y0 = np.maximum((centre - reach).astype(int), 0)
    x1, y1 = np.minimum((centre + reach).astype(int) + 1, [WIDTH, HEIGHT])
    y, x = np.mgrid[y0:y1, x0:x1] + 0.5
    right, down = x - centre[0], y - centre[1]
    along, across = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
    distance = np.hypot(along / radii[0], across / radii[1])
    probability = 1 / (1 + np.exp((distance - 1) * 8))
    mask = probability >= 0.5
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    tight = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    soft = np.rint(probability[tight] * 255).astype(np.uint8)
    return (mask[tight], int(x0 + columns[0]), int(y0 + rows[0])), soft


def plain_nms(predictions: Predictions, threshold: float) -> np.ndarray:
    """NMS over full-size boolean masks, as one writes it in NumPy; return the kept indices."""
    masks = np.stack([rle_codec.decode(rle) for rle in predictions.rles]).reshape(len(predictions), -1)
    areas = masks.sum(axis=1)
    left = np.argsort(-predictions.scores, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        shared = (masks[left] & masks[best]).sum(axis=1)
        left = left[shared / (areas[left] + areas[best] - shared) <= threshold]
    return np.array(kept)


def all_pairs_nms(predictions: Predictions, threshold: float) -> np.ndarray:
    """NMS over pycocotools' table of the IoUs of all pairs; return the kept indices."""
    from pycocotools import mask as coco_mask

    order = np.argsort(-predictions.scores, kind="stable")
    rles = [predictions.rles[index] for index in order]
    table = coco_mask.iou(rles, rles, [0] * len(rles))
    left = np.ones(len(rles), dtype=bool)
    kept = []
    for index in range(len(rles)):
        if left[index]:
            kept.append(order[index])
            left &= table[index] <= threshold
    return np.array(kept)


def seconds_of(function: Callable[[], object], rounds: int) -> tuple[float, object]:
    """Return the shortest processor time of some rounds, and the result."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


def all_of(members: list[Predictions]) -> Predictions:
    """Return the detections of all members in one list."""
    return Predictions(
        1,
        "",
        HEIGHT,
        WIDTH,
        np.concatenate([member.boxes for member in members]),
        np.concatenate([member.scores for member in members]),
        np.concatenate([member.classes for member in members]),
        [rle for member in members for rle in member.rles],
    )


def compare(members: list[Predictions], plain: int, rounds: int) -> None:
    """Print the ratios to other ways."""
    everything = all_of(members)
    best = everything.select(np.argsort(-everything.scores, kind="stable")[:plain])
    options = METHODS["nms, mask IoU"]
    slow, kept = seconds_of(lambda: plain_nms(best, options.threshold), 1)
    fast, fused = seconds_of(lambda: fuse([best], options), rounds)
    same = "the same detections" if sorted(best.scores[kept]) == sorted(fused.scores) else "OTHER DETECTIONS"
    print(f"\nof the {len(best)} best, {same}:")
    print(
        f"  full-size masks in NumPy   {slow:8.3f} s = {slow / fast:6.0f} x   "
        f"(goal {TIMES} x: {verdict(slow > TIMES * fast)})"
    )
    slow, _ = seconds_of(lambda: all_pairs_nms(best, options.threshold), 1)
    print(
        f"  pycocotools, all pairs     {slow:8.3f} s = {slow / fast:6.0f} x\n  detseg                     {fast:8.3f} s"
    )
    try:
        import ensemble_boxes
    except ImportError:
        return
    size = np.array([WIDTH, HEIGHT] * 2)
    boxes = [member.boxes.astype(np.float64) / size for member in members]
    scores, classes = [member.scores for member in members], [member.classes for member in members]
    slow, _ = seconds_of(lambda: ensemble_boxes.weighted_boxes_fusion(boxes, scores, classes, iou_thr=0.55), 1)
    alone = [Predictions(1, "", HEIGHT, WIDTH, member.boxes, member.scores, member.classes) for member in members]
    fast, _ = seconds_of(lambda: fuse(alone, FusionOptions(method="wbf", threshold=0.55)), rounds)
    print(f"\nwbf of all {len(everything)} boxes without masks:")
    print(
        f"  ensemble-boxes             {slow:8.3f} s = {slow / fast:6.1f} x\n  detseg                     {fast:8.3f} s"
    )


def measure_memory(objects: int, members: int, candidates: int) -> None:
    """Print the peak of this process, to be run alone: members are made, then fused by each method with a goal."""
    cases = make_members(objects, members, candidates)
    before = held_memory()
    for name in WITH_GOAL:
        fuse(cases, METHODS[name])
    peak = peak_memory()
    print(
        f"memory: peak {peak / MIB:.0f} MiB (goal {MEMORY / MIB:.0f}: {verdict(peak < MEMORY)}), of which "
        f"{before / MIB:.0f} Python, NumPy and the predictions themselves"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=800)
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--candidates", type=int, default=1000, help="of each member")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", type=int, default=200, help="candidates for the comparison with full-size masks")
    parser.add_argument("--memory", action="store_true", help="measure memory alone (done in a process of its own)")
    arguments = parser.parse_args()
    size = arguments.objects, arguments.members, arguments.candidates
    if arguments.memory:
        measure_memory(*size)
        return
    print(machine("numpy", "scipy", "pycocotools"))
    members = make_members(*size)
    print(f"one image of {HEIGHT} x {WIDTH}, {size[0]} cells, {size[1]} members, {sum(map(len, members))} candidates\n")
    for name, options in METHODS.items():
        seconds, fused = seconds_of(lambda options=options: fuse(members, options), arguments.rounds)
        goal = f"   (goal {SECONDS:.0f} s: {verdict(seconds < SECONDS)})" if name in WITH_GOAL else ""
        print(f"{name:27}{seconds:8.3f} s  {len(fused):6} objects{goal}")
    fused = fuse(members, METHODS["wbf, box IoU, mean masks"])
    for policy in ("score", "probability", "watershed"):
        seconds, _ = seconds_of(lambda policy=policy: resolve_overlaps(fused, policy=policy), arguments.rounds)
        print(f"{'disjoint, by ' + policy:27}{seconds:8.3f} s")
    compare(members, arguments.plain, arguments.rounds)
    print(flush=True)
    words = ["--memory", "--objects", *map(str, (size[0], "--members", size[1], "--candidates", size[2]))]
    subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
