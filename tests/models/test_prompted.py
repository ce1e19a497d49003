"""Prompts, windows, gates and merging with a stand-in for Segment Anything whose masks are known."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from small_sams import rectangle
from torch import Tensor

from detseg.errors import ConfigError
from detseg.models.prompted.options import GateOptions, PromptOptions, RefineOptions
from detseg.models.prompted.prompts import INSIDE, NONE, OUTSIDE, Prompts, deepest_points, make_prompts
from detseg.models.prompted.refine import refine
from detseg.models.prompted.sam import as_rgb
from detseg.models.prompted.sharpness import sharpness
from detseg.models.prompted.windows import windows_of_boxes
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop
from detseg.structures.predictions import Predictions, soft_mask_windows

pytest.importorskip("transformers")


class Stand:
    """Its mask of a prompt is the bright component of the window under the first point, or under the box's middle.

    quality, stability: what it says of all its masks; a stability of 0.5 by a margin around each of half its area.
    """

    def __init__(self, quality: float = 0.9, weak: int = 0) -> None:
        self.quality, self.weak = quality, weak
        self.windows: list[np.ndarray] = []
        self.batches: list[int] = []

    def embed(self, window: np.ndarray) -> list:
        self.windows.append(window)
        return [window]

    def masks(self, embedding: list, prompts: Prompts, size: tuple, multimask: bool) -> tuple[Tensor, Tensor]:
        (window,) = embedding
        assert window.shape[:2] == size
        _, labels = cv2.connectedComponents((window[:, :, 0] > 127).astype(np.uint8))
        if prompts.points is None:
            points = (prompts.boxes[:, :2] + prompts.boxes[:, 2:]) / 2
        else:
            assert (prompts.labels[:, 0] == INSIDE).all()
            points = prompts.points[:, 0]
        self.batches.append(len(points))
        x, y = points.astype(int).T
        own = labels[y.clip(max=size[0] - 1), x.clip(max=size[1] - 1)]
        masks = (labels[None] == own[:, None, None]) & (own[:, None, None] > 0)
        side = max(size)
        logits = np.full((len(points), side, side), -9, np.float32)
        logits[:, : size[0], : size[1]][masks] = 9
        if self.weak:
            square = np.ones((2 * self.weak + 1,) * 2, np.uint8)
            for one, mask in zip(logits, masks, strict=True):
                near = cv2.dilate(mask.astype(np.uint8), square) > mask
                one[: size[0], : size[1]][near] = -0.5
        return torch.from_numpy(logits)[:, None], torch.full((len(points), 1), self.quality)


def bright(shape: tuple[int, int], *rectangles: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((*shape, 1), np.uint8)
    for x0, y0, x1, y1 in rectangles:
        image[y0:y1, x0:x1] = 200
    return image


def of_crops(shape: tuple[int, int], crops: list[MaskCrop], scores: list[float] | None = None) -> Predictions:
    boxes = np.array([crop.box for crop in crops], np.float32).reshape(-1, 4)
    scores = [0.9 - 0.1 * i for i in range(len(crops))] if scores is None else scores
    return Predictions(3, "a.png", *shape, boxes, scores, np.zeros(len(crops)), rle_codec.encode_crops(crops, *shape))


def masks_of(predictions: Predictions) -> list[np.ndarray]:
    return [rle_codec.decode(rle).astype(bool) for rle in predictions.rles]


OPTIONS = RefineOptions()


# prompts


def test_points_are_the_deepest_and_negatives_those_of_near_neighbours() -> None:
    crops = [rectangle(10, 10, 21, 21), rectangle(22, 10, 33, 21), rectangle(90, 90, 95, 95)]
    boxes = np.array([crop.box for crop in crops], np.float32)
    prompts = make_prompts(boxes, crops, PromptOptions())
    assert prompts.labels.tolist() == [[INSIDE, OUTSIDE], [INSIDE, OUTSIDE], [INSIDE, NONE]]
    assert prompts.points[0].tolist() == [[15.5, 15.5], [27.5, 15.5]]
    assert prompts.points[1].tolist() == [[27.5, 15.5], [15.5, 15.5]]
    assert np.array_equal(prompts.boxes, boxes)
    only_boxes = make_prompts(boxes, crops, PromptOptions(kinds=("box",)))
    assert only_boxes.points is only_boxes.labels is None
    without_negatives = make_prompts(boxes, crops, PromptOptions(kinds=("point",), negatives=0))
    assert without_negatives.points.shape == (3, 1, 2)
    assert without_negatives.boxes is None
    assert make_prompts(boxes, None, PromptOptions()).points[2, 0].tolist() == [92.5, 92.5]


def test_a_neighbour_inside_the_object_is_no_negative_point() -> None:
    crops = [rectangle(0, 0, 40, 40), rectangle(5, 5, 12, 12), rectangle(41, 0, 60, 40)]
    prompts = make_prompts(np.array([crop.box for crop in crops], np.float32), crops, PromptOptions())
    outside = prompts.points[0][prompts.labels[0] == OUTSIDE]
    assert len(outside) == 1
    assert outside[0, 0] > 41


def test_several_points_of_a_long_object_are_apart_and_inside() -> None:
    mask = np.zeros((30, 60), bool)
    mask[3:12, 2:58] = mask[3:28, 2:11] = True
    points = deepest_points(MaskCrop(mask, 100, 7), 3)
    assert len(points) == 3
    assert mask[(points[:, 1] - 7).astype(int), (points[:, 0] - 100).astype(int)].all()
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert apart[np.triu_indices(3, 1)].min() > 5
    assert len(deepest_points(MaskCrop(np.ones((1, 1), bool), 0, 0), 5)) == 1


def test_prompts_of_a_window_lose_points_outside_of_it() -> None:
    prompts = Prompts(np.float32([[[5, 5], [50, 5]]]), np.array([[INSIDE, OUTSIDE]]), np.float32([[-3, 2, 30, 9]]))
    inside = prompts.within(np.array([0]), (2, 1, 22, 21))
    assert inside.labels.tolist() == [[INSIDE, NONE]]
    assert inside.points[0, 0].tolist() == [3, 4]
    assert inside.boxes.tolist() == [[0, 1, 20, 8]]


# windows


def test_every_box_is_whole_in_one_window_however_large() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 290, (300, 2))
    boxes = np.concatenate([low, np.minimum(low + rng.uniform(1, 180, (300, 2)), 300)], axis=1)
    seen = np.zeros(300, int)
    for (x0, y0, x1, y1), indices in windows_of_boxes(300, 300, boxes, tile=96, overlap=32):
        seen[indices] += 1
        assert 0 <= x0 < x1 <= 300
        assert 0 <= y0 < y1 <= 300
        own = boxes[indices]
        assert (own >= np.array([x0, y0, x0, y0])).all()
        assert (own <= np.array([x1, y1, x1, y1])).all()
    assert (seen == 1).all()


@pytest.mark.parametrize("options", [OPTIONS, RefineOptions(tile=48, overlap=24), RefineOptions(tile=40, overlap=14)])
def test_tiles_and_batches_change_nothing(options: RefineOptions) -> None:
    rectangles = [(x, y, x + 9 + x % 5, y + 12) for y in range(2, 140, 20) for x in range(3, 170, 19)]
    rectangles = [one for one in rectangles if one[2] < 180]
    shape = (150, 180)
    first = of_crops(shape, [rectangle(x0 + 2, y0 + 1, x1, y1) for x0, y0, x1, y1 in rectangles])
    sam = Stand()
    found = refine(sam, bright(shape, *rectangles), first, dataclasses.replace(options, batch=7))
    assert max(sam.batches) <= 7
    assert found.boxes.tolist() == [list(one) for one in rectangles], "all are drawn as they are, in their order"
    assert found.provenance["sam"] == {"drawn": len(rectangles), "kept": 0, "dropped": 0}
    assert np.array_equal(found.scores, first.scores)


def test_an_object_larger_than_a_tile_is_seen_whole() -> None:
    shape = (120, 200)
    found = refine(
        Stand(),
        bright(shape, (10, 30, 190, 60)),
        of_crops(shape, [rectangle(30, 35, 180, 55)]),
        RefineOptions(tile=40, overlap=8, gates=GateOptions(overlap=0.2)),
    )
    # its window ends where it would need the object's true size to go on
    assert found.boxes[0].tolist()[1::2] == [30, 60]
    assert found.boxes[0, 2] - found.boxes[0, 0] >= 166


def test_embeddings_are_computed_once_a_tile_for_a_thousand_prompts() -> None:
    rectangles = [(x, y, x + 3, y + 3) for y in range(0, 160, 5) for x in range(0, 160, 5)][:1000]
    shape = (160, 160)
    sam = Stand()
    found = refine(sam, bright(shape, *rectangles), of_crops(shape, [rectangle(*one) for one in rectangles]), OPTIONS)
    assert len(sam.windows) == 1
    assert max(sam.batches) <= 64
    assert sum(sam.batches) == 1000
    assert len(found) == 1000


# gates and merging


@pytest.mark.parametrize(
    ("sam", "gates"),
    [
        (Stand(quality=0.4), GateOptions()),
        (Stand(weak=4), GateOptions()),
        (Stand(), GateOptions(overlap=0.99)),
        (Stand(), GateOptions(max_area=300)),
    ],
    ids=["quality", "stability", "overlap", "size"],
)
def test_what_sam_loses_is_kept_from_the_first_pass(sam: Stand, gates: GateOptions) -> None:
    shape = (40, 50)
    before = of_crops(shape, [rectangle(12, 11, 28, 25)])
    image = bright(shape, (10, 10, 30, 27))
    drawn = refine(Stand(), image, before, OPTIONS)
    assert drawn.boxes.tolist() == [[10, 10, 30, 27]]
    kept = refine(sam, image, before, dataclasses.replace(OPTIONS, gates=gates))
    assert kept.boxes.tolist() == before.boxes.tolist()
    assert kept.provenance["sam"]["kept"] == 1
    lost = refine(sam, image, before, dataclasses.replace(OPTIONS, gates=dataclasses.replace(gates, keep_lost=False)))
    assert len(lost) == 0
    assert lost.rles == []
    assert lost.provenance["sam"]["dropped"] == 1


def test_boxes_alone_get_masks_or_are_dropped() -> None:
    shape = (40, 60)
    boxes = np.float32([[9, 9, 31, 28], [40, 5, 55, 20]])
    before = Predictions(1, "", *shape, boxes, [0.9, 0.8], [0, 1])
    found = refine(Stand(), bright(shape, (10, 10, 30, 27)), before, OPTIONS)
    assert found.boxes.tolist() == [[10, 10, 30, 27]]
    assert found.classes.tolist() == [0]


def test_objects_that_overlap_share_no_pixel_and_sams_masks_go_first() -> None:
    """The second region's object is lost by SAM; its mask of the first pass reaches into the first one's."""
    shape = (40, 60)
    before = of_crops(shape, [rectangle(10, 10, 20, 20), rectangle(17, 10, 40, 20)], [0.5, 0.9])
    found = refine(Stand(), bright(shape, (10, 10, 21, 20)), before, OPTIONS)
    assert found.boxes.tolist() == [[10, 10, 21, 20], [21, 10, 40, 20]]
    assert not (masks_of(found)[0] & masks_of(found)[1]).any()
    twice = of_crops(shape, [rectangle(10, 10, 20, 20), rectangle(11, 10, 21, 20)], [0.5, 0.9])
    (one,) = refine(Stand(), bright(shape, (10, 10, 21, 20)), twice, OPTIONS).scores
    assert one == np.float32(0.9), "two prompts of one object leave the better one"


def test_objects_out_of_focus_are_dropped_whatever_their_contrast() -> None:
    shape = (120, 200)
    image = np.zeros((*shape, 1), np.float32)
    crops = []
    for (x, y), (blur, level) in zip([(20, 40), (80, 40), (140, 40)], [(0.0, 60), (0.0, 200), (5.0, 200)], strict=True):
        one = np.zeros(shape, np.float32)
        cv2.circle(one, (x + 16, y + 16), 16, level, -1)
        image[:, :, 0] += cv2.GaussianBlur(one, (0, 0), blur) if blur else one
        disk = np.zeros((33, 33), np.uint8)
        cv2.circle(disk, (16, 16), 16, 1, -1)
        crops.append(MaskCrop(disk > 0, x, y))
    values = sharpness(as_rgb(image), crops)
    assert values[0] == pytest.approx(values[1], rel=0.02)
    assert values[0] > 0.6
    assert values[2] < 0.15
    gates = GateOptions(quality=0.99, sharpness=0.3)
    found = refine(Stand(), image, of_crops(shape, crops), dataclasses.replace(OPTIONS, gates=gates))
    assert found.boxes[:, 0].tolist() == [20, 80]
    assert sharpness(np.zeros((9, 9, 3), np.uint8), [rectangle(2, 2, 5, 5)]).tolist() == [0.0]


@pytest.mark.parametrize("noise", [0, 4])
def test_sharpness_is_what_its_explanation_says_and_noise_is_not_sharp(noise: int) -> None:
    rng = np.random.default_rng(0)
    for blur, expected in ((0.0, 0.97), (1.0, 0.64), (2.0, 0.34), (4.0, 0.15)):
        gray = np.full((300, 300), 20, np.float32)
        gray[80:220, 80:220] = 200
        gray = cv2.GaussianBlur(gray, (0, 0), blur) if blur else gray
        gray = np.rint(gray + rng.normal(0, noise, gray.shape)).astype(np.uint8)
        (value,) = sharpness(np.repeat(gray[:, :, None], 3, axis=2), [rectangle(80, 80, 220, 220)])
        assert value == pytest.approx(expected, abs=0.03)


def test_soft_masks_belong_to_their_boxes() -> None:
    shape = (40, 60)
    before = of_crops(shape, [rectangle(10, 10, 20, 20), rectangle(40, 10, 50, 20)])
    before.soft_masks = [np.full((10, 10), 200, np.uint8)] * 2
    found = refine(Stand(), bright(shape, (9, 10, 21, 20)), before, OPTIONS, soft_masks=True)
    sizes = [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in soft_mask_windows(found.boxes, *shape).tolist()]
    assert [one.shape for one in found.soft_masks] == sizes == [(10, 12), (10, 10)]
    assert found.soft_masks[0].min() > 250
    assert (found.soft_masks[1] == 200).all()


def test_nothing_found_and_images_that_sam_cannot_take() -> None:
    nothing = refine(Stand(), np.zeros((20, 30, 3), np.uint8), Predictions.empty(1, "", 20, 30), OPTIONS)
    assert len(nothing) == 0
    assert nothing.rles == []
    with pytest.raises(ConfigError, match="have 2 channels"):
        as_rgb(np.zeros((4, 4, 2), np.uint8))
    deep = as_rgb(np.array([[[0], [1000], [2000]]], np.uint16))
    assert deep[0, :, 2].tolist() == [0, 128, 255]


# transformers' classes
