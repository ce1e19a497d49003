"""A whole training step on one dense image stays within the memory of a small machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LIMIT = 2_000_000_000

PROGRAM = """
import sys, resource
import numpy as np, torch
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample
from models_for_tests import small_model

torch.set_num_threads(1)
rng = np.random.default_rng(0)
side, count = 1024, 2000
labels = np.zeros((side, side), dtype=np.int32)
y, x = np.mgrid[-9:10, -9:10]
disk = y**2 + x**2 < 81
for index in range(count):
    row, column = divmod(index, 45)
    top, left = row * 22 + rng.integers(0, 4), column * 22 + rng.integers(0, 4)
    labels[top : top + 19, left : left + 19][disk] = index + 1
layers = LabelLayers.from_label_image(labels)
assert len(layers) == count
image = (rng.normal(60, 10, (side, side, 3)) + 100 * (labels > 0)[..., None]).clip(0, 255).astype(np.uint8)
sample = Sample(image, layers, np.zeros(count, dtype=np.int64))
model = small_model(
    MODEL__RESNETS__STEM_OUT_CHANNELS=32, MODEL__RESNETS__RES2_OUT_CHANNELS=32, MODEL__FPN__OUT_CHANNELS=64,
    MODEL__RPN__PRE_NMS_TOPK_TRAIN=4000, MODEL__RPN__POST_NMS_TOPK_TRAIN=2000, MODEL__RPN__BATCH_SIZE_PER_IMAGE=512,
    MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=512, MODEL__ROI_BOX_HEAD__FC_DIM=256, MODEL__ROI_MASK_HEAD__CONV_DIM=64,
    MODEL__ROI_MASK_HEAD__NUM_CONV=4,
)
if "fast" in sys.argv:
    model.prefer_speed()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(2):
    losses = model([sample])
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
assert all(torch.isfinite(loss) for loss in losses.values())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
if sys.platform == "linux":  # there, what the process that started this one held counts as this one's, too
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(peak)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource.getrusage")
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_two_thousand_objects_on_one_image(mode: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1])))}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < LIMIT, f"the peak is {int(result.stdout) / 1e9:.2f} GB"
