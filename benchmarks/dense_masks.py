"""What a cheaper mask head saves on an image of 1024 x 1024 with 2,000 objects; what is network, and what is code.

    python benchmarks/dense_masks.py --threads 2
    python benchmarks/dense_masks.py --threads 1 --processor-time --formats bfloat16

Every base of configs/_base_ is built as it is and with configs/_base_/dense.yaml beside it. Weights are random, so that
2,000 detections of about a cell's size, nothing cut by its score, end in run-lengths. Both are timed in turns, by the
clock or, on a busy machine, by processor time; medians, and in brackets the smallest and largest ratio of a single
round. `network`: backbone, RPN, heads and the pooling of regions; `code`: proposals, detections, pasting and
run-lengths, everything else.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import machine, take_turns, verdict

from detseg.config import load_config
from detseg.curation.synthetic import make_image
from detseg.engines.build import build_model

CONFIGS = Path(__file__).parent.parent / "configs" / "_base_"
SIDE, OBJECTS, GOAL = 1024, 2000, 4.0
NETWORK = ("backbone", "proposal_generator", "roi_heads.box_pooler", "roi_heads.box_head", "roi_heads.box_predictor")
MASKS = ("roi_heads.mask_pooler", "roi_heads.mask_head")


def build(base: str, dense: bool) -> Any:
    """The model of a base with random weights, which finds OBJECTS objects."""
    keys: dict[str, Any] = {
        "MODEL.ROI_HEADS.NUM_CLASSES": 3,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "TEST.DETECTIONS_PER_IMAGE": OBJECTS,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[12], [16], [20], [24], [28]],
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "BN",  # random weights have no statistics to be frozen
    }
    if dense:
        head = load_config(CONFIGS / "dense.yaml").MODEL.ROI_MASK_HEAD
        keys |= {f"MODEL.ROI_MASK_HEAD.{name}": head[name] for name in ("NUM_CONV", "CONV_DIM")}
    torch.manual_seed(0)
    words = [str(word) for pair in keys.items() for word in pair]
    model = build_model(load_config(CONFIGS / f"{base}.yaml", words)).prefer_speed().eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("conv3.norm"):  # keep the sums of the blocks from growing
                module.weight.fill_(0.2)
    return model


def watch(model: Any, seconds: dict[str, float], clock: Callable[[], float]) -> None:
    """Add up what the parts of the network take; mask heads are called by another method than forward."""
    for name in (*NETWORK, *MASKS):
        module = model.get_submodule(name)
        method = "logits_of" if name.endswith("mask_head") else "forward"
        setattr(module, method, _timed(getattr(module, method), name, seconds, clock))


def _timed(
    function: Callable[..., Any], name: str, seconds: dict[str, float], clock: Callable[[], float]
) -> Callable[..., Any]:
    def timed(*words: Any) -> Any:
        start = clock()
        answer = function(*words)
        seconds[name] += clock() - start
        return answer

    return timed


def compare(base: str, dtype: str, rounds: int, clock: Callable[[], float]) -> None:
    """Time a base as it is and with the cheaper head."""
    image = np.ascontiguousarray(make_image(0, SIDE, SIDE, OBJECTS, channels=3)[0])
    parts: dict[str, list[dict[str, float]]] = defaultdict(list)
    variants = {}
    for name in ("as it is", "dense.yaml"):
        model, seconds = build(base, name == "dense.yaml"), defaultdict(float)
        watch(model, seconds, clock)

        def predict(model: Any = model, seconds: dict[str, float] = seconds, name: str = name) -> None:
            seconds.clear()
            precise = dtype == "float32"
            with nullcontext() if precise else torch.autocast("cpu", dtype=getattr(torch, dtype)):
                (found,) = model.predict([image])
            assert len(found) == OBJECTS
            parts[name].append(dict(seconds))

        variants[name] = predict
    timing = take_turns(variants, rounds, clock=clock)
    for name in variants:
        of_parts = {part: median(one[part] for one in parts[name][1:]) for part in (*NETWORK, *MASKS)}
        whole, network = timing.median(name), sum(of_parts.values())
        goal = f"goal {GOAL}: {verdict(whole <= GOAL)}" if clock is time.perf_counter else "processor time"
        masks = " + ".join(f"{of_parts[part]:.2f}" for part in MASKS)
        print(
            f"{base}, {dtype}, {name}: {whole:.2f} s ({goal}); network {network:.2f} s, "
            f"of it pooling for masks + mask head {masks} s; code {whole - network:.2f} s"
        )
    ratio, least, most = timing.ratio(*variants)
    print(f"    {ratio:.2f} x as fast [{least:.2f} .. {most:.2f}]", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="+", default=["mask_rcnn_fpn", "mask_rcnn_small_fpn"])
    parser.add_argument("--formats", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="torch's default without it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="of all threads, in place of the clock's")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{machine('torch', 'numpy')}; {torch.get_num_threads()} threads")
    for base in arguments.bases:
        for dtype in arguments.formats:
            compare(base, dtype, arguments.rounds, clock)


if __name__ == "__main__":
    main()
