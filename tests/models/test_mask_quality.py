"""The mask-quality head: what it learns, that it leaves everything else alone, and what predictions make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_for_tests import disks, given_boxes, relative, small_model, without_objects
from scipy.stats import spearmanr

from detseg.config import load_config
from detseg.config.options import Problems
from detseg.detectron2.keys import note_keys
from detseg.engines.model_keys import note_model
from detseg.models.rcnn.mask_quality import QualityHead, QualityOptions, mask_ious, quality_loss
from detseg.structures.sample import Sample

QUALITY = "MODEL.ROI_MASK_HEAD.QUALITY"
SMALL_HEAD = {f"{QUALITY}.ENABLED": True, f"{QUALITY}.CONV_DIM": 32, f"{QUALITY}.FC_DIM": 16}


def head(**changes: object) -> QualityHead:
    values = {"num_conv": 2, "conv_channels": 8, "num_fc": 1, "fc_channels": 16, "class_agnostic": False}
    values |= {"loss_weight": 1.0, "rescores": True}
    torch.manual_seed(0)
    return QualityHead(QualityOptions(**values | changes), in_channels=3, size=14, num_classes=2)


def mask(rows: slice, columns: slice) -> torch.Tensor:
    cells = torch.zeros(28, 28)
    cells[rows, columns] = 1
    return cells


def test_iou_of_a_mask_with_the_whole_object() -> None:
    """Boxes of 56 x 28 pixels: a cell is 2 x 1 pixels."""
    everything, left = slice(None), slice(0, 14)
    predicted = torch.stack([mask(everything, left)] * 4 + [mask(slice(0, 0), left)]) * 0.5
    truth = torch.stack([mask(everything, left), mask(everything, everything), *[mask(left, left)] * 3]) > 0
    areas = torch.tensor([784.0, 1568, 392, 392 + 784, 392])
    ious = mask_ious(predicted, truth, torch.tensor([[3.0, 5, 59, 33]] * 5), areas)
    # the same; half; twice as large; half of the object's 1176 pixels lie outside of the box; nothing is predicted
    expected = [1, 0.5, 0.5, 392 / (784 + 1176 - 392), 0]
    assert ious.tolist() == pytest.approx(expected, abs=1e-6)
    assert mask_ious(predicted[:0], truth[:0], torch.zeros(0, 4), areas[:0]).shape == (0,)


def test_an_object_that_cells_round_up_is_no_better_than_whole() -> None:
    whole = mask(slice(0, 14), slice(0, 14))[None]
    assert mask_ious(whole, whole > 0, torch.tensor([[0.0, 0, 28, 28]]), torch.tensor([190.0])).tolist() == [1]


def test_the_loss_counts_what_is_known() -> None:
    quality, ious = torch.tensor([0.5, 0.9, 0.1]), torch.tensor([1.0, 0.9, 0.5])
    assert float(quality_loss(quality, ious)) == pytest.approx((0.25 + 0 + 0.16) / 3)
    assert float(quality_loss(quality, ious, torch.tensor([True, True, False]))) == pytest.approx(0.125)
    assert float(quality_loss(quality, ious, None, torch.tensor([0.0, 1, 0.5]))) == pytest.approx(0.08 / 3)
    assert float(quality_loss(quality, ious, torch.zeros(3, dtype=torch.bool))) == 0


def test_the_head_learns_from_mask_and_features_what_the_iou_is() -> None:
    """The features show a square, the mask is some rectangle: neither tells the IoU alone."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        squares, masks = torch.zeros(2, count, 28, 28)
        for of_all in (squares, masks):
            for cells, (y, x) in zip(of_all, rng.integers(0, 14, (count, 2)), strict=True):
                cells[y : y + 14, x : x + 14] = 1
        pooled = torch.nn.functional.max_pool2d(squares[:, None], 2).expand(-1, 3, -1, -1)
        boxes = torch.tensor([[0.0, 0, 28, 28]]).expand(count, -1)
        return pooled, masks, mask_ious(masks, squares > 0, boxes, squares.sum(dim=(1, 2)))

    model = head(class_agnostic=True)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(100):
        pooled, masks, ious = draw(64)
        optimizer.zero_grad()
        quality_loss(model.quality_of(pooled, masks, torch.zeros(64, dtype=torch.int64)), ious).backward()
        optimizer.step()
    pooled, masks, ious = draw(200)
    with torch.no_grad():
        quality = model.quality_of(pooled, masks, torch.zeros(200, dtype=torch.int64))
    assert spearmanr(quality, ious).statistic > 0.9


def test_a_quality_for_every_class_or_one_for_all() -> None:
    pooled, masks, classes = torch.rand(4, 3, 14, 14), torch.rand(4, 28, 28), torch.tensor([0, 1, 1, 0])
    own = head()
    torch.nn.init.zeros_(own.predictor.weight)
    own.predictor.bias.data = torch.tensor([0.0, 5.0])
    expected = torch.tensor([0.0, 5, 5, 0]).sigmoid().tolist()
    assert own.quality_of(pooled, masks, classes).tolist() == pytest.approx(expected)
    agnostic = head(class_agnostic=True)
    assert agnostic.predictor.out_features == 1
    assert torch.equal(agnostic.quality_of(pooled, masks, classes), agnostic.quality_of(pooled, masks, 1 - classes))


def test_off_is_the_model_without_it() -> None:
    off, on = small_model(), small_model(**SMALL_HEAD)
    assert off.roi_heads.quality_head is None
    of_off, of_on = off.state_dict(), on.state_dict()
    assert not any("quality" in name for name in of_off)
    assert {name for name in of_on if name not in of_off} == {name for name in of_on if "quality_head" in name}
    assert all(torch.equal(value, of_on[name]) for name, value in of_off.items()), "other initial weights"
    image = disks(5, (64, 64)).image
    unjudged = small_model(**SMALL_HEAD, **{f"{QUALITY}.RESCORE": False}).eval().predict([image])[0]
    plain, judged = (model.eval().predict([image])[0] for model in (off, on))
    assert np.isnan(plain.quality).all()
    assert np.isnan(unjudged.quality).all()
    assert np.array_equal(plain.scores, unjudged.scores)
    assert plain.rles == unjudged.rles
    assert np.isfinite(judged.quality).all()
    np.testing.assert_allclose(np.sort(judged.class_scores), np.sort(plain.scores), rtol=1e-5)


@pytest.mark.parametrize("name", ["cascade", "C4", "DC5", "stride 2", "cascade, GN, convolutions"])
def test_every_relative_judges_its_masks(name: str) -> None:
    model = relative(name, **SMALL_HEAD)
    losses = model([disks(5, (64, 64)), without_objects((64, 64))])
    assert float(losses["loss_mask_quality"].detach()) > 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.roi_heads.quality_head.parameters())
    found = model.eval().predict([disks(5, (64, 64)).image])[0]
    assert len(found) > 0
    assert ((found.quality > 0) & (found.quality <= 1)).all()
    assert (np.diff(found.scores) <= 0).all(), "best first"
    np.testing.assert_allclose(found.scores, found.class_scores * found.quality, rtol=1e-6)


def test_masks_are_not_trained_to_be_judged_easily() -> None:
    model = small_model(**SMALL_HEAD)
    model([disks(5, (64, 64))])["loss_mask_quality"].backward()
    assert all(parameter.grad is None for parameter in model.roi_heads.mask_head.parameters())
    assert any(parameter.grad is not None for parameter in model.backbone.parameters())


def test_an_image_without_objects_trains_nothing_but_takes_part() -> None:
    model = small_model(**SMALL_HEAD)
    loss = model([without_objects((64, 64))])["loss_mask_quality"]
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in model.roi_heads.quality_head.parameters())


def test_the_quality_of_what_is_partly_ignored_is_not_known() -> None:
    sample = disks(6, (64, 64))
    ignore = np.zeros((64, 64), dtype=bool)
    ignore[::8] = True  # a row of every object
    losses = small_model(**SMALL_HEAD)([Sample(sample.image, sample.layers, sample.classes, ignore=ignore)])
    assert float(losses["loss_mask_quality"].detach()) == 0
    assert float(losses["loss_mask"].detach()) > 0


def test_labels_that_count_less_train_it_less() -> None:
    sample = disks(6, (64, 64))
    losses = []
    for weight in (1.0, 0.25):
        model = small_model(**SMALL_HEAD)
        torch.manual_seed(0)
        weighed = Sample(sample.image, sample.layers, sample.classes, weight=weight)
        losses.append(float(model([weighed])["loss_mask_quality"].detach()))
    assert losses[1] == pytest.approx(losses[0] / 4)


def test_the_weight_of_the_loss() -> None:
    losses = []
    for weight in (1.0, 0.5, 0.0):
        model = small_model(**SMALL_HEAD, **{f"{QUALITY}.LOSS_WEIGHT": weight})
        torch.manual_seed(0)
        losses.append(float(model([disks(5, (64, 64))])["loss_mask_quality"].detach()))
    assert losses == pytest.approx([losses[0], losses[0] / 2, 0])


@pytest.mark.parametrize("name", ["stride 2", "C4"])
def test_portions_speed_and_number_format_hardly_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = relative(name, **SMALL_HEAD).eval()
    image = disks(8, (64, 96)).image
    boxes = [given_boxes([[3.0, 4, 30, 31], [40, 10, 62, 50], [0, 0, 20, 12]], (64, 96), [0, 1, 1])]
    whole = model.predict_masks([image], boxes)[0]
    monkeypatch.setattr(model.roi_heads, "masks_at_once", 2)
    np.testing.assert_allclose(model.predict_masks([image], boxes)[0].quality, whole.quality, atol=1e-5)
    fast = model.prefer_speed()
    np.testing.assert_allclose(fast.predict_masks([image], boxes)[0].quality, whole.quality, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = fast.predict_masks([image], boxes)[0].quality
    np.testing.assert_allclose(half, whole.quality, atol=0.03)
    assert half.dtype == np.float32


def test_given_boxes_keep_their_order_and_lose_the_quality_of_other_masks() -> None:
    model = small_model(**SMALL_HEAD).eval()
    image = disks(8, (64, 96)).image
    boxes = given_boxes([[3.0, 4, 30, 31], [40, 10, 62, 50], [0, 0, 20, 12]], (64, 96))
    boxes.scores = np.float32([0.2, 0.9, 0.5])
    judged = boxes.with_quality(np.float32([0.9, 0.3, np.nan]))
    first, second = (model.predict_masks([image], [given])[0] for given in (boxes, judged))
    assert first.boxes.tolist() == boxes.boxes.tolist()
    np.testing.assert_allclose(first.scores, boxes.scores * first.quality, rtol=1e-6)
    np.testing.assert_allclose(second.scores, first.scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "engine", "message"),
    [
        ([f"{QUALITY}.NUM_CONV", "0"], "native", "NUM_CONV = 0 (command line): expected at least 1"),
        (["MODEL.ROI_MASK_HEAD.NORM", "GN", f"{QUALITY}.CONV_DIM", "40"], "native", "do not divide 40 channels"),
        (["MODEL.MASK_ON", "False"], "native", "set MODEL.MASK_ON True"),
        ([], "detectron2", "set MODEL.ENGINE native"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], engine: str, message: str) -> None:
    words = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", "True", f"{QUALITY}.ENABLED", "True"]
    problems = Problems(load_config(None, [*words, *changes]), engine)
    (note_keys if engine == "detectron2" else note_model)(problems)
    assert any(QUALITY in text and message in text for text in problems.found), problems.found
