"""Training steps of the DSB2018 configurations on a processor: the narrow ResNet-18 and EfficientNet-Lite0.

    OMP_NUM_THREADS=1 python benchmarks/timm_backbone.py [--rounds 5]

Forward, backward and the optimizer's step of the same four crops, in turns. lite0 as it trains by default; with
torch's own backward pass of depthwise convolutions in place of detseg's, in prefer_speed's layout of memory and in
torch's; with fixed statistics (MODEL.TIMM.NORM FrozenBN); and with the stages up to stride 4 frozen
(MODEL.BACKBONE.FREEZE_AT 2), which have no backward pass. Processor time, which other programs change least: with
one thread that of a quiet machine. The weights do not matter here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from measuring import machine, take_turns
from rcnn_speed import make_samples

from detseg.config import load_config
from detseg.engines.build import build_model
from detseg.models.depthwise import DepthwiseConv2d
from detseg.models.rcnn.generalized_rcnn import GeneralizedRCNN
from detseg.structures.sample import Sample

SMALL, LITE = "configs/dsb2018/mask_rcnn_small_FPN.yaml", "configs/dsb2018/mask_rcnn_lite0_FPN.yaml"
FROZEN, FREEZE = ["MODEL.TIMM.NORM", "FrozenBN"], ["MODEL.BACKBONE.FREEZE_AT", "2"]
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "narrow ResNet-18": (SMALL, []),
    "lite0": (LITE, []),
    "lite0, torch's backward": (LITE, []),
    "lite0, contiguous, torch's backward": (LITE, []),
    "lite0, FrozenBN": (LITE, FROZEN),
    "lite0, FREEZE_AT 2": (LITE, FREEZE),
    "lite0, FREEZE_AT 2, FrozenBN": (LITE, FREEZE + FROZEN),
}


def make_step(
    name: str, samples: Sequence[Sample], dtype: torch.dtype | None
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a training step, and the forward and backward pass of its bottom-up network alone."""
    config, words = VARIANTS[name]
    torch.manual_seed(0)
    model = build_model(
        load_config(config, ["MODEL.ENGINE", "native", "MODEL.ROI_HEADS.NUM_CLASSES", "3", *words])
    ).train()
    assert isinstance(model, GeneralizedRCNN)
    if "contiguous" not in name:
        model.prefer_speed()
    if "torch's" in name:
        for layer in model.modules():
            if isinstance(layer, DepthwiseConv2d):
                layer.fast = False
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5, fused=True)
    images = model.image_input([sample.image for sample in samples], torch.device("cpu")).tensor
    autocast = torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            losses = model(samples)
        sum(losses.values()).backward()
        optimizer.step()

    def bottom_up() -> None:
        with autocast:
            maps = model.backbone.bottom_up(images)
        sum(one.float().mean() for one in maps.values()).backward()

    return step, bottom_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="side of the crops in pixels (default: %(default)s)")
    arguments = parser.parse_args()
    print(machine("torch", "timm"))
    samples = make_samples(arguments.size, arguments.size, 4, 28)
    for dtype in (torch.bfloat16, None):
        parts = {name: make_step(name, samples, dtype) for name in VARIANTS}
        step, bottom_up = (
            take_turns({name: part[which] for name, part in parts.items()}, arguments.rounds, clock=time.process_time)
            for which in (0, 1)
        )
        print(f"\n{'float32' if dtype is None else 'bfloat16'}: 4 crops of {arguments.size} x {arguments.size}")
        for name in VARIANTS:
            ratio, least, most = step.ratio(name, "narrow ResNet-18")
            print(
                f"  {name:36} step {step.median(name):.3f} s, {ratio:.2f} [{least:.2f}, {most:.2f}] x the ResNet-18; "
                f"bottom-up network {bottom_up.median(name):.3f} s"
            )


if __name__ == "__main__":
    main()
