"""Pasting against torch's grid_sample over the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detseg.models.paste import paste_masks
from detseg.structures.predictions import soft_mask_window
from detseg.structures.rle import decode


def over_the_whole_image(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask stretched over its box, read at the centre of every pixel of the image, in double precision."""
    answers = []
    for mask, (x0, y0, x1, y1) in zip(masks.astype(np.float64), boxes.astype(np.float64), strict=True):
        x = (np.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (np.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.from_numpy(np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1))
        answers.append(F.grid_sample(torch.from_numpy(mask)[None, None], grid[None], align_corners=False)[0, 0].numpy())
    return np.stack(answers)


def random_case(
    count: int, height: int, width: int, sides: tuple[float, float], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 28, 28), dtype=np.float32)
    corner = rng.uniform(-5, [width, height], (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(*sides, (count, 2))], axis=1).astype(np.float32)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    keep = (boxes[:, 2] - boxes[:, 0] > 0.01) & (boxes[:, 3] - boxes[:, 1] > 0.01)
    return masks[keep], boxes[keep]


@pytest.mark.parametrize("sides", [(0.2, 3), (5, 40), (60, 200)])
def test_as_over_the_whole_image(sides: tuple[float, float]) -> None:
    height, width = 90, 110
    masks, boxes = random_case(40, height, width, sides, seed=3)
    expected = over_the_whole_image(masks, boxes, height, width)
    got = np.stack([decode(rle) for rle in paste_masks(masks, boxes, height, width)[0]])
    clear = np.abs(expected - 0.5) > 1e-4
    np.testing.assert_array_equal(got[clear], (expected >= 0.5)[clear])


def test_soft_masks_are_the_probabilities_of_the_pixels_of_the_box() -> None:
    height, width = 60, 70
    masks, boxes = random_case(20, height, width, (3, 50), seed=5)
    expected = over_the_whole_image(masks, boxes, height, width)
    crops = paste_masks(masks, boxes, height, width, soft_masks=True)[1]
    for soft, probability, box in zip(crops, expected, boxes, strict=True):
        x0, y0, x1, y1 = soft_mask_window(box, height, width)
        assert soft.dtype == np.uint8
        assert soft.shape == (y1 - y0, x1 - x0)
        np.testing.assert_allclose(soft, probability[y0:y1, x0:x1] * 255, atol=0.51)


def test_a_full_mask_covers_the_pixels_whose_centres_lie_in_the_box() -> None:
    full = np.ones((1, 28, 28), dtype=np.float32)
    mask = decode(paste_masks(full, np.array([[2.0, 3.0, 7.4, 9.6]], dtype=np.float32), 12, 10)[0][0])
    expected = np.zeros((12, 10), dtype=bool)
    expected[3:10, 2:7] = True
    np.testing.assert_array_equal(mask, expected)


def test_an_empty_box_and_no_box() -> None:
    rles, _ = paste_masks(np.ones((1, 28, 28), dtype=np.float32), np.array([[5, 5, 5, 9]], dtype=np.float32), 20, 20)
    assert not decode(rles[0]).any()
    nothing = np.zeros((0, 28, 28), dtype=np.float32), np.zeros((0, 4), dtype=np.float32)
    assert paste_masks(*nothing, 20, 20, soft_masks=True) == ([], [])


def test_a_larger_threshold_leaves_fewer_pixels() -> None:
    masks, boxes = random_case(10, 50, 50, (10, 30), seed=1)
    half, most = (sum(decode(r).sum() for r in paste_masks(masks, boxes, 50, 50, threshold=t)[0]) for t in (0.5, 0.7))
    assert 0 < most < half
