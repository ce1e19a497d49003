"""Cascade and res5 heads: stages, labels, gradients; regions in portions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_for_tests import disks, relative

from detseg.errors import WeightsError
from detseg.models.base import check_finite
from detseg.models.rcnn.box_head import BoxPredictor
from detseg.models.rcnn.boxes import BoxCoder
from detseg.models.rcnn.matching import Matcher
from detseg.models.rcnn.regions import in_portions
from detseg.models.rcnn.roi_heads import CascadeROIHeads, _relabel
from detseg.models.rcnn.rpn import Proposals
from detseg.models.rcnn.targets import Targets
from detseg.structures.sample import Sample

CPU = torch.device("cpu")
SQUARES = torch.tensor([[4.0, 4, 20, 20], [30, 8, 60, 40], [1, 1, 63, 63]])


def features_and_proposals(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], list[Proposals]]:
    torch.manual_seed(1)
    batch = model.image_input([disks(5, (64, 64)).image], CPU)
    features = {name: feature.detach() for name, feature in model.backbone(batch.tensor).items()}
    return features, [Proposals(SQUARES, torch.zeros(3))]


def test_each_stage_sees_the_boxes_of_the_one_before() -> None:
    model = relative("cascade").eval()
    heads: CascadeROIHeads = model.roi_heads
    with torch.no_grad():
        for stage, shift in enumerate((1.0, 2.0, 3.0)):
            predictor = heads.box_predictor[stage]
            predictor.bbox_pred.weight.zero_()
            # dx = 1 / weight moves a box by its own width / weight.
            predictor.bbox_pred.bias.copy_(torch.tensor([shift, 0, 0, 0]))
        features, _ = features_and_proposals(model)
        found = heads.detect(features, [Proposals(SQUARES[:1], torch.zeros(1))], [(64, 640)])[0]
    # The stages' weights of dx are 10, 20, 30: each moves by a tenth of the width, 16.
    assert found.boxes[0].tolist() == pytest.approx([4 + 4.8, 4, 20 + 4.8, 20], abs=1e-4)


def test_scores_are_the_mean_of_the_stages() -> None:
    model = relative("cascade", **{"MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0}).eval()
    heads: CascadeROIHeads = model.roi_heads
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]])
    with torch.no_grad():
        for predictor, bias in zip(heads.box_predictor, logits, strict=True):
            predictor.cls_score.weight.zero_()
            predictor.cls_score.bias.copy_(bias)
        features, proposals = features_and_proposals(model)
        found = heads.detect(features, proposals, [(64, 64)])[0]
    expected = logits.softmax(dim=1).mean(dim=0)
    for of_class in (0, 1):
        torch.testing.assert_close(found.scores[found.classes == of_class], expected[of_class].expand(3))


def test_the_features_get_the_mean_gradient_of_the_stages() -> None:
    """Each head learns in full, what is shared below them from a third of the sum."""
    model = relative("cascade").eval()
    heads: CascadeROIHeads = model.roi_heads
    features, _ = features_and_proposals(model)
    maps = [features[name].requires_grad_() for name in heads.in_features]
    pooled = heads.box_pooler(maps, [SQUARES])
    for stage in range(3):
        scores, _ = heads._run(stage, maps, [SQUARES])
        scaled = torch.autograd.grad(scores.square().sum(), maps)
        plain, _ = heads.box_predictor[stage](heads.box_head[stage](pooled))
        full = torch.autograd.grad(plain.square().sum(), maps, retain_graph=True)
        for one, other in zip(scaled, full, strict=True):
            torch.testing.assert_close(one * 3, other)


def test_boxes_of_later_stages_are_labelled_by_their_own_threshold() -> None:
    sample = disks(1, (64, 64), radius=12)
    target = Targets.from_sample(sample, 2, CPU)
    x0, y0, x1, y1 = target.boxes[0].tolist()
    half_off = [x0, y0, x0 + (x1 - x0) * 0.65, y1]
    boxes = torch.tensor([[x0, y0, x1, y1], half_off, [0, 0, 3, 3], [5, 5, 5, 9], [float("nan")] * 4])
    of_object = int(sample.classes[0])
    assert _relabel(boxes, target, Matcher((0.6,), (0, 1)), 2).classes.tolist() == [of_object, of_object, 2]
    assert _relabel(boxes, target, Matcher((0.7,), (0, 1)), 2).classes.tolist() == [of_object, 2, 2]


def test_ignored_boxes_of_later_stages_count_for_nothing() -> None:
    sample = disks(1, (64, 64), radius=5, seed=3)
    ignore = torch.zeros(64, 64, dtype=torch.bool).numpy()
    ignore[:, :32] = True
    target = Targets.from_sample(Sample(sample.image, sample.layers, sample.classes, ignore=ignore), 2, CPU)
    boxes = torch.tensor([[2.0, 2, 20, 20], [40, 40, 60, 60]])
    assert len(_relabel(boxes, target, Matcher((0.6,), (0, 1)), 2).boxes) == 1


@pytest.mark.parametrize("name", ["cascade", "C4"])
def test_not_a_number_is_an_error_that_names_the_part(name: str) -> None:
    model = relative(name).eval()
    features, proposals = features_and_proposals(model)
    broken = {key: torch.full_like(feature, float("nan")) for key, feature in features.items()}
    with pytest.raises(WeightsError, match=r"class scores and boxes \(roi_heads\) are not finite"):
        model.roi_heads.detect(broken, proposals, [(64, 64)])


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_portions_keep_the_order(size: int) -> None:
    boxes = [torch.arange(12.0).view(3, 4), torch.zeros(0, 4), torch.arange(100.0, 116).view(4, 4)]
    portions = list(in_portions(boxes, size))
    assert all(len(portion) == 3 and sum(map(len, portion)) <= size for portion in portions)
    assert torch.equal(torch.cat([torch.cat(portion) for portion in portions]), torch.cat(boxes))
    for image, image_boxes in enumerate(boxes):
        assert torch.equal(torch.cat([portion[image] for portion in portions]), image_boxes)


def test_nothing_is_one_empty_portion() -> None:
    assert [[len(part) for part in portion] for portion in in_portions([torch.zeros(0, 4)] * 2, 5)] == [[0, 0]]


@pytest.mark.parametrize("name", ["C4", "cascade", "stride 2"])
def test_portions_of_regions_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = relative(name).eval()
    image = disks(8, (64, 96)).image
    whole = model.predict([image, image[:48]])
    for limit in ("boxes_at_once", "masks_at_once"):
        monkeypatch.setattr(model.roi_heads, limit, 7)
    for one, other in zip(model.predict([image, image[:48]]), whole, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_res5_has_three_blocks_whatever_the_depth() -> None:
    with torch.device("meta"):
        model = relative("C4", **{"MODEL.RESNETS.DEPTH": 101})
    assert len(model.roi_heads.res5) == 3
    assert not hasattr(model.backbone, "res5")


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_no_proposal_is_no_detection(class_agnostic: bool) -> None:
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    predictor = BoxPredictor(in_channels=4, num_classes=3, class_agnostic=class_agnostic, coder=coder)
    scores, deltas = predictor(torch.zeros(0, 4))
    assert len(predictor.detect(scores, deltas, torch.zeros(0, 4), (5, 5)).boxes) == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_and_large_ones_are_not_taken_for_it(wrong: float) -> None:
    values = torch.full((3, 50), 3e38)  # their sum is infinite
    check_finite("values", torch.zeros(0), values, values.bfloat16())
    values[1, 7] = wrong
    with pytest.raises(WeightsError, match="values are not finite"):
        check_finite("values", torch.ones(4), values)
