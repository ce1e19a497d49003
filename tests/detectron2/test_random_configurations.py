"""Random configurations in both engines; benchmarks/random_parity.py compares as many as one likes."""

from __future__ import annotations

import pytest
import torch
from detectron2_cases import require_detectron2

require_detectron2()

from random_cases import answer_of, compare, differences, draw, steps_beyond


@pytest.mark.parametrize(("seed", "wide", "steps"), [*((seed, False, 3) for seed in range(9)), (0, True, 1)])
def test_native_is_no_further_from_detectron2_than_detectron2_from_itself(seed: int, wide: bool, steps: int):
    """Boxes, scores, masks, losses, gradients and some steps of training; as it is, and as fast as commands run it."""
    torch.set_num_threads(1)
    drawn = draw(seed, wide=wide)
    assert not compare(drawn, steps).beyond(), drawn.keys


def test_a_difference_would_be_seen():
    drawn = draw(0)
    drawn.keys["MODEL.RPN.NMS_THRESH"] = 0.5
    other = draw(0)
    other.keys["MODEL.RPN.NMS_THRESH"] = 0.6
    torch.manual_seed(0)
    theirs, ours = drawn.model("detectron2"), other.model("native")
    ours.load_state_dict(theirs.state_dict())
    found = differences(*(answer_of(model, drawn.samples) for model in (theirs, ours)))
    assert found["losses"] > 1e-4


def test_bounds_of_steps_grow_with_those_of_detectron2():
    assert steps_beyond([1e-6, 1e-5, 1e-5], [0.0, 1e-5, 0.0]) == []
    assert [text[:6] for text in steps_beyond([1e-5, 1e-5], [0.0, 0.0])] == ["step 1", "step 2"]
